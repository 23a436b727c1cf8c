"""C3LT: cycle-consistent counterfactuals by latent transformations.

Khorram and Fuxin, CVPR 2022. Two maps are trained together on the latents of a frozen generator:
g takes class c to c', h takes c' to c. Defaults follow the released code where the paper differs
from it; the options name the paper's reading.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import GeneratorOptions, MethodOptions, latents_differ
from counterlens.data.base import ImageSet
from counterlens.generators.base import Generator, Quality
from counterlens.methods.base import BarePasses, Explanation, Method, Task, Walk
from counterlens.methods.parts.latent_options import InversionOptions, SamplingOptions
from counterlens.methods.parts.latents import draw_banks, draw_each, invert
from counterlens.runtime.device import autocast
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, History, Losses, batches, step_decay, train


class Options(MethodOptions):
    """Hyper-parameters of C3LT.

    Attributes:
        generator, encoder: ids of the experiment's decoder and encoder (a VAE may be both). With
            `encoder: null` the maps are trained on samples of the generator.
        sampling: how these samples are drawn.
        queries: without an encoder, explain the `given` images, whose latents are optimised, or in
            their place images `sampled` from the source class.
        inversion: how the latents of given images are optimised.
        steps: n of z' = g^n(z); 1 in every table, 3 in Figure 9.
        residual, preserve_norm: each step is z + g(z), rescaled to the length of z (code); the
            paper writes z' = g(z).
        alpha, beta, gamma: weights of the proximity, cycle and adversarial losses.
        proximity: `normalised` is the code's (L1 + 10 smoothness + entropy) / 12 on the min-max
            normalised squared difference; `paper` is Eq. 5, sums on the absolute difference.
        proximity_reference: compare the counterfactual with the real image or its reconstruction.
        cycle: `normalised` is the code's means, `paper` is Eq. 6's sums.
        adversarial: mean of the non-saturating -log D (code), or the paper's saturating
            log(1 - D), the counterfactual's and the cycle image's summed.
        train_discriminator: go on training a copy of the discriminator against g and h.
        cycle_maps: compare only so many of the classifier's first feature maps; None: all of them.
        classification: negative log-likelihood, or a hinge on probabilities with `margin`.
    """

    label: ClassVar[str] = "C3LT"
    trainable: ClassVar[bool] = True
    explaining: ClassVar[tuple[str, ...]] = ("queries", "inversion")

    generator: str
    encoder: str | None
    sampling: SamplingOptions = SamplingOptions()
    queries: Literal["given", "sampled"] = "given"
    inversion: InversionOptions = InversionOptions()
    steps: int = Field(default=1, gt=0)
    residual: bool = True
    preserve_norm: bool = True
    alpha: float = Field(default=0.1, ge=0)
    beta: float = Field(default=0.1, ge=0)
    gamma: float = Field(default=0.001, ge=0)
    classification: Literal["nll", "hinge"] = "nll"
    margin: float = 0.05
    proximity: Literal["normalised", "paper"] = "normalised"
    proximity_reference: Literal["real", "reconstruction"] = "real"
    smoothness_weight: float = Field(default=10.0, ge=0)
    entropy_weight: float = Field(default=1.0, ge=0)
    cycle: Literal["normalised", "paper"] = "normalised"
    cycle_maps: int | None = Field(default=None, gt=0)
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    train_discriminator: bool = False
    epochs: int = Field(default=200, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    decay_every: int = Field(default=25, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"

    @property
    def requires_maps(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For the cycle loss."""
        return self.beta > 0

    def generators(self) -> tuple[str, ...]:
        """The decoder and the encoder, if any, once each."""
        return tuple(dict.fromkeys(name for name in (self.generator, self.encoder) if name))

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """One latent space, and a discriminator for the adversarial loss."""
        decoder = generators[self.generator]
        if self.encoder is None:
            if not decoder.decodes:
                return f"'{self.generator}' decodes no latents"
            if self.inversion.sphere and decoder.conditional:
                return (
                    f"inversion.sphere: the latents of '{self.generator}' hold a class; use false"
                )
        elif reason := latents_differ(generators, self.encoder, self.generator):
            return reason
        elif self.queries == "sampled":
            return "queries: 'sampled' goes without an encoder; use 'given', or encoder: null"
        if self.gamma and not decoder.has_discriminator:
            return f"gamma: {self.gamma} needs a discriminator, '{self.generator}' has none; use 0"
        return None


