"""ExplainGAN: a reconstruction, the other class and the mask between them, from one code.

Samangouei et al., ECCV 2018, as C3LT compares with it: the weights of the losses are C3LT's, the
networks, which neither paper gives, are of DCGAN's size. The counterfactual of x is
(1 - m) x + m t, where t is of the other class and m the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import ClassifierOptions, DatasetOptions, MethodOptions, Ratio, too_small
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.generators.dcgan import downward, initialise
from counterlens.methods.base import Explanation, Method, Task
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.sizes import Padding
from counterlens.runtime.training import Checkpoint, History, Losses, batches, train

HALVINGS = 3


class Options(MethodOptions):
    """Hyper-parameters of ExplainGAN.

    Attributes:
        width: channels of the first layer of the encoders and the discriminators.
        adversarial, classification, reconstruction, consistency, count, smoothness, entropy:
            weights of the losses. `consistency` holds t to x outside the mask; the last three act
            on the mask alone.
        kappa: share of the image that the mask may cover before `count` grows.
        reduction: whether reconstruction and consistency are summed over an image or averaged.
        largest_nll: -log f is cut off there, and so has no gradient beyond.
        real_label: what the discriminators should answer on real images (1 is no smoothing).
    """

    label: ClassVar[str] = "ExplainGAN"
    trainable: ClassVar[bool] = True

    latent_dim: int = Field(default=128, gt=0)
    width: int = Field(default=64, gt=0)
    adversarial: float = Field(default=1.0, ge=0)
    classification: float = Field(default=1.0, ge=0)
    reconstruction: float = Field(default=1.0, ge=0)
    consistency: float = Field(default=1.0, ge=0)
    count: float = Field(default=1000.0, ge=0)
    smoothness: float = Field(default=1.0, ge=0)
    entropy: float = Field(default=1.0, ge=0)
    kappa: Ratio = Field(default=0.05, ge=0, le=1)
    reduction: Literal["sum", "mean"] = "sum"
    largest_nll: float = Field(default=20.0, gt=0)
    real_label: float = Field(default=0.9, gt=0, le=1)
    epochs: int = Field(default=100, gt=0)
    batch_size: int = Field(default=128, gt=1)
    lr: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"

    def unsuited(self, dataset: DatasetOptions, classifier: ClassifierOptions) -> str | None:
        """Encoders and discriminators halve an image three times."""
        return super().unsuited(dataset, classifier) or too_small(dataset, 8)


# Losses. Images are in [-1, 1], masks (N, 1, H, W) in [0, 1]; each gives one value per image.


def compose(x: Tensor, transformed: Tensor, mask: Tensor) -> Tensor:
    """The counterfactual (1 - m) x + m t."""
    return (1 - mask) * x + mask * transformed


def squared_error(wanted: Tensor, made: Tensor, reduction: str) -> Tensor:
    """||wanted - made||^2 of each image: (N,)."""
    errors = (wanted - made).square().flatten(1)
    return errors.sum(dim=1) if reduction == "sum" else errors.mean(dim=1)


def covered(mask: Tensor, kappa: float) -> Tensor:
    """max(mean |m|, kappa): (N,)."""
    return mask.flatten(1).mean(dim=1).clamp(min=kappa)


def total_variation(mask: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbours: (N,)."""
    return mask.diff(dim=2).abs().sum((1, 2, 3)) + mask.diff(dim=3).abs().sum((1, 2, 3))


def indecision(mask: Tensor) -> Tensor:
    """||min(m, 1 - m)||_2, zero for a binary mask: (N,)."""
    return torch.minimum(mask, 1 - mask).flatten(1).norm(dim=1)


# Networks


@dataclass(frozen=True)
class Heads:
    """What is made of N images of known class, all float32.

    Attributes:
        reconstruction, transformed: (N, C, H, W) in [-1, 1], of the same and of the other class.
        mask: (N, 1, H, W) in [0, 1].
    """

    reconstruction: Tensor
    transformed: Tensor
    mask: Tensor


