"""Reading zips of pictures; nothing is unpacked to the disk."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
    archive: zipfile.ZipFile, members: Sequence[str], size: int, crop: int | None = None
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

    images = np.empty((len(members), 3, size, size), np.uint8)
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
        images[place] = np.asarray(picture).transpose(2, 0, 1)
    return images


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
