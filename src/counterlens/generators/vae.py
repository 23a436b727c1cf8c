"""Convolutional variational autoencoder: encoder and decoder in one (Kingma and Welling, 2014).

The alternative that C3LT mentions; the decoder is DCGAN's, the encoder has a mean and a
log-variance head. `encode` gives the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from counterlens.config import GeneratorOptions
from counterlens.generators.base import (
    Generator,
    Quality,
    Training,
    autoencoder_sheet,
    reconstruction_quality,
    reconstructions,
)
from counterlens.generators.dcgan import decoder, encoder
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import History, Losses, batches, step_decay, train


class Options(GeneratorOptions):
    """`beta` weighs the Kullback-Leibler term against the summed L1 reconstruction."""

    uses_classifier: ClassVar[bool] = True
    encodes: ClassVar[bool] = True

    latent_dim: int = Field(default=32, gt=0)
    width: int = Field(default=32, gt=0)
    beta: float = Field(default=1.0, ge=0)
    epochs: int = Field(default=30, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    decay_every: int = Field(default=10, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    least_class_kept: float = 0.95
    most_reconstruction_l1: float = 0.05


class VAE(Generator):
    """Latents near N(0, I) by the Kullback-Leibler term; works in [-1, 1] inside."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.latent_dim = options.latent_dim
        self.encoder = encoder(2 * options.latent_dim, options.width, shape, bias=True)
        self.decoder = decoder(options.latent_dim, options.width, shape)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(2 * x - 1).flatten(1)[:, : self.latent_dim]

    def decode(self, z: Tensor) -> Tensor:
        return (self.decoder(z[:, :, None, None]) + 1) / 2

    def fit(self, training: Training) -> History:
        """Maximise the evidence lower bound with a Laplace likelihood."""
        device, options = training.device, self.options
        place(self, device).train()
        images = training.images.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(self.parameters(), options.lr, fused=True)
        scheduler = step_decay(optimizer, options.decay_every)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            noise = generator(derive_seed(seed, "latent"))
            for index in batches(len(images), options.batch_size, seed):
                if len(index) == 1:
                    continue
                x = images[index.to(device)]
                drawn = torch.randn(len(x), self.latent_dim, generator=noise).to(device)
                with autocast(device, options.precision):
                    heads = self.encoder(2 * x - 1).flatten(1).float()
                    mean, log_variance = heads.chunk(2, dim=1)
                    log_variance = log_variance.clamp(-20, 10)
                    decoded = self.decode(mean + (log_variance / 2).exp() * drawn).float()
                pixels = 2 * (x - decoded).abs().flatten(1).sum(dim=1).mean()
                divergence = kl_divergence(mean, log_variance).mean()
                optimizer.zero_grad(set_to_none=True)
                (pixels + options.beta * divergence).backward()
                optimizer.step()
                yield {"reconstruction": pixels.detach(), "divergence": divergence.detach()}

        parts = {"model": self, "optimizer": optimizer, "scheduler": scheduler}
        history = train(
            "vae", options.epochs, epoch_losses, parts, training.checkpoint, [scheduler]
        )
        self.eval()
        return history

    def quality(self, training: Training) -> Quality:
        """Reconstruction and class kept, on test images."""
        reconstructed = reconstructions(self, self, training.test_images)
        options = self.options
        return reconstruction_quality(
            reconstructed, training, options.least_class_kept, options.most_reconstruction_l1
        )

    def sheet(self, training: Training) -> Tensor:
        return autoencoder_sheet(self, training)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) per sample: (N, d), (N, d) to (N,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
