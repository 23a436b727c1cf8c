"""What decoders and encoders offer to methods, and how they are trained and checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from counterlens import layout, plugins
from counterlens.classifiers.base import Classifier
from counterlens.config import GeneratorOptions, Models, Pair
from counterlens.runtime.device import freeze
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import generator
from counterlens.runtime.training import Checkpoint, History, load_model


@dataclass(frozen=True)
class Training:
    """What a generator is trained with.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1] of the scope's classes.
        test_images: the same of the test split, for the quality gate only.
        classifier: the classifier that the options name, frozen; None where they name none.
        generators: the generators it requires, frozen, by id.
        labels, test_labels: int64 (N,), the classes of the images.
        left_out: classes that the classifier was not shown and so does not answer.
    """

    images: Tensor
    test_images: Tensor
    classifier: Classifier | None
    generators: Mapping[str, Generator]
    device: torch.device
    seed: int
    checkpoint: Checkpoint | None = None
    labels: Tensor | None = None
    test_labels: Tensor | None = None
    left_out: tuple[int, ...] = ()


class Generator(nn.Module, ABC):
    """A decoder, an encoder or both, between latents (N, d) and images (N, C, H, W) in [0, 1]."""

    latent_dim: int

    def __init__(self, options: GeneratorOptions, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.options = options
        self.shape = shape

    @property
    def latent_parts(self) -> tuple[int, ...]:
        """Sizes of the parts of a latent, such as noise and class; by default it is one whole."""
        return (self.latent_dim,)

    def draw(self, count: int, random: torch.Generator, label: int) -> Tensor:
        """Latents (count, d) from the prior, on the CPU; a conditional generator's of a class."""
        return torch.randn(count, self.latent_dim, generator=random)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (N, d) to images (N, C, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} decodes nothing: it is an encoder")

    def encode(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to latents (N, d)."""
        raise TypeError(f"{type(self).__name__} encodes nothing: it is a decoder")

    def discriminate(self, x: Tensor) -> Tensor:
        """Logits (N,) that images in [0, 1] are real."""
        raise TypeError(f"{type(self).__name__} has no discriminator")

    @abstractmethod
    def fit(self, training: Training) -> History:
        """Train in place; returns the mean losses of each epoch."""

    @abstractmethod
    def quality(self, training: Training) -> Quality:
        """Measure the trained generator on test images."""

    @abstractmethod
    def sheet(self, training: Training) -> Tensor:
        """Images (rows x 8, C, H, W) in [0, 1] for the sample sheet, row by row."""


def create(models: Models, name: str) -> Generator:
    """One of the generators with fresh parameters."""
    options = models.generators[name]
    return plugins.create("generators", options, Generator, models.dataset.shape)


def load(models: Models, name: str, scope: str, device: torch.device) -> Generator:
    """One of the trained generators, frozen."""
    model = create(models, name)
    load_model(model_file(models, name, scope), model)
    freeze(model, device)
    return model


def load_for_pair(
    models: Models, names: tuple[str, ...], pair: Pair, device: torch.device
) -> dict[str, Generator]:
    """The named generators as trained for a pair, or for all classes."""
    return {name: load(models, name, models.scope(name, pair), device) for name in names}


def model_file(models: Models, name: str, scope: str) -> Path:
    """Where a trained generator lies."""
    return layout.generator(models.name, name, scope) / "model.safetensors"


@torch.inference_mode()
def reconstructions(encoder: Generator, decoder: Generator, x: Tensor) -> Tensor:
    """G(E(x)) of images (N, C, H, W) in [0, 1], on the CPU, in batches."""
    device = next(encoder.parameters()).device
    return torch.cat(
        [decoder.decode(encoder.encode(part.to(device))).cpu() for part in x.split(256)]
    )


def reconstruction_quality(
    reconstructed: Tensor, training: Training, least_class_kept: float, most_l1: float
) -> Quality:
    """L1 between [0, 1] test images and their reconstructions; how often the class survives."""
    assert training.classifier is not None
    x = training.test_images
    before = training.classifier.probabilities(x).argmax(dim=1)
    after = training.classifier.probabilities(reconstructed).argmax(dim=1)
    values = {
        "reconstruction_l1": float((x - reconstructed).abs().mean()),
        "class_kept": float((before == after).float().mean()),
    }
    return Quality(
        values, at_least={"class_kept": least_class_kept}, at_most={"reconstruction_l1": most_l1}
    )


@torch.inference_mode()
def draw_samples(model: Generator, count: int, training: Training) -> Tensor:
    """Decoded latents drawn from N(0, I): (count, C, H, W) in [0, 1], on the CPU."""
    z = torch.randn(count, model.latent_dim, generator=generator(training.seed))
    return torch.cat([model.decode(part.to(training.device)).cpu() for part in z.split(256)])


def autoencoder_sheet(model: Generator, training: Training) -> Tensor:
    """Two rows of test images, two of their reconstructions, four of samples: (64, C, H, W)."""
    x = training.test_images[:: max(1, len(training.test_images) // 16)][:16]
    return torch.cat([x, reconstructions(model, model, x), draw_samples(model, 32, training)])


def sample_quality(samples: Tensor, training: Training) -> Quality:
    """Share of samples the classifier is sure of, and how evenly they cover its classes."""
    assert training.classifier is not None
    answers = training.classifier.probabilities(samples)
    known = [label for label in range(answers.shape[1]) if label not in training.left_out]
    share = answers.argmax(dim=1).bincount(minlength=answers.shape[1])[known] / len(answers)
    values = {
        "confident_samples": float((answers.amax(dim=1) >= 0.9).float().mean()),
        "rarest_class_share": float(share.min()),
    }
    gates = {"confident_samples": 0.6, "rarest_class_share": 0.2 / len(known)}
    return Quality(values, at_least=gates)
