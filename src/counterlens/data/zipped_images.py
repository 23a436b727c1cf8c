"""What the datasets share whose images lie in a zip, with a label and perhaps attributes each."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from counterlens.data.base import Arrays
from counterlens.errors import UserError


def open_zip(path: Path) -> zipfile.ZipFile:
    """A zip file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; download the dataset first") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a readable zip file ({error}); delete it") from None


def read_images(
    archive: zipfile.ZipFile, members: Sequence[str], size: int, crop: int | None
) -> np.ndarray:
    """Decode pictures: uint8 (N, 3, size, size).

    Args:
        archive: holds the members as JPEG.
        members: names in the archive, in order.
        size: pixels on a side.
        crop: first cut out a central square of that many pixels, or None.

    Raises:
        UserError: a member is missing or damaged.
    """
    from PIL import Image

    found = np.empty((len(members), 3, size, size), np.uint8)
    for place, member in enumerate(members):
        try:
            with Image.open(io.BytesIO(archive.read(member))) as opened:
                picture = opened.convert("RGB")
        except (KeyError, zipfile.BadZipFile, zlib.error, OSError) as error:
            raise UserError(f"{archive.filename}: {member}: {error}; delete the file") from None
        if crop is not None:
            left, top = (picture.width - crop) // 2, (picture.height - crop) // 2
            picture = picture.crop((left, top, left + crop, top + crop))
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        found[place] = np.asarray(picture).transpose(2, 0, 1)
    return found


class Labelled(NamedTuple):
    """A picture of a zip: its split, its name there, its label and its attributes, 0 or 1."""

    split: str
    member: str
    label: int
    attributes: tuple[int, ...] = ()


def table(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    """The rows of the `labels.csv` in a zip.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        with archive.open("labels.csv") as file:
            return list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    except (KeyError, zipfile.BadZipFile, zlib.error, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{archive.filename}: labels.csv: {error}; delete the file") from None


def splits(
    rows: Iterable[Labelled], archive: zipfile.ZipFile, size: int, crop: int | None = None
) -> dict[str, Arrays]:
    """The splits `train` and `test` of the rows; others are left out."""
    kept: dict[str, list[Labelled]] = {"train": [], "test": []}
    for row in rows:
        if row.split in kept:
            kept[row.split].append(row)
    return {
        split: Arrays(
            read_images(archive, [row.member for row in found], size, crop),
            np.array([row.label for row in found], np.int64),
            np.array([row.attributes for row in found], np.uint8)
            if found and found[0].attributes
            else None,
        )
        for split, found in kept.items()
    }
