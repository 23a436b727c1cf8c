"""What latent diffusion models offer to methods: latents, conditions, noise prediction, schedule.

Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022. Latents are
(N, c, h, w), scaled to unit variance; inside, images are in [-1, 1].
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from counterlens.errors import UserError
from counterlens.generators.base import Generator, Training
from counterlens.generators.parts.diffusion import draw
from counterlens.generators.parts.latent_options import LatentOptions
from counterlens.runtime.device import autocast
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed, generator, image_generators
from counterlens.runtime.training import Losses, moving_average

CHUNK = 64


class LatentDecoder(nn.Module):
    """Latents (N, c, h, w) to images (N, C, H, W), about [0, 1] and not clamped; differentiable."""

    scale: Tensor

    def __init__(self, autoencoder: Any, scale: Tensor, fitted: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.post_quant_conv: nn.Module = autoencoder.post_quant_conv
        self.decoder: nn.Module = autoencoder.decoder
        self.register_buffer("scale", scale, persistent=False)
        self.fitted = fitted

    def forward(self, z: Tensor) -> Tensor:
        v = self.decoder(self.post_quant_conv(z / self.scale))
        return (self.fitted(v) + 1) / 2


class LatentDiffusion(Generator):
    """An autoencoder and a conditional noise prediction in its latents.

    Attributes:
        autoencoder: diffusers' `AutoencoderKL`.
        unet: diffusers' `UNet2DConditionModel`.
        scheduler: diffusers' `DDIMScheduler`, whose grid ends at step 0 and at no noise.
        scale: float32 (), what latents are multiplied with for unit variance.
        inner_size: height and width of the images that the autoencoder sees.
        latent_size: height and width of the latents.
    """

    latent_dim = 0
    autoencoder: Any
    unet: Any
    scheduler: Any
    scale: Tensor
    inner_size: tuple[int, int]
    latent_size: tuple[int, int]

    def __init__(self, options: LatentOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.settings: LatentOptions = options

    @abstractmethod
    def to_model(self, v: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] in the size of the autoencoder; differentiable."""

    @abstractmethod
    def from_model(self, v: Tensor) -> Tensor:
        """The inverse of `to_model`."""

    @abstractmethod
    def condition(self, classes: Tensor) -> Tensor:
        """What `eps` is told of classes (N,): one row each; the class -1 is the null condition.

        Raises:
            UserError: it is not conditioned on one of the classes.
        """

    @abstractmethod
    def eps(self, z: Tensor, step: int | Tensor, condition: Tensor) -> Tensor:
        """The noise in latents (N, c, h, w) at a training step, or at one each (N,)."""

    def position(self, classes: Tensor) -> Tensor:
        """Places of classes (N,) in the options; one behind the last for -1."""
        known = torch.tensor(self.settings.classes, device=classes.device)
        same = classes[:, None] == known
        if not bool((same.any(dim=1) | (classes == -1)).all()):
            wanted = sorted({int(label) for label in classes} - {-1, *self.settings.classes})
            raise UserError(
                f"the latent diffusion model knows no class {wanted[0]}; add it to its `classes`"
            )
        places = torch.arange(len(known), device=classes.device)
        return torch.where(classes == -1, len(known), (same * places).sum(dim=1))

    def encode(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to latents (N, c, h, w): the posterior's mean, scaled."""
        return self.autoencoder.encode(self.to_model(2 * x - 1)).latent_dist.mean * self.scale

    def decoder(self) -> LatentDecoder:
        """The decoder by itself; it shares the parameters."""
        return LatentDecoder(self.autoencoder, self.scale, self.from_model)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, c, h, w) to images; not clamped, so that gradients pass."""
        return self.decoder()(z)

    def sampling_scheduler(self, grid: int) -> Any:
        """A scheduler of its own for sampling with `grid` steps."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(grid)
        return scheduler

    def noised(self, z: Tensor, noise: Tensor, step: int) -> Tensor:
        """Clean latents at a noise level (ECED Eq. 9)."""
        return self.scheduler.add_noise(z, noise, torch.full((len(z),), step, device=z.device))

    def guided(self, z: Tensor, step: int, condition: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance: no unconditional pass at a scale of 1."""
        if guidance == 1:
            return self.eps(z, step, condition)
        nothing = self.condition(torch.full((len(z),), -1, device=z.device))
        both = self.eps(torch.cat([z, z]), step, torch.cat([condition, nothing]))
        wanted, free = both.chunk(2)
        return free + guidance * (wanted - free)

    @torch.inference_mode()
    def sample(
        self,
        z: Tensor,
        classes: Tensor,
        randomness: Sequence[torch.Generator],
        start: int | None = None,
    ) -> Tensor:
        """From latents at the level `start`, or from pure noise, all the way down (eta = 1)."""
        scheduler = self.sampling_scheduler(self.settings.grid)
        condition = self.condition(classes)
        for step in steps_from(scheduler, start):
            noise = draw(randomness, z.shape[1:], z)
            predicted = self.eps(z, step, condition)
            z = scheduler.step(predicted, step, z, eta=1.0, variance_noise=noise).prev_sample
        return z

    @torch.inference_mode()
    def encoded(self, x: Tensor, device: torch.device) -> Tensor:
        """Latents of images on the CPU, in batches, on the device."""
        return torch.cat([self.encode(part.to(device)) for part in x.split(CHUNK)])

    @torch.inference_mode()
    def decoded(self, z: Tensor) -> Tensor:
        """Images in [0, 1] of latents, in batches, on the CPU."""
        return torch.cat([self.decode(part).clamp(0, 1).cpu() for part in z.split(CHUNK)])

    def generated(self, training: Training, classes: Tensor) -> Tensor:
        """Samples (N, C, H, W) in [0, 1] of classes (N,), from pure noise."""
        random = image_generators(training.seed, "samples", "quality", range(len(classes)))
        shape = (self.autoencoder.config.latent_channels, *self.latent_size)
        z = draw(random, shape, torch.empty(0, device=training.device))
        return self.decoded(self.batched(z, classes, random, self.sample))

    def returned(self, training: Training, z: Tensor, classes: Tensor) -> Tensor:
        """Latents of images noised to the options' `start` and denoised with their own class."""
        random = image_generators(training.seed, "return", "quality", range(len(classes)))
        steps = steps_from(self.sampling_scheduler(self.settings.grid), self.settings.start)

        def there_and_back(part: Tensor, labels: Tensor, chosen: Sequence[Any]) -> Tensor:
            noisy = self.noised(part, draw(chosen, part.shape[1:], part), steps[0])
            return self.sample(noisy, labels, chosen, steps[0])

        return self.batched(z, classes, random, there_and_back)

    def batched(
        self,
        z: Tensor,
        classes: Tensor,
        random: Sequence[torch.Generator],
        run: Callable[[Tensor, Tensor, Sequence[torch.Generator]], Tensor],
    ) -> Tensor:
        """`run` on parts of latents, their classes and their generators."""
        return torch.cat(
            [
                run(part, classes[start : start + CHUNK].to(z.device), random[start:][:CHUNK])
                for start, part in zip(range(0, len(z), CHUNK), z.split(CHUNK), strict=True)
            ]
        )

    def quality(self, training: Training) -> Quality:
        """The autoencoder alone, samples, and the way to `start` and back, on test images."""
        assert training.classifier is not None
        options, classifier = self.settings, training.classifier
        x, labels = chosen_images(training.test_images, training.test_labels, options.classes)
        every = max(1, len(x) // options.checked)
        x, labels = x[::every][: options.checked], labels[::every][: options.checked]
        z = self.encoded(x, training.device)
        plain = self.decoded(z)
        back = self.decoded(self.returned(training, z, labels))
        drawn = self.generated(training, labels)
        before, after, there, made = (
            classifier.probabilities(images).argmax(dim=1) for images in (x, plain, back, drawn)
        )
        values = {
            "reconstruction_l1": float((x - plain).abs().mean()),
            "class_kept": float((before == after).float().mean()),
            "sampled_as_class": float((made == labels).float().mean()),
            "returned_as_class": float((there == before).float().mean()),
            "returned_l1": float((x - back).abs().mean()),
            "latent_scale": float(self.scale),
        }
        return Quality(
            values,
            at_least={
                "class_kept": options.least_class_kept,
                "sampled_as_class": options.least_sampled,
                "returned_as_class": options.least_returned,
            },
            at_most={"reconstruction_l1": options.most_reconstruction_l1},
        )

    def sheet(self, training: Training) -> Tensor:
        """A row each of test images, reconstructions, images returned from `start`, and samples."""
        x, labels = chosen_images(training.test_images, training.test_labels, self.settings.classes)
        every = max(1, len(x) // 8)
        x, labels = x[::every][:8], labels[::every][:8]
        z = self.encoded(x, training.device)
        back = self.decoded(self.returned(training, z, labels))
        classes = torch.tensor(self.settings.classes).repeat(16)[:16].sort().values
        return torch.cat([x, self.decoded(z), back, self.generated(training, classes)])


def steps_from(scheduler: Any, start: int | None = None) -> list[int]:
    """The steps of a scheduler's sampling grid from `start` (default: the highest) down to 0."""
    return [int(step) for step in scheduler.timesteps if start is None or step <= start]


def chosen_images(
    images: Tensor, labels: Tensor | None, classes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The images and labels of some classes."""
    assert labels is not None, "a class-conditional model is trained with labels"
    rows = torch.isin(labels, torch.tensor(classes))
    return images[rows], labels[rows]


def decayed(
    optimizer: torch.optim.Optimizer, steps: int, warm_up: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate rises in `warm_up` steps and falls to a tenth along half a cosine."""

    def factor(step: int) -> float:
        fallen = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / max(1, steps)))
        return min(1.0, (step + 1) / max(1, warm_up)) * fallen

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class DenoisingTraining:
    """The UNet learns the noise in latents that are computed once: ECED Eq. 11.

    Attributes:
        parts: what a checkpoint must keep.
    """

    def __init__(self, model: LatentDiffusion, training: Training) -> None:
        self.model, self.training, self.options = model, training, model.settings
        self.trained = list(self.trainable().parameters())
        self.optimizer = torch.optim.AdamW(
            self.trained,
            self.options.lr,
            betas=(0.9, 0.999),
            weight_decay=self.options.weight_decay,
        )
        self.steps = self.options.epochs * self.options.epoch_steps
        self.scheduler = decayed(self.optimizer, self.steps, self.options.warm_up)
        self.averaged = AveragedModel(
            self.trainable(), multi_avg_fn=moving_average(self.options.ema)
        )
        self.latents: Tensor | None = None
        self.parts: dict[str, Any] = {
            "averaged": self.averaged,
            "denoiser": self.optimizer,
            "denoiser rate": self.scheduler,
        }

    def trainable(self) -> nn.Module:
        """All but the autoencoder: the UNet and what makes its conditions."""
        return nn.ModuleDict(
            {name: part for name, part in self.model.named_children() if name != "autoencoder"}
        )

    def prepare(self) -> None:
        """Encode the training images of the classes, once, and their mirror images."""
        training, options = self.training, self.options
        images, labels = chosen_images(training.images, training.labels, options.classes)
        self.model.eval()
        latents = [self.model.encoded(images, training.device)]
        if options.flip:
            latents.append(self.model.encoded(images.flip(3), training.device))
        self.latents = torch.cat(latents).clone()
        self.labels = labels.repeat(len(latents)).to(training.device)
        self.model.unet.train()

    def epoch(self, epoch: int) -> Iterator[Losses]:
        """The losses of the steps of one epoch."""
        if self.latents is None:
            self.prepare()
        assert self.latents is not None
        options, model, device = self.options, self.model, self.training.device
        random = generator(derive_seed(self.training.seed, "denoising", epoch))
        length = len(model.scheduler.alphas_cumprod)
        for _ in range(options.epoch_steps):
            self.optimizer.zero_grad(set_to_none=True)
            losses = []
            for _ in range(options.accumulate):
                size = options.batch_size
                chosen = torch.randint(len(self.latents), (size,), generator=random).to(device)
                z = self.latents[chosen]
                noise = torch.randn(z.shape, generator=random).to(device)
                place = torch.rand(size, generator=random)
                low = torch.rand(size, generator=random) < options.focus_share
                top = torch.where(low, float(options.focus or length), float(length))
                step = (place * top).long().clamp(max=length - 1).to(device)
                free = torch.rand(size, generator=random).to(device) < options.drop
                condition = model.condition(torch.where(free, -1, self.labels[chosen]))
                noisy = model.scheduler.add_noise(z, noise, step)
                with autocast(device, options.precision):
                    predicted = model.eps(noisy, step, condition).float()
                loss = functional.mse_loss(predicted, noise)
                (loss / options.accumulate).backward()
                losses.append(loss.detach())
            clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.scheduler.step()
            self.averaged.update_parameters(self.trainable())
            yield {"noise": torch.stack(losses).mean()}

    def finish(self) -> None:
        """Put the moving average in place."""
        if self.steps:
            self.trainable().load_state_dict(copy.deepcopy(self.averaged.module.state_dict()))