class LatentMap(nn.Module):
    """One map (N, d) to (N, d), applied `steps` times: g or h.

    `parts`: sizes of the parts of a latent whose lengths are kept, each by itself.
    """

    def __init__(
        self, latent_dim: int, options: Options, parts: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.parts = parts or (latent_dim,)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim, latent_dim), nn.ReLU(), nn.Linear(latent_dim, latent_dim)
        )
        self.steps = options.steps
        self.residual = options.residual
        self.preserve_norm = options.preserve_norm

    def walk(self, z: Tensor) -> list[Tensor]:
        """Every code z^0 ... z^n; with `preserve_norm` each is as long as z^0, part by part."""
        lengths = [part.norm(dim=1, keepdim=True) for part in z.split(self.parts, dim=1)]
        codes = [z]
        for _ in range(self.steps):
            moved = self.layers(codes[-1])
            if self.residual:
                moved = codes[-1] + moved
            if self.preserve_norm:
                moved = torch.cat(
                    [
                        part * length / (part.norm(dim=1, keepdim=True) + 1e-12)
                        for part, length in zip(
                            moved.split(self.parts, dim=1), lengths, strict=True
                        )
                    ],
                    dim=1,
                )
            codes.append(moved)
        return codes

    def forward(self, z: Tensor) -> Tensor:
        """The last code of the walk."""
        return self.walk(z)[-1]


class C3LT(Method):
    """Both directions of one pair: g from the first class to the second, h back."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.generator = task.generators[options.generator]
        self.encoder: Generator | None = None
        if options.encoder is not None:
            self.encoder = task.generators[options.encoder]
        self.acceptance: dict[str, float] = {}
        torch.manual_seed(task.seed)
        sizes = (self.generator.latent_dim, options, self.generator.latent_parts)
        self.maps = nn.ModuleDict({name: LatentMap(*sizes) for name in ("g", "h")}).to(task.device)

    def trained(self) -> nn.Module:
        return self.maps

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """x' = G(g^n(z)): z = E(x) in one pass, or without an encoder optimised, or sampled."""
        options, classifier = self.options, self.task.classifier
        found = torch.ones(len(x), dtype=torch.bool, device=x.device)
        query: Tensor | None = None
        extras: dict[str, Tensor] = {}
        if self.encoder is not None:
            with torch.inference_mode():
                z = self.encoder.encode(x)
        elif options.queries == "sampled":
            z, query, found = draw_each(
                self.generator, classifier, source, randomness, options.sampling
            )
        else:
            z, extras["inversion_loss"] = invert(
                self.generator, classifier, x, source, randomness, options.inversion
            )
        with torch.inference_mode():
            moved = self.move(z, target)[-1]
            counterfactual = self.generator.decode(moved).clamp(0, 1)
        extras |= {"latent": z, "latent_counterfactual": moved}
        return Explanation(counterfactual, found, extras, query)

    def path(self, x: Tensor, source: Tensor, target: Tensor) -> Walk | None:
        """Decoded codes z^0 ... z^n (paper, Figure 9): n + 1 images. None without an encoder."""
        if self.encoder is None:
            return None
        with torch.inference_mode():
            codes = self.move(self.encoder.encode(x), target)
            images = [self.generator.decode(z).clamp(0, 1) for z in codes]
            return Walk(torch.stack(images, dim=1), torch.linspace(0, 1, len(images)))

    def bare(self, x: Tensor, target: Tensor) -> BarePasses | None:
        """None without an encoder."""
        encoder = self.encoder
        if encoder is None:
            return None
        latent_map = self.maps["g" if int(target[0]) == self.task.pair[1] else "h"]

        @torch.inference_mode()
        def run() -> None:
            self.generator.decode(latent_map(encoder.encode(x)))

        return BarePasses("encode, map, decode", run)

    def move(self, z: Tensor, target: Tensor) -> list[Tensor]:
        """The walk of each code by g or by h, whichever leads to its target class."""
        first, second = self.task.pair
        walks = {
            label: self.maps[name].walk(z)  # type: ignore[operator]
            for name, label in (("g", second), ("h", first))
            if bool((target == label).any())
        }
        unknown = sorted({*target.tolist()} - {first, second})
        if unknown:
            raise ValueError(f"targets {unknown} are not of the pair {self.task.pair}")
        if len(walks) == 1:
            return next(iter(walks.values()))
        if not walks:
            return [z] * (self.options.steps + 1)
        forward = (target == second)[:, None]
        return [
            torch.where(forward, to_second, to_first)
            for to_second, to_first in zip(walks[second], walks[first], strict=True)
        ]

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Train g and h together on images of both classes: real, or without an encoder drawn."""
        options, task = self.options, self.task
        images, latents = self.training_codes(data)
        loss_of = Objective(self)
        optimizer = torch.optim.Adam(self.maps.parameters(), options.lr, fused=True)
        scheduler = step_decay(optimizer, options.decay_every)
        parts = {"maps": self.maps, "optimizer": optimizer, "scheduler": scheduler}
        if loss_of.critic is not None:
            parts |= {"critic": loss_of.critic, "critic_optimizer": loss_of.critic_optimizer}

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            orders = [
                batches(len(part), options.batch_size, derive_seed(task.seed, "epoch", epoch, side))
                for side, part in enumerate(images)
            ]
            for indices in zip(*orders, strict=False):
                size = min(map(len, indices))
                chosen = [index[:size].to(task.device) for index in indices]
                x = torch.cat([part[index] for part, index in zip(images, chosen, strict=True)])
                z = torch.cat([part[index] for part, index in zip(latents, chosen, strict=True)])
                losses = loss_of(x, z)
                loss = sum(loss_of.weights[name] * value for name, value in losses.items())
                assert isinstance(loss, Tensor)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {name: value.detach() for name, value in losses.items()}

        self.maps.train()
        history = train("c3lt", options.epochs, epoch_losses, parts, checkpoint, [scheduler])
        self.maps.requires_grad_(False).eval()
        return history

    def training_codes(self, data: ImageSet) -> tuple[list[Tensor], list[Tensor]]:
        """Images and latents of the first class and of the second."""
        task = self.task
        if self.encoder is not None:
            images = [data.images[data.labels == label] for label in task.pair]
            images = [part.to(task.device, memory_format=torch.channels_last) for part in images]
            with torch.no_grad():
                latents = [
                    torch.cat([self.encoder.encode(part) for part in parts.split(512)])
                    for parts in images
                ]
            return images, latents
        seed = derive_seed(task.seed, "samples")
        banks = draw_banks(
            self.generator,
            task.classifier,
            task.pair,
            self.options.sampling,
            seed,
            task.device,
        )
        self.acceptance = {
            f"acceptance_{label}": bank.acceptance
            for label, bank in zip(task.pair, banks, strict=True)
        }
        return [bank.images for bank in banks], [bank.latents for bank in banks]

    def quality(self, data: ImageSet) -> Quality:
        """Without an encoder, the share of the generator's samples that is of each class."""
        return Quality(self.acceptance)


