"""Generators of width 4 and what they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from counterlens import plugins
from counterlens.classifiers.lenet import LeNet
from counterlens.classifiers.lenet import Options as LeNetOptions
from counterlens.generators.base import Generator, Training
from counterlens.runtime.training import Checkpoint

CPU = torch.device("cpu")
REQUIRED: dict[str, dict[str, Any]] = {"dcgan-encoder": {"generator": "dcgan"}}
NO_LATENT_SIZE = ("cem-autoencoder",)  # that of the code follows from the images


@pytest.fixture
def create() -> Callable[..., Generator]:
    """A generator of a kind, by default tiny, always with the same initial parameters."""

    def make(kind: str, channels: int = 1, **changes: Any) -> Generator:
        content = {"kind": kind, "width": 4, "latent_dim": 8, "epochs": 2, "batch_size": 16}
        content |= REQUIRED.get(kind, {}) | changes
        if kind in NO_LATENT_SIZE:
            del content["latent_dim"]
        options = plugins.options_class("generators", kind).model_validate(content)
        torch.manual_seed(11)
        return plugins.create("generators", options, Generator, (channels, 28, 28))

    return make


@pytest.fixture(scope="session")
def classifier(frozen) -> LeNet:
    """A frozen network with fixed parameters."""
    torch.manual_seed(5)
    return frozen(LeNet(LeNetOptions(kind="lenet"), (1, 28, 28), 10))


@pytest.fixture
def training(create, classifier, shapes, frozen) -> Callable[..., Training]:
    """Images, a classifier and a frozen decoder."""

    def make(checkpoint: Checkpoint | None = None, count: int = 64, seed: int = 3) -> Training:
        decoder = create("dcgan")
        frozen(decoder, lambda: decoder.decode(torch.randn(64, 8)))
        return Training(
            images=shapes(count, (4, 9)).images,
            test_images=shapes(24, (4, 9), seed=1).images,
            classifier=classifier,
            generators={"dcgan": decoder},
            device=CPU,
            seed=seed,
            checkpoint=checkpoint,
        )

    return make


@pytest.fixture
def answering() -> Callable[[torch.Tensor], Any]:
    """A stand-in for a classifier whose probabilities are given."""
    return lambda found: SimpleNamespace(probabilities=lambda x: found[: len(x)])
