"""A small class-conditional latent diffusion model, trained here; the networks of diffusers.

The in-domain replacement for Stable Diffusion in ECED (WACV 2025): autoencoder and UNet of the same
kinds, the class in place of the prompt. First the autoencoder is trained (L1 and a small KL), its
latents are scaled to unit variance, then the UNet learns the noise in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens.config import GeneratorOptions
from counterlens.generators.base import Training
from counterlens.generators.parts.latent import (
    DenoisingTraining,
    LatentDiffusion,
    chosen_images,
    decayed,
)
from counterlens.generators.parts.latent_options import LatentOptions
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.sizes import Padding
from counterlens.runtime.training import History, Losses, train


class Options(LatentOptions):
    """Networks, and the training of the autoencoder.

    Attributes:
        widths: channels of the autoencoder's resolutions; each but the first halves the side.
        latent_channels: of the latents.
        channels: of the UNet's resolutions.
        groups: of all normalisations.
        cross_attention: the UNet attends to a token of the class besides its class embedding.
        autoencoder_epochs, autoencoder_batch_size, autoencoder_lr: epochs of `epoch_steps` steps.
        kl: weight of the mean KL per latent number beside the mean L1 per pixel.
        features: weight of the distance of the classifier's last feature map.
    """

    widths: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    latent_channels: int = Field(default=4, gt=0)
    channels: tuple[int, ...] = Field(default=(48, 96), min_length=1)
    groups: int = Field(default=16, gt=0)
    cross_attention: bool = True
    autoencoder_epochs: int = Field(default=100, gt=0)
    autoencoder_batch_size: int = Field(default=128, gt=0)
    autoencoder_lr: float = Field(default=1e-3, gt=0)
    kl: float = Field(default=1e-5, ge=0)
    features: float = Field(default=0.1, ge=0)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Channels come in groups."""
        if any(width % self.groups for width in (*self.widths, *self.channels)):
            return (
                f"widths {list(self.widths)} and channels {list(self.channels)} must be multiples "
                f"of groups, {self.groups}"
            )
        return super().conflict(generators)