class Objective:
    """L = L_cls + alpha L_prox + beta L_cyc + gamma L_adv (paper, Eq. 2), both directions at once.

    The first half of each batch is of class c, the second of class c'. Terms of weight zero are
    not evaluated. Images are compared in [-1, 1], the range the weights were chosen for.
    """

    def __init__(self, method: C3LT) -> None:
        self.method = method
        options = method.options
        self.weights = {
            "classification": 1.0,
            "proximity": options.alpha,
            "cycle": options.beta,
            "adversarial": options.gamma,
        }
        self.critic: nn.Module | None = None
        if options.train_discriminator and options.gamma:
            self.critic = copy.deepcopy(method.generator).requires_grad_(True).eval()
            self.critic_optimizer = torch.optim.Adam(
                self.critic.parameters(), 2e-4, (0.5, 0.999), foreach=False
            )

    def __call__(self, x: Tensor, z: Tensor) -> Losses:
        """The unweighted losses of images (2B, C, H, W) in [0, 1] and their latents (2B, d)."""
        method, options = self.method, self.method.options
        g, h = method.maps["g"], method.maps["h"]
        half = len(x) // 2
        first, second = method.task.pair
        target = torch.tensor([second] * half + [first] * half, device=x.device)
        z_moved = torch.cat([g(z[:half]), h(z[half:])])
        codes = [z_moved]
        if options.beta or options.gamma:
            codes.append(torch.cat([h(z_moved[:half]), g(z_moved[half:])]))
        with autocast(x.device, options.precision):
            decoded = method.generator.decode(torch.cat(codes))
            logits = method.task.classifier(decoded[: len(x)]).float()
        losses = {"classification": self.classification(logits, target)}
        decoded = decoded.float()
        if options.alpha:
            reference = x
            if options.proximity_reference == "reconstruction":
                with torch.no_grad():
                    reference = method.generator.decode(z)
            losses["proximity"] = self.proximity(2 * reference - 1, 2 * decoded[: len(x)] - 1)
        if options.beta:
            with autocast(x.device, options.precision):
                cycled = method.task.classifier.maps(decoded[len(x) :])[: options.cycle_maps]
                with torch.no_grad():
                    wanted = method.task.classifier.maps(x)[: options.cycle_maps]
            differences = [
                *((a.float() - b.float()).abs() for a, b in zip(wanted, cycled, strict=True)),
                2 * (x - decoded[len(x) :]).abs(),
            ]
            losses["cycle"] = self.cycle(differences, (z - codes[1]).abs())
        if options.gamma:
            losses["adversarial"] = self.adversarial(x, decoded)
        return losses

    def classification(self, logits: Tensor, target: Tensor) -> Tensor:
        """-log f_target(x'), or the hinge max(0, max_other p - p_target + margin)."""
        if self.method.options.classification == "nll":
            return functional.cross_entropy(logits, target)
        probabilities = logits.softmax(dim=1)
        wanted = probabilities.gather(1, target[:, None]).squeeze(1)
        others = probabilities.scatter(1, target[:, None], -1.0).amax(dim=1)
        return (others - wanted + self.method.options.margin).clamp(min=0).mean()

    def proximity(self, x: Tensor, counterfactual: Tensor) -> Tensor:
        """Sparse, smooth and binary change (paper, Eq. 5; mask terms from ExplainGAN)."""
        options = self.method.options
        difference = (counterfactual - x).abs()
        if options.proximity == "paper":
            mask = difference.mean(dim=1)
            smoothness = mask.diff(dim=1).abs().sum((1, 2)) + mask.diff(dim=2).abs().sum((1, 2))
            entropy = torch.minimum(mask, (1 - mask).clamp(min=0)).flatten(1).norm(dim=1)
            terms = difference.flatten(1).sum(dim=1) + smoothness + entropy
            return terms.mean()
        mask = difference.square().mean(dim=1)
        low, high = mask.amin((1, 2), keepdim=True), mask.amax((1, 2), keepdim=True)
        mask = (mask - low) / (high - low + 1e-8)
        smoothness = (mask.diff(dim=1).square().mean() + mask.diff(dim=2).square().mean()) / 2
        entropy = torch.minimum(mask, 1 - mask).mean()
        total = (
            difference.mean()
            + options.smoothness_weight * smoothness
            + options.entropy_weight * entropy
        )
        return total / (1 + options.smoothness_weight + options.entropy_weight)

    def cycle(self, differences: list[Tensor], latent_difference: Tensor) -> Tensor:
        """x and h(g(x)) alike in pixels, classifier features and latents (paper, Eq. 6)."""
        if self.method.options.cycle == "paper":
            sums = [part.flatten(1).sum(dim=1).mean() for part in [*differences, latent_difference]]
            return torch.stack(sums).sum()
        perceptual = torch.stack([part.mean() for part in differences]).mean()
        return (perceptual + latent_difference.mean()) / 2

    def adversarial(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Counterfactuals and cycle images that the discriminator takes for real (Eq. 7).

        x' and x_cyc are as many: twice the mean over both is the paper's sum of their means.
        """
        options, critic = self.method.options, self.method.generator
        if self.critic is not None:
            critic = self.critic
            self.update_critic(x, decoded.detach()[: len(x)])
        with autocast(x.device, options.precision):
            logits = critic.discriminate(decoded).float()  # type: ignore[operator]
        if options.adversarial == "saturating":
            return -2 * functional.softplus(logits).mean()
        return functional.softplus(-logits).mean()

    def update_critic(self, x: Tensor, counterfactual: Tensor) -> None:
        """One step of the copied discriminator: real images against counterfactuals."""
        assert self.critic is not None
        self.critic.requires_grad_(True)
        on_real = self.critic.discriminate(x).float()  # type: ignore[operator]
        on_fake = self.critic.discriminate(counterfactual).float()  # type: ignore[operator]
        loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()
        self.critic.requires_grad_(False)
