"""PNG grids of image batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from counterlens.runtime import images


def test_pixels_are_rounded_and_clipped() -> None:
    values = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 127.6 / 255, 1.0, 1.5], np.float32)
    shown = images.to_uint8(values.reshape(1, 1, 1, 7))
    assert shown.dtype == np.uint8 and shown.shape == (1, 1, 7, 1)
    assert shown.ravel().tolist() == [0, 0, 0, 1, 128, 255, 255]


def test_every_uint8_comes_back() -> None:
    values = np.arange(256, dtype=np.float32).reshape(1, 1, 16, 16) / np.float32(255)
    assert (images.to_uint8(values).ravel() == np.arange(256)).all()


def test_channels_come_last() -> None:
    batch = np.zeros((2, 4, 3, 5, 6), np.float32)
    batch[:, :, 1] = 1
    shown = images.to_uint8(batch)
    assert shown.shape == (2, 4, 5, 6, 3)
    assert (shown[..., 1] == 255).all() and (shown[..., [0, 2]] == 0).all()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 2, 2), (5, 3, 2)])
def test_a_grid(count: int, columns: int, rows: int) -> None:
    batch = np.stack([np.full((3, 4, 1), number + 1, np.uint8) for number in range(count)])
    picture = images.grid(batch, columns, gap=2)
    assert picture.shape == (rows * 5 - 2, columns * 6 - 2, 1)
    left = picture.copy()
    for number in range(count):
        top, start = (number // columns) * 5, (number % columns) * 6
        assert (picture[top : top + 3, start : start + 4] == number + 1).all()
        left[top : top + 3, start : start + 4] = 255
    assert (left == 255).all()  # white between the images and in place of missing ones


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_read_back(channels: int, tmp_path: Path) -> None:
    picture = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
    path = tmp_path / "new" / "a.png"
    images.write_png(path, picture, zoom=3)
    read = np.asarray(Image.open(path)).reshape(6, 9, channels)
    assert (read == picture.repeat(3, 0).repeat(3, 1)).all()
    before = path.read_bytes()
    images.write_png(path, picture, zoom=3)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_grid_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    batch = torch.linspace(0, 1, 5 * 16, dtype=torch.bfloat16).reshape(5, 1, 4, 4)
    images.write_grid(path, batch, columns=3, zoom=2)
    assert Image.open(path).size == (2 * (3 * 6 - 2), 2 * (2 * 6 - 2))
