"""CycleGAN: images of one class drawn as the other, held by the way back.

Zhu et al., ICCV 2017, with the defaults of the authors' PyTorch code; C3LT compares with it. The
classifier plays no part. Nothing is resized, cropped or mirrored; sides that are no multiples of 4
are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import ClassifierOptions, DatasetOptions, MethodOptions
from counterlens.data.base import ImageSet
from counterlens.methods.base import Explanation, Method, Task
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.sizes import PaddedSequential
from counterlens.runtime.training import Checkpoint, History, Losses, batches, train


class Options(MethodOptions):
    """Hyper-parameters of CycleGAN.

    Attributes:
        width, blocks: channels of the generators' first layer, and their residual blocks.
        discriminator_width, discriminator_layers: channels of the first layer, and strided
            layers: 3 is the 70x70 PatchGAN; 2 keeps a map of 5x5 answers of a 28x28 image.
        cycle: weight of |x - G(F(x))|; identity: of |x - F(x)| for x of F's own class, relative to
            `cycle`.
        pool_size: how many made images are kept to be shown to the discriminators again.
        epochs, decay_epochs: with the full learning rate, and with a rate that falls to zero.
    """

    label: ClassVar[str] = "CycleGAN"
    trainable: ClassVar[bool] = True

    width: int = Field(default=64, gt=0)
    blocks: int = Field(default=6, ge=0)
    discriminator_width: int = Field(default=64, gt=0)
    discriminator_layers: int = Field(default=3, gt=0)
    cycle: float = Field(default=10.0, ge=0)
    identity: float = Field(default=0.5, ge=0)
    pool_size: int = Field(default=50, ge=0)
    epochs: int = Field(default=100, gt=0)
    decay_epochs: int = Field(default=100, ge=0)
    batch_size: int = Field(default=1, gt=0)
    lr: float = Field(default=2e-4, gt=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"

    def unsuited(self, dataset: DatasetOptions, classifier: ClassifierOptions) -> str | None:
        """The discriminators must leave a map of answers."""
        height, width = dataset.shape[1:]
        if min(height, width) // 2**self.discriminator_layers < 3:
            return (
                f"discriminator_layers: {self.discriminator_layers} leave too little of an image "
                f"of {height}x{width}; use fewer"
            )
        return super().unsuited(dataset, classifier)


# Networks


class ReflectionPad(nn.Module):
    """Reflection of the border; unlike `nn.ReflectionPad2d` it repeats exactly on a GPU."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            before = x.narrow(dim, 1, self.size).flip(dim)
            after = x.narrow(dim, x.shape[dim] - 1 - self.size, self.size).flip(dim)
            x = torch.cat([before, x, after], dim)
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ReflectionPad(1),
            nn.Conv2d(width, width, 3, bias=False),
            nn.InstanceNorm2d(width),
            nn.ReLU(inplace=True),
            ReflectionPad(1),
            nn.Conv2d(width, width, 3, bias=False),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def translator(channels: int, width: int, blocks: int) -> nn.Sequential:
    """Images (N, C, H, W) in [-1, 1] of one class to the other."""
    layers: list[nn.Module] = [ReflectionPad(3), nn.Conv2d(channels, width, 7, bias=False)]
    layers += [nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]
    for inputs in (width, 2 * width):
        layers += [nn.Conv2d(inputs, 2 * inputs, 3, 2, 1, bias=False)]
        layers += [nn.InstanceNorm2d(2 * inputs), nn.ReLU(inplace=True)]
    layers += [ResidualBlock(4 * width) for _ in range(blocks)]
    for inputs in (4 * width, 2 * width):
        layers += [nn.ConvTranspose2d(inputs, inputs // 2, 3, 2, 1, 1, bias=False)]
        layers += [nn.InstanceNorm2d(inputs // 2), nn.ReLU(inplace=True)]
    layers += [ReflectionPad(3), nn.Conv2d(width, channels, 7), nn.Tanh()]
    return PaddedSequential(4, *layers)


def patch_discriminator(channels: int, width: int, layers: int) -> nn.Sequential:
    """Images (N, C, H, W) in [-1, 1] to a map (N, 1, h, w) of answers: 1 is real."""
    widths = [width * min(2**depth, 8) for depth in range(layers + 1)]
    stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    for depth, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        stages.append(nn.Conv2d(inputs, outputs, 4, 2 if depth < layers else 1, 1, bias=False))
        stages += [nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ImagePool(nn.Module):
    """A history of made images; half of those shown to a discriminator come from it."""

    images: Tensor
    count: Tensor

    def __init__(self, size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, made: Tensor, random: torch.Generator) -> Tensor:
        """Images to show in place of `made` (N, C, H, W), which take their places in the pool.

        The first ones fill the pool. Of the others each is exchanged with probability 1/2, every
        one for another image of the pool.
        """
        size, count = len(self.images), int(self.count)
        kept = made[: size - count]
        self.images[count : count + len(kept)] = kept
        self.count += len(kept)
        coins = torch.rand(len(made), generator=random) < 0.5
        coins[: len(kept)] = False
        places = torch.randperm(size, generator=random)[: int(coins.sum())].to(made.device)
        exchanged = coins.nonzero().flatten()[: len(places)].to(made.device)
        shown = made.clone()
        shown[exchanged] = self.images[places]
        self.images[places] = made[exchanged]
        return shown


# The method


class CycleGAN(Method):
    """Both directions of one pair."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        torch.manual_seed(task.seed)
        self.translators = nn.ModuleDict(
            {
                name: translator(task.shape[0], options.width, options.blocks)
                for name in ("to_second", "to_first")
            }
        ).apply(initialise)
        place(self.translators, task.device)

    def trained(self) -> nn.Module:
        return self.translators

    @torch.inference_mode()
    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """One pass of the generator that leads to the target class."""
        counterfactual = torch.empty_like(x)
        for name, label in zip(("to_first", "to_second"), self.task.pair, strict=True):
            chosen = target == label
            if bool(chosen.any()):
                drawn = self.translators[name](2 * x[chosen] - 1)
                counterfactual[chosen] = (drawn + 1) / 2
        return Explanation(counterfactual, torch.ones_like(target, dtype=torch.bool))

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Alternate one step of both generators and one of both discriminators per batch."""
        options, task = self.options, self.task
        images = [2 * data.images[data.labels == label] - 1 for label in task.pair]
        images = [part.to(task.device, memory_format=torch.channels_last) for part in images]
        torch.manual_seed(derive_seed(task.seed, "discriminators"))
        objective = Objective(self)
        betas = (options.beta1, 0.999)
        for_translators, for_critics = (
            torch.optim.Adam(module.parameters(), options.lr, betas, fused=True)
            for module in (self.translators, objective.critics)
        )
        schedulers = [self.linear_decay(one) for one in (for_translators, for_critics)]

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            random = generator(derive_seed(task.seed, "pool", epoch))
            orders = [
                batches(len(part), options.batch_size, derive_seed(task.seed, "epoch", epoch, side))
                for side, part in enumerate(images)
            ]
            for indices in zip(*orders, strict=False):
                size = min(map(len, indices))
                chosen = [index[:size].to(task.device) for index in indices]
                first, second = (part[index] for part, index in zip(images, chosen, strict=True))
                losses, made = objective(first, second)
                loss = sum(objective.weights[name] * value for name, value in losses.items())
                assert isinstance(loss, Tensor)
                for_translators.zero_grad(set_to_none=True)
                loss.backward()
                for_translators.step()
                critic = objective.critic((first, second), made, random)
                for_critics.zero_grad(set_to_none=True)
                critic.backward()
                for_critics.step()
                all_losses = {**losses, "discriminator": critic}
                yield {name: value.detach() for name, value in all_losses.items()}

        parts = {
            "translators": self.translators,
            "critics": objective.critics,
            "pools": objective.pools,
            "translators_optimizer": for_translators,
            "critics_optimizer": for_critics,
            "translators_scheduler": schedulers[0],
            "critics_scheduler": schedulers[1],
        }
        epochs = options.epochs + options.decay_epochs
        self.translators.train()
        history = train("cyclegan", epochs, epoch_losses, parts, checkpoint, schedulers)
        self.translators.requires_grad_(False).eval()
        return history

    def linear_decay(
        self, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The full rate for `epochs` epochs, then on a line to zero after `decay_epochs`."""
        constant, falling = self.options.epochs, self.options.decay_epochs + 1
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 1 - max(0, epoch + 1 - constant) / falling
        )


class Objective:
    """The losses of one batch of each class, (B, C, H, W) in [-1, 1].

    Terms of weight zero are not evaluated. `critics` and `pools` stand in the order of the pair.
    """

    def __init__(self, method: CycleGAN) -> None:
        options, task = method.options, method.task
        self.options = options
        self.to_first = method.translators["to_first"]
        self.to_second = method.translators["to_second"]
        width, layers = options.discriminator_width, options.discriminator_layers
        self.critics = nn.ModuleList(
            patch_discriminator(task.shape[0], width, layers) for _ in task.pair
        ).apply(initialise)
        place(self.critics, task.device)
        self.pools = nn.ModuleList(ImagePool(options.pool_size, task.shape) for _ in task.pair)
        self.pools.to(task.device)
        self.weights = {
            "adversarial": 1.0,
            "cycle": options.cycle,
            "identity": options.cycle * options.identity,
        }

    def __call__(self, first: Tensor, second: Tensor) -> tuple[Losses, tuple[Tensor, Tensor]]:
        """What the generators minimise, both directions summed, and the images they made.

        The made images, detached, are in the order of the classes that they should belong to.
        """
        with autocast(first.device, self.options.precision):
            made = self.to_first(second).float(), self.to_second(first).float()
            self.critics.requires_grad_(False)
            fooled = [critic(x).float() for critic, x in zip(self.critics, made, strict=True)]
            self.critics.requires_grad_(True)
            losses = {"adversarial": towards(fooled, 1)}
            if self.weights["cycle"]:
                back = self.to_first(made[1]), self.to_second(made[0])
                losses["cycle"] = absolute_error((first, second), back)
            if self.weights["identity"]:
                kept = self.to_first(first), self.to_second(second)
                losses["identity"] = absolute_error((first, second), kept)
        return losses, (made[0].detach(), made[1].detach())

    def critic(
        self, real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], random: torch.Generator
    ) -> Tensor:
        """Real images towards 1 and images of the pools towards 0, halved, of both classes."""
        shown = [pool(x, random) for pool, x in zip(self.pools, made, strict=True)]
        with autocast(shown[0].device, self.options.precision):
            on_real = [critic(x).float() for critic, x in zip(self.critics, real, strict=True)]
            on_made = [critic(x).float() for critic, x in zip(self.critics, shown, strict=True)]
        return (towards(on_real, 1) + towards(on_made, 0)) / 2


def towards(answers: Sequence[Tensor], wanted: float) -> Tensor:
    """Mean squared distance of each discriminator's answers from `wanted`, summed (LSGAN)."""
    return torch.stack([(answer - wanted).square().mean() for answer in answers]).sum()


def absolute_error(wanted: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """Mean |wanted - made| of each class, summed."""
    pairs = zip(wanted, made, strict=True)
    return torch.stack([functional.l1_loss(b.float(), a) for a, b in pairs]).sum()
