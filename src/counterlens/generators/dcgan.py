"""DCGAN (Radford et al., 2016), at 28x28 in the sizes that C3LT uses.

Khorram and Fuxin, CVPR 2022: latent 100, width 64, trained on all classes, Adam 2e-4 with betas
(0.5, 0.999), batch 64. 3,573,696 generator and 661,248 discriminator parameters at width 64 and
28x28. Larger images add convolutions: at 64x64 they are those of Radford et al.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import GeneratorOptions
from counterlens.generators.base import Generator, Training, draw_samples, sample_quality
from counterlens.runtime.device import autocast, place
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.sizes import Crop, Padding
from counterlens.runtime.training import History, Losses, batches, train


class Options(GeneratorOptions):
    """`width`: channels of the last hidden layer; `precision`: of the training steps."""

    uses_classifier: ClassVar[bool] = True
    has_discriminator: ClassVar[bool] = True

    latent_dim: int = Field(default=100, gt=0)
    width: int = Field(default=64, gt=0)
    epochs: int = Field(default=100, gt=0)
    batch_size: int = Field(default=64, gt=0)
    lr: float = Field(default=2e-4, gt=0)
    beta1: float = 0.5
    precision: Literal["fp32", "bf16"] = "bf16"


class DCGAN(Generator):
    """Decoder and discriminator; both work in [-1, 1] inside."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.latent_dim = options.latent_dim
        self.decoder = decoder(options.latent_dim, options.width, shape)
        self.discriminator = encoder(1, options.width, shape)

    def decode(self, z: Tensor) -> Tensor:
        return (self.decoder(z[:, :, None, None]) + 1) / 2

    def discriminate(self, x: Tensor) -> Tensor:
        return self.discriminator(2 * x - 1).flatten()

    def fit(self, training: Training) -> History:
        """Alternate one discriminator and one non-saturating generator step per batch."""
        device, options = training.device, self.options
        torch.manual_seed(derive_seed(training.seed, "initial"))
        self.apply(initialise)
        place(self, device).train()
        images = (2 * training.images - 1).to(device, memory_format=torch.channels_last)
        betas = (options.beta1, 0.999)
        for_decoder = torch.optim.Adam(self.decoder.parameters(), options.lr, betas, fused=True)
        for_critic = torch.optim.Adam(
            self.discriminator.parameters(), options.lr, betas, fused=True
        )

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            noise = generator(derive_seed(seed, "latent"))
            for index in batches(len(images), options.batch_size, seed):
                if len(index) == 1:
                    continue
                real = images[index.to(device)]
                z = torch.randn(len(index), self.latent_dim, 1, 1, generator=noise).to(device)
                with autocast(device, options.precision):
                    fake = self.decoder(z)
                    on_real = self.discriminator(real).float()
                    on_fake = self.discriminator(fake.detach()).float()
                critic = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
                for_critic.zero_grad(set_to_none=True)
                critic.backward()
                for_critic.step()
                self.discriminator.requires_grad_(False)
                with autocast(device, options.precision):
                    fooled = self.discriminator(fake).float()
                loss = functional.softplus(-fooled).mean()
                for_decoder.zero_grad(set_to_none=True)
                loss.backward()
                for_decoder.step()
                self.discriminator.requires_grad_(True)
                yield {"discriminator": critic.detach(), "generator": loss.detach()}

        parts = {"model": self, "decoder": for_decoder, "discriminator": for_critic}
        history = train("dcgan", options.epochs, epoch_losses, parts, training.checkpoint)
        self.eval()
        return history

    def quality(self, training: Training) -> Quality:
        """Share of samples the classifier is sure of, and how evenly they cover the classes."""
        return sample_quality(draw_samples(self, 1024, training), training)

    def sheet(self, training: Training) -> Tensor:
        return draw_samples(self, 64, training)


def halvings(size: Sequence[int]) -> int:
    """How often the strided convolutions halve images: three times, one more from 64, 128 ... on.

    The shorter side counts; of 32 pixels or more it ends between 4 and 7.
    """
    return max(3, (min(size) // 4).bit_length() - 1)


def decoder(latent_dim: int, width: int, shape: tuple[int, int, int]) -> nn.Sequential:
    """Latents (N, d, 1, 1) to images (N, C, H, W) in [-1, 1].

    Doubled from the smallest map that is large enough; half of what is over is cut on each side.
    """

    def up(
        inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int, padding: int
    ) -> list[nn.Module]:
        return [
            nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    channels, *size = shape
    depth = halvings(size)
    padding = Padding(size, 2**depth)
    start = (padding.padded[0] >> depth, padding.padded[1] >> depth)
    widths = [width * min(8, 2**level) for level in reversed(range(depth + 1))]
    return nn.Sequential(
        *up(latent_dim, widths[0], start, 1, 0),
        *(layer for pair in pairwise(widths) for layer in up(*pair, 4, 2, 1)),
        nn.ConvTranspose2d(width, channels, 1, 1, padding.before, bias=False),
        Crop(size),
        nn.Tanh(),
    )


def downward(channels: int, width: int, depth: int) -> nn.Sequential:
    """Images (N, C, H, W) to maps (N, channels, h, w), halved `depth` times and rounded down.

    The channels begin with the width and are doubled by each further layer up to eight times it.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for inputs, outputs in pairwise(width * min(8, 2**level) for level in range(depth)):
        layers += [
            nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers)


def encoder(
    outputs: int, width: int, shape: tuple[int, int, int], bias: bool = False
) -> nn.Sequential:
    """Images (N, C, H, W) in [-1, 1] to (N, outputs, 1, 1); the last layer is linear."""
    channels, *size = shape
    depth = halvings(size)
    whole = Padding(size, 2**depth).padded
    kernel = (whole[0] >> depth, whole[1] >> depth)
    missing = (kernel[0] - (size[0] >> depth), kernel[1] - (size[1] >> depth))
    inputs = width * min(8, 2 ** (depth - 1))
    return nn.Sequential(
        *downward(channels, width, depth),
        nn.Conv2d(inputs, outputs, kernel, 2, missing, bias=bias),
    )


def initialise(module: nn.Module) -> None:
    """DCGAN's initial parameters: convolutions N(0, 0.02), batch-norm scales N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
