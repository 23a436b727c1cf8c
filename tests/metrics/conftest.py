"""Sets, classifiers and extractors small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from counterlens.metrics.base import CounterfactualSet, MetricContext, quantise

from .battery import FirstPixels, Halves


class Bright(nn.Module):
    """Logits (0, 4·(mean - ½), -9): class 1 is a bright image. Remembers what it was asked.

    The image is its last feature map, the mean its only feature.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        return self.classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return x

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.double().mean((1, 2, 3)).float()[:, None]

    def classify(self, last_map: Tensor) -> Tensor:
        (mean,) = self.embed(last_map).T
        return torch.stack([0 * mean, 4 * (mean - 0.5), 0 * mean - 9], dim=1)


class PixelExtractor:
    """Features are the first pixels, so FID and KID are those of the images themselves.

    So is the perceptual distance: their mean squared difference.
    """

    def __init__(self, standard: bool = False, unavailable: str | None = None) -> None:
        self.standard = standard
        self.cache_references = True
        self.fingerprint = "pixels"
        self.unavailable = unavailable
        self.calls: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.calls.append(images)
        return images.float().flatten(1)[:, :6] / 255

    def probabilities(self, images: Tensor) -> Tensor:
        """Class 1 is an image whose first pixel is bright."""
        first = images.flatten(1)[:, 0]
        return torch.stack([1 - first, first, 0 * first], dim=1)

    def perceptual_distance(self, first: Tensor, second: Tensor) -> Tensor:
        assert first.dtype == second.dtype == torch.float32
        return (first - second).double().square().mean((1, 2, 3))


@pytest.fixture
def bright() -> Bright:
    return Bright()


@pytest.fixture
def pixel_extractor() -> type[PixelExtractor]:
    return PixelExtractor


@pytest.fixture
def make_set() -> Callable[..., CounterfactualSet]:
    def make(
        counterfactual: Tensor, query: Tensor | None = None, **keywords: object
    ) -> CounterfactualSet:
        values: dict = {"source": 0, "target": 1, "experiment": "tiny", "method": "hand"}
        values |= keywords
        values.setdefault("table", pd.DataFrame({"image": range(len(counterfactual))}))
        return CounterfactualSet(counterfactual=counterfactual, query=query, **values)

    return make


@pytest.fixture
def random_set(make_set: Callable[..., CounterfactualSet]) -> Callable[..., CounterfactualSet]:
    def make(
        count: int = 7, shape: tuple[int, int, int] = (1, 6, 6), seed: int = 0
    ) -> CounterfactualSet:
        generator = torch.Generator().manual_seed(seed)
        query = torch.rand(count, *shape, generator=generator)
        change = torch.rand(count, *shape, generator=generator)
        keep = torch.rand(count, *shape, generator=generator) < 0.5
        return make_set(torch.where(keep, query, change), query)

    return make


@pytest.fixture
def context(bright, pixel_extractor, random_set) -> MetricContext:
    train = quantise(random_set(40, seed=9).counterfactual)
    return MetricContext(
        bright,
        {"autoencoders": Halves(), "pixels": pixel_extractor(), "attributes": FirstPixels()},
        reference=lambda label: train,
        attribute=1,
    )
