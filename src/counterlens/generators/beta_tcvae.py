"""beta-TCVAE, the generator of DiVE (Rodriguez et al., ICCV 2021), for small images.

The objective is Chen et al.'s (Isolating Sources of Disentanglement in VAEs, NeurIPS 2018): the
Kullback-Leibler term is split into the mutual information of image and code, the total correlation
of the code's dimensions and their own divergence from the prior. Residual networks with instance
normalisation; the code modulates every normalisation of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import GeneratorOptions
from counterlens.generators.base import (
    Generator,
    Quality,
    Training,
    autoencoder_sheet,
    reconstruction_quality,
    reconstructions,
)
from counterlens.generators.dcgan_encoder import sum_of_means
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import History, Losses, batches, train

SMALLEST_SIDE = 4
CYCLES = 4
FLOOR = 1e-3


class Options(GeneratorOptions):
    """Network, objective and training.

    Attributes:
        width: channels at half the image's resolution; up to four times as many below.
        beta: weight of the three terms against the mean absolute error in [-1, 1].
        total_correlation: further weight of the total correlation.
        perceptual: `classifier` adds the mean absolute difference of the feature maps of the
            explained classifier. DiVE takes those of another network (VGG-16); a generator has
            none at hand, so that by default pixels alone are compared.
        images: at most so many training images, the first; None is all.
        flip: mirror every second training image, for classes that look the same mirrored.
    """

    uses_classifier: ClassVar[bool] = True
    encodes: ClassVar[bool] = True

    latent_dim: int = Field(default=128, gt=0)
    width: int = Field(default=32, gt=0)
    beta: float = Field(default=1e-3, ge=0)
    total_correlation: float = Field(default=1.0, ge=0)
    perceptual: Literal["none", "classifier"] = "none"
    epochs: int = Field(default=400, gt=0)
    batch_size: int = Field(default=64, gt=1)
    lr: float = Field(default=4e-4, gt=0)
    images: int | None = Field(default=None, gt=1)
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"
    least_class_kept: float = 0.95
    most_reconstruction_l1: float = 0.05


class Down(nn.Module):
    """(N, inputs, h, w) to (N, outputs, h / 2, w / 2), rounded up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.GroupNorm(inputs, inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
            nn.GroupNorm(outputs, outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.shortcut(functional.avg_pool2d(x, 2, ceil_mode=True))


class Modulated(nn.Module):
    """Instance normalisation whose scale and shift are linear in the code (N, d)."""

    def __init__(self, latent_dim: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.affine = nn.Linear(latent_dim, 2 * channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.affine(z)[:, :, None, None].chunk(2, dim=1)
        return functional.silu(functional.group_norm(x, self.channels) * (1 + scale) + shift)


class Up(nn.Module):
    """(N, inputs, h, w) to (N, outputs, *size), the nearest pixel repeated."""

    def __init__(self, latent_dim: int, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.before = Modulated(latent_dim, inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.between = Modulated(latent_dim, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h = functional.interpolate(self.first(self.before(x, z)), self.size)
        h = self.second(self.between(h, z))
        return h + functional.interpolate(self.shortcut(x), self.size)


class Encoder(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to mean and log-variance (N, 2 d)."""

    def __init__(self, channels: int, widths: list[int], area: int, latent_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, 2, 1),
            *(Down(inputs, outputs) for inputs, outputs in pairwise(widths)),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(widths[-1] * area, 2 * latent_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Decoder(nn.Module):
    """Codes (N, d) to images (N, C, H, W) in [-1, 1]; `sizes` (h, w) rise to half the image's."""

    def __init__(
        self,
        latent_dim: int,
        widths: list[int],
        sizes: list[tuple[int, int]],
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.start = (widths[0], *sizes[0])
        self.first = nn.Linear(latent_dim, math.prod(self.start))
        self.blocks = nn.ModuleList(
            Up(latent_dim, inputs, outputs, size)
            for (inputs, outputs), size in zip(pairwise(widths), sizes[1:], strict=True)
        )
        self.last = Modulated(latent_dim, widths[-1])
        self.image = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z).reshape(-1, *self.start)
        for block in self.blocks:
            h = block(h, z)
        return self.image(self.last(h, z))[:, :, : self.height, : self.width].tanh()


class BetaTCVAE(Generator):
    """`encode` gives the posterior's mean; images in [-1, 1] inside."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.latent_dim = options.latent_dim
        sizes = [halved(shape[1:])]
        while min(sizes[-1]) > SMALLEST_SIDE:
            sizes.append(halved(sizes[-1]))
        widths = [options.width * min(4, 2**level) for level in range(len(sizes))]
        self.encoder = Encoder(shape[0], widths, math.prod(sizes[-1]), options.latent_dim)
        self.decoder = Decoder(options.latent_dim, widths[::-1], sizes[::-1], shape)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(2 * x - 1)[:, : self.latent_dim]

    def decode(self, z: Tensor) -> Tensor:
        return (self.decoder(z) + 1) / 2

    def fit(self, training: Training) -> History:
        """Minimise P(x, x') + beta (MI + w TC) + beta_t KL, as DiVE's release does."""
        device, options = training.device, self.options
        place(self, device).train()
        images = training.images[: options.images]
        images = images.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(self.parameters(), options.lr, fused=True)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            random = generator(derive_seed(seed, "latent"))
            steps = -(-len(images) // options.batch_size)
            for step, index in enumerate(batches(len(images), options.batch_size, seed)):
                if len(index) == 1:
                    continue
                x = images[index.to(device)]
                if options.flip:
                    mirrored = torch.rand(len(x), generator=random).to(device) < 0.5
                    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
                noise = torch.randn(len(x), self.latent_dim, generator=random).to(device)
                with autocast(device, options.precision):
                    mean, log_variance = self.encoder(2 * x - 1).float().chunk(2, dim=1)
                    log_variance = log_variance.clamp(-20, 10)
                    z = mean + (log_variance / 2).exp() * noise
                    decoded = self.decode(z)
                    losses = {"reconstruction": 2 * (x - decoded.float()).abs().mean()}
                    if options.perceptual == "classifier":
                        losses["perceptual"] = self.perceptual(training, x, decoded)
                information, correlation, divergence = (
                    part.mean() for part in decompose(z, mean, log_variance, len(images))
                )
                ramp = cyclic_ramp((epoch + step / steps) / options.epochs)
                loss = torch.stack(list(losses.values())).sum() + options.beta * (
                    information + options.total_correlation * correlation + ramp * divergence
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {
                    **{name: value.detach() for name, value in losses.items()},
                    "mutual_information": information.detach(),
                    "total_correlation": correlation.detach(),
                    "divergence": divergence.detach(),
                }

        parts = {"model": self, "optimizer": optimizer}
        history = train("beta-tcvae", options.epochs, epoch_losses, parts, training.checkpoint)
        self.eval()
        return history

    def perceptual(self, training: Training, x: Tensor, decoded: Tensor) -> Tensor:
        """Sum over the classifier's feature maps of their mean absolute difference."""
        assert training.classifier is not None
        with torch.no_grad():
            wanted = training.classifier.maps(x)
        return sum_of_means(wanted, training.classifier.maps(decoded))

    def quality(self, training: Training) -> Quality:
        """Reconstruction and class kept, on test images."""
        decoded = reconstructions(self, self, training.test_images)
        options = self.options
        return reconstruction_quality(
            decoded, training, options.least_class_kept, options.most_reconstruction_l1
        )

    def sheet(self, training: Training) -> Tensor:
        return autoencoder_sheet(self, training)


def halved(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width after a convolution of stride 2: rounded up."""
    return -(-size[0] // 2), -(-size[1] // 2)


def decompose(
    z: Tensor, mean: Tensor, log_variance: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual information, total correlation and dimension-wise divergence (Chen et al., Eq. 2).

    Args:
        z: one draw (N, d) from each image's posterior, whose mean and log-variance follow.
        count: images in the training set that the N are drawn from without replacement.

    Returns:
        Three estimates (N,), whose sum is log q(z|x) - log p(z).
    """
    densities = log_normal(z[:, None], mean, log_variance)
    posterior = densities.diagonal().sum(dim=0)
    weights = stratified_weights(len(z), count).log().to(z)
    joint = (weights + densities.sum(dim=2)).logsumexp(dim=1)
    marginals = (weights[:, :, None] + densities).logsumexp(dim=1).sum(dim=1)
    prior = log_normal(z, torch.zeros_like(z), torch.zeros_like(z)).sum(dim=1)
    return posterior - joint, joint - marginals, marginals - prior


def stratified_weights(size: int, count: int) -> Tensor:
    """What each image of a batch (columns) counts in the aggregate posterior at each code (rows).

    Minibatch stratified sampling (Chen et al., appendix C.2): the code's own image is one of
    `count`, the `size` - 1 others stand for all others. Rows sum to one.
    """
    others = size - 1
    weights = torch.full((size, size), 1 / others, dtype=torch.float64)
    rows = torch.arange(size)
    weights[rows, rows] = 1 / count
    weights[rows, (rows + 1) % size] = (count - others) / (count * others)
    return weights


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-density of N(mean, exp(log_variance)) in every dimension."""
    square = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (square + log_variance + math.log(2 * math.pi))


def cyclic_ramp(progress: float) -> float:
    """Weight in [0.001, 1] at `progress` in [0, 1): four cycles, rising in the first half of each.

    Fu et al., Cyclical Annealing Schedule, NAACL 2019.
    """
    return min(1.0, max(FLOOR, 2 * (progress * CYCLES % 1)))
