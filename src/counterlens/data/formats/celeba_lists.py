"""The lists that CelebA and CelebA-HQ publish beside their pictures."""

from __future__ import annotations

from pathlib import Path

from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.image_folders import read_lines
from counterlens.errors import UserError

SPLIT_NAMES = {"0": "train", "1": "val", "2": "test"}


def read_attributes(path: Path) -> dict[str, tuple[int, ...]]:
    """The 40 attributes of each picture, 0 or 1 for -1 or 1 in the list.

    Raises:
        UserError: the list is missing or damaged.
    """
    _, header, *rows = [*read_lines(path), "", ""]
    if (*header.split(),) != ATTRIBUTES:
        raise UserError(f"{path}: its columns are not CelebA's attributes; get it again")
    known = {}
    for name, *values in map(str.split, filter(str.strip, rows)):
        if len(values) != len(ATTRIBUTES) or not {*values} <= {"-1", "1"}:
            raise UserError(f"{path}: {name}: not {len(ATTRIBUTES)} times -1 or 1; get it again")
        known[name] = tuple(int(value == "1") for value in values)
    return known


def read_partition(path: Path) -> dict[str, str]:
    """The split of each picture of CelebA, `train`, `val` or `test`, in the list's order.

    Raises:
        UserError: the list is missing or damaged.
    """
    split_of = {}
    for line in filter(str.strip, read_lines(path)):
        name, *codes = line.split()
        if len(codes) != 1 or codes[0] not in SPLIT_NAMES:
            raise UserError(f"{path}: '{line}': not a picture and 0, 1 or 2; get it again")
        split_of[name] = SPLIT_NAMES[codes[0]]
    return split_of
