"""Pictures for people: PNG files of image batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from counterlens.runtime.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels of ImageNet, by which torchvision's networks normalise images in [0, 1]."""


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images (..., C, H, W) in [0, 1] to uint8 (..., H, W, C), rounded."""
    return np.moveaxis(np.rint(images.clip(0, 1) * 255).astype(np.uint8), -3, -1)


def grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 (N, H, W, C) laid out row by row on white: (rows, ..., C)."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    canvas = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_png(path: Path, picture: np.ndarray, zoom: int = 1) -> None:
    """Write uint8 (H, W, 1 or 3), each pixel enlarged `zoom` times."""
    from PIL import Image

    enlarged = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    with atomic_path(path) as temporary:
        Image.fromarray(enlarged.squeeze(-1) if enlarged.shape[-1] == 1 else enlarged).save(
            temporary, format="PNG"
        )


def write_grid(path: Path, images: Tensor, columns: int, zoom: int = 2) -> None:
    """Write images (N, C, H, W) in [0, 1] as one PNG, `columns` to a row."""
    write_png(path, grid(to_uint8(images.float().numpy()), columns), zoom)