def upward(inputs: int, outputs: int) -> list[nn.Module]:
    """Twice the size, with batch normalisation."""
    return [
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class Networks(nn.Module):
    """An encoder per class; a decoder with a common trunk and three heads.

    Encoders begin as DCGAN's. The decoder doubles a quarter of the image, rounded up, twice; half
    of what is over is cut on each side.
    """

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        deepest = 4 * options.width
        flat = deepest * (height >> HALVINGS) * (width >> HALVINGS)
        self.padding = Padding((height, width), 4)
        start = (deepest, *(side // 4 for side in self.padding.padded))
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *downward(channels, options.width, HALVINGS),
                nn.Flatten(),
                nn.Linear(flat, options.latent_dim),
            )
            for _ in range(2)
        )
        self.trunk = nn.Sequential(
            nn.Linear(options.latent_dim, math.prod(start), bias=False),
            nn.Unflatten(1, start),
            nn.BatchNorm2d(deepest),
            nn.ReLU(inplace=True),
            nn.Conv2d(deepest, deepest, 3, 1, 1, bias=False),
            nn.BatchNorm2d(deepest),
            nn.ReLU(inplace=True),
        )
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    *upward(deepest, 2 * options.width),
                    nn.ConvTranspose2d(2 * options.width, count, 4, 2, 1),
                )
                for name, count in (
                    ("reconstruction", channels),
                    ("transformed", channels),
                    ("mask", 1),
                )
            }
        )

    def encode(self, x: Tensor, side: int) -> Tensor:
        """Codes (N, d) of images in [-1, 1] of class 0 or 1 of the pair."""
        return self.encoders[side](x)

    def forward(self, z: Tensor) -> Heads:
        """What codes (N, d) stand for."""
        hidden = self.trunk(z)
        parts = {name: self.padding.crop(head(hidden)).float() for name, head in self.heads.items()}
        return Heads(
            parts["reconstruction"].tanh(), parts["transformed"].tanh(), parts["mask"].sigmoid()
        )


class Discriminators(nn.Module):
    """Is an image in [-1, 1] a real one of its class: layers per class, and a common last one."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        flat = 4 * options.width * (height >> HALVINGS) * (width >> HALVINGS)
        self.first = nn.ModuleList(downward(channels, options.width, HALVINGS) for _ in range(2))
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(flat, 1))

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Logits (N,) for class 0 or 1 of the pair."""
        return self.last(self.first[side](x)).flatten().float()


# The method


