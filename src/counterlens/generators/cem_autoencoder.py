"""The auto-encoder of CEM, which tells how much an image looks like the training data.

Dhurandhar et al., Explanations based on the Missing, NeurIPS 2018; layers and training as in the
authors' release: 5,250 parameters on one channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import GeneratorOptions
from counterlens.generators.base import Generator, Training
from counterlens.runtime.device import place
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.sizes import Padding
from counterlens.runtime.training import History, Losses, batches, train

LARGE_RESIDUAL = 0.05


class Options(GeneratorOptions):
    """Adam on the squared error. The authors train 4 epochs.

    A badly reconstructed pixel makes CEM add ink: `most_large_residuals` is the largest share of
    test pixels that may be off by more than 0.05.
    """

    encodes: ClassVar[bool] = True

    width: int = Field(default=16, gt=0)
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    most_large_residuals: float = 0.02


class CemAutoencoder(Generator):
    """The code is a map of half the resolution with the image's channels; works in [-½, ½].

    Odd sides are padded by one pixel, which repeats the edge.
    """

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        channels = shape[0]
        self.padding = Padding(shape[1:], 2)
        self.code_shape = (channels, *(side // 2 for side in self.padding.padded))
        self.latent_dim = math.prod(self.code_shape)
        maps = options.width
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, maps, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(maps, maps, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Conv2d(maps, channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(channels, maps, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(maps, maps, 3, padding=1), nn.ReLU()),
            nn.Conv2d(maps, channels, 3, padding=1),
        )

    def reconstruct(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to about themselves; the last layer is linear."""
        return self.padding.crop(self.decoder(self.code(x))) + 0.5

    def code(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to their codes (N, C, H / 2, W / 2), rounded up."""
        return self.encoder(self.padding.pad(x - 0.5))

    def encode(self, x: Tensor) -> Tensor:
        return self.code(x).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        drawn = self.decoder(z.unflatten(1, self.code_shape))
        return (self.padding.crop(drawn) + 0.5).clamp(0, 1)

    def fit(self, training: Training) -> History:
        """Minimise the mean squared error."""
        device, options = training.device, self.options
        place(self, device).train()
        images = training.images.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(self.parameters(), options.lr, fused=True)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            for index in batches(len(images), options.batch_size, seed):
                x = images[index.to(device)]
                loss = functional.mse_loss(self.reconstruct(x), x)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {"reconstruction": loss.detach()}

        parts = {"model": self, "optimizer": optimizer}
        history = train("cem-autoencoder", options.epochs, epoch_losses, parts, training.checkpoint)
        self.eval()
        return history

    def quality(self, training: Training) -> Quality:
        """Mean absolute error on test images in [0, 1], and the share of large errors."""
        error = (self._on_cpu(training.test_images) - training.test_images).abs()
        values = {
            "reconstruction_l1": float(error.mean()),
            "large_residuals": float((error > LARGE_RESIDUAL).float().mean()),
        }
        return Quality(values, at_most={"large_residuals": self.options.most_large_residuals})

    def sheet(self, training: Training) -> Tensor:
        """Rows of test images, each above its reconstructions."""
        x = training.test_images[:: max(1, len(training.test_images) // 32)][:32]
        x = x[: len(x) // 8 * 8]
        pairs = torch.stack([x.unflatten(0, (-1, 8)), self._on_cpu(x).unflatten(0, (-1, 8))], dim=1)
        return pairs.flatten(0, 2).clamp(0, 1)

    @torch.inference_mode()
    def _on_cpu(self, x: Tensor) -> Tensor:
        device = next(self.parameters()).device
        return torch.cat([self.reconstruct(part.to(device)).cpu() for part in x.split(512)])
