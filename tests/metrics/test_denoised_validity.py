"""Validity after a blur, which takes away noise and leaves shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterlens.metrics.base import MetricContext
from counterlens.metrics.denoised_validity import DenoisedValidity, Options, gaussian_blur


def by_hand(images: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """Every output pixel as a weighted sum over its neighbours; beyond the border, the border."""
    offsets = range(-(size // 2), size // 2 + 1)
    weights = {(i, j): np.exp(-(i * i + j * j) / (2 * sigma**2)) for i in offsets for j in offsets}
    total = sum(weights.values())
    height, width = images.shape[2:]
    found = np.zeros_like(images)
    for y in range(height):
        for x in range(width):
            for (i, j), weight in weights.items():
                row, column = min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)
                found[:, :, y, x] += weight / total * images[:, :, row, column]
    return found


@pytest.mark.parametrize(("size", "sigma"), [(3, 0.7), (5, 1.0), (7, 1.5), (1, 1.0)])
def test_the_blur_is_a_convolution_with_its_border_repeated(size: int, sigma: float) -> None:
    images = torch.rand(2, 3, 6, 9, generator=torch.Generator().manual_seed(size)).double()
    before = images.clone()
    found = gaussian_blur(images, size, sigma)
    np.testing.assert_allclose(found.numpy(), by_hand(images.numpy(), size, sigma), atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("side", "blur"),
    [
        (28, (3, 0.7)),
        (63, (3, 0.7)),
        (64, (5, 1.0)),
        (127, (5, 1.0)),
        (128, (7, 1.5)),
        (224, (7, 1.5)),
    ],
)
def test_defaults_follow_the_image_size(side: int, blur: tuple[int, float]) -> None:
    kind = "denoised-validity"
    assert Options(kind=kind).blur(side) == blur
    assert Options(kind=kind, kernel_size=9).blur(side) == (9, blur[1])
    assert Options(kind=kind, sigma=2.5).blur(side) == (blur[0], 2.5)


SIDE = 28
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
CHECKERBOARD = ((ROWS + COLUMNS) % 2 * 2 - 1).float()
BLOB = torch.exp(-((ROWS - 14) ** 2 + (COLUMNS - 14) ** 2) / 40.0)


class TwoFeatures(nn.Module):
    """Class 1 where there is a blob or, as easily fooled, a faint checkerboard."""

    def forward(self, x: Tensor) -> Tensor:
        blob = (x * BLOB).sum((1, 2, 3)) / BLOB.square().sum()
        noise = (x * CHECKERBOARD).mean((1, 2, 3)) / 0.1
        score = blob + noise - 0.5
        return torch.stack([0 * score, score], dim=1)


def test_noise_loses_its_validity_and_a_shape_does_not(make_set) -> None:
    noise = (0.1 + 0.1 * CHECKERBOARD).clamp(0, 1) * (1 - BLOB)  # dark where a blob would be
    cf = make_set(torch.stack([noise, BLOB, 0 * BLOB])[:, None])
    context = MetricContext(TwoFeatures())
    assert context.probabilities(cf.counterfactual).argmax(1).tolist() == [1, 1, 0]
    options = Options(kind="denoised-validity")
    found = DenoisedValidity(options, context).per_image(cf)["denoised_validity"]
    assert found.tolist() == [0, 1, 0] and found.dtype == np.float64
    back = make_set(cf.counterfactual, source=1, target=0)
    found = DenoisedValidity(options, context).per_image(back)["denoised_validity"]
    assert found.tolist() == [1, 0, 1]
    weak = Options(kind="denoised-validity", sigma=0.05)  # next to no blur
    found = DenoisedValidity(weak, context).per_image(cf)["denoised_validity"]
    assert found.tolist() == [1, 1, 0]


def test_it_is_of_real_images_too() -> None:
    options = Options(kind="denoised-validity")
    assert not options.paired  # the row of the original data is the control
    assert [(c.name, c.direction, c.per) for c in options.columns()] == [
        ("denoised_validity", "up", "image")
    ]