class ExplainGAN(Method):
    """Both directions of one pair."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        torch.manual_seed(task.seed)
        self.networks = Networks(options, task.shape).apply(initialise)
        place(self.networks, task.device)

    def trained(self) -> nn.Module:
        return self.networks

    @torch.inference_mode()
    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """x' = (1 - m) x + m t: one pass of the encoder of the other class and of the decoder."""
        counterfactual = torch.empty_like(x)
        mask = torch.empty_like(x[:, :1])
        for side, label in enumerate(self.task.pair[::-1]):
            chosen = target == label
            if bool(chosen.any()):
                given = 2 * x[chosen] - 1
                made = self.networks(self.networks.encode(given, side))
                composed = (compose(given, made.transformed, made.mask) + 1) / 2
                counterfactual[chosen] = composed.clamp(0, 1)
                mask[chosen] = made.mask
        return Explanation(
            counterfactual, torch.ones_like(target, dtype=torch.bool), {"mask": mask}
        )

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Alternate one step of the discriminators and one of all else per batch."""
        options, task = self.options, self.task
        sides = self.sides(data)
        images = [2 * data.images[sides == side] - 1 for side in (0, 1)]
        for part, label in zip(images, task.pair, strict=True):
            if len(part) < 2:
                raise UserError(
                    f"explaingan: the classifier answers {label} on {len(part)} of the training "
                    f"images of the pair {task.pair}; it needs at least 2"
                )
        images = [part.to(task.device, memory_format=torch.channels_last) for part in images]
        torch.manual_seed(derive_seed(task.seed, "discriminators"))
        critics = Discriminators(options, task.shape).apply(initialise)
        place(critics, task.device)
        loss_of = Objective(self, critics)
        betas = (options.beta1, 0.999)
        optimizer = torch.optim.Adam(self.networks.parameters(), options.lr, betas, fused=True)
        for_critics = torch.optim.Adam(critics.parameters(), options.lr, betas, fused=True)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            orders = [
                batches(len(part), options.batch_size, derive_seed(task.seed, "epoch", epoch, side))
                for side, part in enumerate(images)
            ]
            for indices in zip(*orders, strict=False):
                size = min(map(len, indices))
                if size == 1:
                    continue
                x = torch.cat(
                    [
                        part[index[:size].to(task.device)]
                        for part, index in zip(images, indices, strict=True)
                    ]
                )
                made, composed = loss_of.drawn(x)
                critic = loss_of.critic(x, made, composed)
                for_critics.zero_grad(set_to_none=True)
                critic.backward()
                for_critics.step()
                losses = loss_of(x, made, composed)
                loss = sum(loss_of.weights[name] * value for name, value in losses.items())
                assert isinstance(loss, Tensor)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                area = made.mask.mean()
                all_losses = {**losses, "discriminator": critic, "mask_area": area}
                yield {name: value.detach() for name, value in all_losses.items()}

        parts = {"networks": self.networks, "critics": critics}
        parts |= {"optimizer": optimizer, "critics_optimizer": for_critics}
        self.networks.train()
        history = train("explaingan", options.epochs, epoch_losses, parts, checkpoint)
        self.networks.requires_grad_(False).eval()
        return history

    def sides(self, data: ImageSet) -> Tensor:
        """The class of the pair, 0 or 1, that each image (N,) goes by: the classifier's answer.

        Where it answers neither, the true label decides.
        """
        first, second = self.task.pair
        answer = self.task.classifier.probabilities(data.images).argmax(dim=1)
        outside = (answer != first) & (answer != second)
        return (torch.where(outside, data.labels, answer) == second).long()


class Objective:
    """The losses of one batch, whose first half is of class 0 of the pair, the second of class 1.

    Terms of weight zero are not evaluated.
    """

    def __init__(self, method: ExplainGAN, critics: Discriminators) -> None:
        self.method, self.critics = method, critics
        self.options = options = method.options
        self.weights = {
            name: getattr(options, name)
            for name in (
                "adversarial",
                "classification",
                "reconstruction",
                "consistency",
                "count",
                "smoothness",
                "entropy",
            )
        }

    def drawn(self, x: Tensor) -> tuple[Heads, Tensor]:
        """The heads and the counterfactuals of x (2 B, C, H, W) in [-1, 1]."""
        networks = self.method.networks
        with autocast(x.device, self.options.precision):
            codes = [networks.encode(part, side) for side, part in enumerate(x.chunk(2))]
            made = networks(torch.cat(codes))
        return made, compose(x, made.transformed, made.mask)

    def judged(self, made: Heads, composed: Tensor) -> Tensor:
        """Logits (6 B,) of all made images, each by the discriminator of the class it should be."""
        answers = []
        own, moved = made.reconstruction.chunk(2), made.transformed.chunk(2)
        changed = composed.chunk(2)
        for side in (0, 1):
            shown = torch.cat([own[side], moved[1 - side], changed[1 - side]])
            with autocast(shown.device, self.options.precision):
                answers.append(self.critics(shown, side))
        return torch.cat(answers)

    def critic(self, x: Tensor, made: Heads, composed: Tensor) -> Tensor:
        """-log D on real images and -log(1 - D) on the three kinds of made ones, summed."""
        with autocast(x.device, self.options.precision):
            on_real = torch.cat([self.critics(part, side) for side, part in enumerate(x.chunk(2))])
        detached = Heads(made.reconstruction.detach(), made.transformed.detach(), made.mask)
        on_made = self.judged(detached, composed.detach())
        wanted = torch.full_like(on_real, self.options.real_label)
        real = functional.binary_cross_entropy_with_logits(on_real, wanted)
        return real + 3 * functional.softplus(on_made).mean()

    def __call__(self, x: Tensor, made: Heads, composed: Tensor) -> Losses:
        """Every term of what the encoders and the decoder minimise, unweighted."""
        options = self.options
        terms = {
            "adversarial": self.adversarial,
            "classification": lambda *_: self.classification(composed),
            "reconstruction": lambda *_: squared_error(x, made.reconstruction, options.reduction),
            "consistency": lambda *_: squared_error(
                (1 - made.mask) * x, (1 - made.mask) * made.transformed, options.reduction
            ),
            "count": lambda *_: covered(made.mask, options.kappa),
            "smoothness": lambda *_: total_variation(made.mask),
            "entropy": lambda *_: indecision(made.mask),
        }
        return {
            name: term(made, composed).mean() for name, term in terms.items() if self.weights[name]
        }

    def adversarial(self, made: Heads, composed: Tensor) -> Tensor:
        """-log D of the three kinds of made images (non-saturating), summed over the kinds."""
        self.critics.requires_grad_(False)
        loss = 3 * functional.softplus(-self.judged(made, composed))
        self.critics.requires_grad_(True)
        return loss

    def classification(self, composed: Tensor) -> Tensor:
        """-log f of the other class, cut off at `largest_nll`: (2 B,)."""
        first, second = self.method.task.pair
        half = len(composed) // 2
        target = torch.tensor([second] * half + [first] * half, device=composed.device)
        with autocast(composed.device, self.options.precision):
            logits = self.method.task.classifier((composed + 1) / 2).float()
        nll = functional.cross_entropy(logits, target, reduction="none")
        return nll.clamp(max=self.options.largest_nll)
