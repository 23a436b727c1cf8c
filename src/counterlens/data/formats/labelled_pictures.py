"""What the datasets share that are single pictures, with a label and perhaps attributes each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from counterlens.data.base import SPLITS, Arrays


class Labelled(NamedTuple):
    """A picture: its split, its name in the archive or folder, label and attributes, 0 or 1."""

    split: str
    name: str
    label: int = 0
    attributes: tuple[int, ...] = ()


def splits(
    pictures: Iterable[Labelled], read: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, Arrays]:
    """The splits `train` and `test` in the order of the pictures; other splits are left out.

    Args:
        pictures: all with equally many attributes.
        read: from names to uint8 (N, C, H, W).
    """
    kept: dict[str, list[Labelled]] = {split: [] for split in SPLITS}
    for picture in pictures:
        if picture.split in kept:
            kept[picture.split].append(picture)
    return {
        split: Arrays(
            read([picture.name for picture in chosen]),
            np.array([picture.label for picture in chosen], np.int64),
            np.array([picture.attributes for picture in chosen], np.uint8)
            if chosen and chosen[0].attributes
            else None,
        )
        for split, chosen in kept.items()
    }