class ClassConditionalLatentDiffusion(LatentDiffusion):
    """Images are padded with black to sides that fit the resolutions."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        super().__init__(options, shape)
        self.options: Options = options
        depth, count = len(options.widths), len(options.channels)
        self.padding = Padding(shape[1:], 2 ** (depth - 1 + count - 1))
        self.inner_size = self.padding.padded
        factor = 2 ** (depth - 1)
        self.latent_size = (self.inner_size[0] // factor, self.inner_size[1] // factor)
        autoencoder: Any = AutoencoderKL  # its annotations know one resolution alone
        self.autoencoder = autoencoder(
            in_channels=shape[0],
            out_channels=shape[0],
            latent_channels=options.latent_channels,
            block_out_channels=options.widths,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            layers_per_block=1,
            norm_num_groups=options.groups,
            mid_block_add_attention=False,
            sample_size=self.inner_size[0],
            scaling_factor=1.0,
        )
        cross = "CrossAttn" if options.cross_attention else ""
        self.unet = UNet2DConditionModel(
            sample_size=self.latent_size[0],
            in_channels=options.latent_channels,
            out_channels=options.latent_channels,
            block_out_channels=options.channels,
            layers_per_block=1,
            norm_num_groups=options.groups,
            down_block_types=(*[f"{cross}DownBlock2D"] * (count - 1), "DownBlock2D"),
            up_block_types=("UpBlock2D", *[f"{cross}UpBlock2D"] * (count - 1)),
            mid_block_type=f"UNetMidBlock2D{cross}",
            cross_attention_dim=64,
            attention_head_dim=4,
            num_class_embeds=len(options.classes) + 1,
        )
        self.token = nn.Embedding(len(options.classes) + 1, 64)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))
        self.scheduler = DDIMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=True,
            steps_offset=0,
            timestep_spacing="leading",
            prediction_type="epsilon",
        )

    def to_model(self, v: Tensor) -> Tensor:
        return self.padding.pad(v, value=-1.0)

    def from_model(self, v: Tensor) -> Tensor:
        return self.padding.crop(v)

    def condition(self, classes: Tensor) -> Tensor:
        return self.position(classes)

    def eps(self, z: Tensor, step: int | Tensor, condition: Tensor) -> Tensor:
        token = self.token(condition)[:, None] if self.options.cross_attention else None
        return self.unet(z, step, encoder_hidden_states=token, class_labels=condition).sample

    def fit(self, training: Training) -> History:
        """`autoencoder_epochs` of the autoencoder, then `epochs` of the UNet."""
        options = self.options
        place(self, training.device).train()
        autoencoding = AutoencoderTraining(self, training)
        denoising = DenoisingTraining(self, training)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            if epoch < options.autoencoder_epochs:
                yield from autoencoding.epoch(epoch)
                if epoch + 1 == options.autoencoder_epochs:
                    autoencoding.finish()
            else:
                yield from denoising.epoch(epoch - options.autoencoder_epochs)

        parts = {"model": self, **autoencoding.parts, **denoising.parts}
        epochs = options.autoencoder_epochs + options.epochs
        history = train("latent diffusion", epochs, epoch_losses, parts, training.checkpoint)
        denoising.finish()
        self.eval()
        return history


class AutoencoderTraining:
    """L1 + kl x KL + features x distance in the frozen classifier.

    Attributes:
        parts: what a checkpoint must keep.
    """

    def __init__(self, model: ClassConditionalLatentDiffusion, training: Training) -> None:
        assert training.classifier is not None
        options = model.options
        self.model, self.options, self.training = model, options, training
        self.images, _ = chosen_images(training.images, training.labels, options.classes)
        self.optimizer = torch.optim.AdamW(
            model.autoencoder.parameters(), options.autoencoder_lr, fused=True
        )
        steps = options.autoencoder_epochs * options.epoch_steps
        self.scheduler = decayed(self.optimizer, steps)
        self.parts = {"autoencoder": self.optimizer, "autoencoder rate": self.scheduler}

    def epoch(self, epoch: int) -> Iterator[Losses]:
        """The losses of the steps of one epoch."""
        options, model, device = self.options, self.model, self.training.device
        classifier = self.training.classifier
        assert classifier is not None
        random = generator(derive_seed(self.training.seed, "autoencoder", epoch))
        for _ in range(options.epoch_steps):
            size = options.autoencoder_batch_size
            chosen = torch.randint(len(self.images), (size,), generator=random)
            x = self.images[chosen].to(device, memory_format=torch.channels_last)
            if options.flip:
                mirrored = torch.rand(size, generator=random).to(device) < 0.5
                x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            with autocast(device, options.precision):
                posterior = model.autoencoder.encode(model.to_model(2 * x - 1)).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=random).to(device)
                drawn = model.autoencoder.decode(posterior.mean + posterior.std * noise).sample
            reconstructed = ((model.from_model(drawn) + 1) / 2).float()
            pixels = (2 * (reconstructed - x)).abs().mean()
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            loss = pixels + options.kl * divergence
            losses = {"reconstruction": pixels.detach(), "divergence": divergence.detach()}
            if options.features:
                with torch.no_grad():
                    wanted = classifier.features(x)
                distance = (classifier.features(reconstructed) - wanted).abs().mean()
                distance = distance / wanted.abs().mean().clamp(min=1e-6)
                loss = loss + options.features * distance
                losses["features"] = distance.detach()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            yield losses

    def finish(self) -> None:
        """Scale the latents of the training images to unit variance."""
        self.model.autoencoder.eval()
        self.model.scale.fill_(1.0)
        self.model.scale.fill_(1 / self.model.encoded(self.images, self.training.device).std())
