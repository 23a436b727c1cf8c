"""Padding and cropping: what comes back, what the border is, and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from counterlens.runtime.sizes import Crop, PaddedSequential, Padding


@pytest.mark.parametrize(
    ("size", "multiple", "padded", "before"),
    [
        ((28, 28), 4, (28, 28), (0, 0)),
        ((28, 28), 8, (32, 32), (2, 2)),
        ((17, 23), 8, (24, 24), (3, 0)),
        ((28, 40), 16, (32, 48), (2, 4)),
    ],
)
def test_sizes(size, multiple: int, padded, before) -> None:
    padding = Padding(size, multiple)
    assert (padding.padded, padding.before) == (padded, before)
    x = torch.rand(2, 3, *size)
    for value in (None, -1.0):
        wide = padding.pad(x, value)
        assert wide.shape == (2, 3, *padded) and torch.equal(padding.crop(wide), x)


def test_the_border_is_the_edge_or_a_value() -> None:
    x = torch.rand(1, 1, 2, 3)
    padding = Padding((2, 3), 4)
    edge, value = padding.pad(x)[0, 0], padding.pad(x, -1.0)[0, 0]
    assert torch.equal(edge[0, :3], x[0, 0, 0]) and torch.equal(edge[1:3, 3], x[0, 0, :, 2])
    assert (value[[0, 3]] == -1).all() and (value[:, 3] == -1).all()


def test_a_crop_keeps_the_first_rows_and_columns() -> None:
    x = torch.rand(2, 1, 5, 6)
    assert torch.equal(Crop((4, 6))(x), x[:, :, :4])
    assert torch.equal(Crop((5, 6))(x), x)


def test_layers_that_halve_and_double() -> None:
    layers = PaddedSequential(2, nn.AvgPool2d(2), nn.Upsample(scale_factor=2), value=0.0)
    x = torch.ones(1, 1, 3, 4, requires_grad=True)
    found = layers(x)
    # the third row is pooled with a black one
    assert found.shape == x.shape
    assert found[0, 0, :, 0].tolist() == [1, 1, 0.5]
    found.sum().backward()
    assert x.grad is not None and (x.grad > 0).all()
