"""Encoder of a frozen DCGAN, one per class pair, as C3LT needs it.

Architecture: the paper's released encoder (1,066,952 parameters at width 64 and 28x28). Its
training is unpublished; this one reconstructs images and the classifier's features through the
frozen decoder, since regressing latents alone loses the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    reconstruction_quality,
    reconstructions,
)
from counterlens.generators.dcgan import encoder, initialise
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import History, Losses, batches, step_decay, train


class Options(GeneratorOptions):
    """Weights of the classifier-feature loss and of the latent regression E(G(z)) = z."""

    per_pair: ClassVar[bool] = True
    per_classifier: ClassVar[bool] = True
    uses_classifier: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    encodes: ClassVar[bool] = True

    generator: str
    latent_dim: int = Field(default=100, gt=0)
    width: int = Field(default=64, gt=0)
    epochs: int = Field(default=100, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    beta1: float = 0.5
    decay_every: int = Field(default=25, gt=0)
    feature_weight: float = Field(default=1.0, ge=0)
    latent_weight: float = Field(default=0.0, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    least_class_kept: float = 0.97
    most_reconstruction_l1: float = 0.0325

    def requires(self) -> tuple[str, ...]:
        """The decoder whose latents it finds."""
        return (self.generator,)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The decoder must take its latents."""
        decoder = generators[self.generator]
        if not decoder.decodes:
            return f"'{self.generator}' decodes no latents"
        size = getattr(decoder, "latent_dim", None)
        if size != self.latent_dim:
            return f"latent_dim: {self.latent_dim}, but '{self.generator}' takes {size}"
        return None


class DCGANEncoder(Generator):
    """Strided convolutions; the last batch normalisation brings latents near N(0, I)."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.options: Options = options
        self.latent_dim = options.latent_dim
        self.encoder = nn.Sequential(
            *encoder(options.latent_dim, options.width, shape), nn.BatchNorm2d(options.latent_dim)
        )

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(2 * x - 1).flatten(1)

    def fit(self, training: Training) -> History:
        """Minimise |x - G(E(x))| + features of the classifier (+ latent regression)."""
        classifier = training.classifier
        assert classifier is not None
        device, options = training.device, self.options
        decode = training.generators[options.generator].decode
        torch.manual_seed(derive_seed(training.seed, "initial"))
        self.apply(initialise)
        place(self, device).train()
        images = training.images.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(
            self.parameters(), options.lr, (options.beta1, 0.999), fused=True
        )
        scheduler = step_decay(optimizer, options.decay_every)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            noise = generator(derive_seed(seed, "latent"))
            for index in batches(len(images), options.batch_size, seed):
                if len(index) == 1:
                    continue
                x = images[index.to(device)]
                losses: Losses = {}
                with autocast(device, options.precision):
                    reconstruction = decode(self.encode(x))
                    losses["pixels"] = 2 * (x - reconstruction.float()).abs().mean()
                    if options.feature_weight:
                        with torch.no_grad():
                            wanted = classifier.maps(x)
                        losses["features"] = sum_of_means(wanted, classifier.maps(reconstruction))
                    if options.latent_weight:
                        z = torch.randn(len(x), self.latent_dim, generator=noise).to(device)
                        with statistics_kept(self.encoder):
                            encoded = self.encode(decode(z)).float()
                        losses["latents"] = functional.mse_loss(encoded, z)
                loss = losses["pixels"]
                loss = loss + options.feature_weight * losses.get("features", 0)
                loss = loss + options.latent_weight * losses.get("latents", 0)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {name: value.detach() for name, value in losses.items()}

        parts = {"model": self, "optimizer": optimizer, "scheduler": scheduler}
        history = train(
            "dcgan-encoder", options.epochs, epoch_losses, parts, training.checkpoint, [scheduler]
        )
        self.eval()
        return history

    def quality(self, training: Training) -> Quality:
        """Reconstruction and class kept, on test images."""
        reconstructed = reconstructions(
            self, training.generators[self.options.generator], training.test_images
        )
        options = self.options
        return reconstruction_quality(
            reconstructed, training, options.least_class_kept, options.most_reconstruction_l1
        )

    def sheet(self, training: Training) -> Tensor:
        """Rows of test images, each above its reconstructions."""
        x = training.test_images[:: max(1, len(training.test_images) // 32)][:32]
        reconstructed = reconstructions(self, training.generators[self.options.generator], x)
        rows = [
            row for both in zip(x.split(8), reconstructed.split(8), strict=True) for row in both
        ]
        return torch.cat(rows)


def sum_of_means(wanted: list[Tensor], given: list[Tensor]) -> Tensor:
    """Sum over the feature maps of the mean absolute difference."""
    terms = [(a.float() - b.float()).abs().mean() for a, b in zip(wanted, given, strict=True)]
    return torch.stack(terms).sum()


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch normalisation as in training, without updating its running mean and variance."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
