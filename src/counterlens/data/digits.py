"""The handwritten digits that ship inside scikit-learn: 1,797 images, no download.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (E. Alpaydin
and C. Kaynak, 1998): 8x8 counts of inked pixels in 0..16, written by 13 people who occur in
both of our splits. They are enlarged to 16x16, the smallest size that every network here takes;
that adds no detail.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset

TEST_SHARE = 0.3
SPLIT_SEED = 85
SIDE = 16


class Options(DatasetOptions):
    """The embedded digits; nothing to choose."""

    classes: ClassVar[tuple[str, ...]] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    shape: ClassVar[tuple[int, int, int]] = (1, 16, 16)
    licence: ClassVar[str] = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"


class Digits(Dataset):
    """Each 8x8 digit resized to 16x16 (bicubic); there is no border, the digits fill the height.

    30 % of every class, drawn with a fixed seed, is the test split; both splits keep
    scikit-learn's order.
    """

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits; `raw` is not used."""
        from sklearn.datasets import load_digits

        small, answers = load_digits(return_X_y=True)
        pixels = np.asarray(small, np.float64).reshape(-1, 8, 8)
        images = np.stack([_enlarge(digit) for digit in pixels])[:, None]
        labels = np.asarray(answers, np.int64)
        test = _test_mask(labels)
        return {
            "train": Arrays(images[~test], labels[~test]),
            "test": Arrays(images[test], labels[test]),
        }


def _enlarge(pixels: np.ndarray) -> np.ndarray:
    """(8, 8) in 0..16 to uint8 (16, 16) in 0..255."""
    from PIL import Image

    grey = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _test_mask(labels: np.ndarray) -> np.ndarray:
    # RandomState, because its stream is frozen for all NumPy versions.
    random = np.random.RandomState(SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        mask[members[: round(TEST_SHARE * len(members))]] = True
    return mask
