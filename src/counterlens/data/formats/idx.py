"""The IDX format of MNIST and the datasets published like it.

An IDX file is: two zero bytes, one byte for the element type (8 = unsigned byte), one byte for
the number of dimensions, each dimension as a big-endian 32-bit integer, then the elements in C
order (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np

from counterlens.data.base import Arrays, Dataset
from counterlens.errors import UserError

UNSIGNED_BYTE = 8


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzip-compressed when the name ends in `.gz`.

    Returns:
        A writable uint8 array with `dimensions` axes.

    Raises:
        UserError: the file is missing, its gzip stream is damaged, or header and length are
            not those of such a file.
    """

    def damaged(problem: str) -> UserError:
        return UserError(f"{path}: {problem}; delete the file and download it again")

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; download the dataset first") from None
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except EOFError:
            raise damaged("the gzip stream is cut short") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise damaged(f"not a readable gzip file ({error})") from None
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise damaged(f"{len(content)} bytes are too few for an IDX header")
    if content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)):
        raise damaged(
            f"the magic number 0x{content[:4].hex()} is not that of an IDX file with "
            f"{dimensions} dimension(s) of unsigned bytes"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    given = len(content) - start
    if given != prod(shape):
        raise damaged(f"{given} bytes of data where the header {shape} promises {prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


class IdxDataset(Dataset):
    """A dataset published as MNIST is: an image and a label file for each split."""

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits from `{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz`."""
        return {"train": self._split(raw, "train"), "test": self._split(raw, "t10k")}

    def _split(self, raw: Path, prefix: str) -> Arrays:
        image_file = raw / f"{prefix}-images-idx3-ubyte.gz"
        label_file = raw / f"{prefix}-labels-idx1-ubyte.gz"
        images = read_idx(image_file, 3)[:, None]
        labels = read_idx(label_file, 1).astype(np.int64)
        if images.shape[1:] != self.shape:
            raise UserError(
                f"{image_file}: images of shape {images.shape[1:]}, {self.name} has {self.shape}; "
                "put the dataset's own file in its place"
            )
        if len(images) != len(labels):
            raise UserError(
                f"{label_file}: {len(labels)} labels for the {len(images)} images of "
                f"{image_file.name}; delete both files and download them again"
            )
        if len(labels) and labels.max() >= len(self.classes):
            raise UserError(
                f"{label_file}: label {labels.max()} is not one of the {len(self.classes)} "
                "classes; put the dataset's own file in its place"
            )
        return Arrays(images, labels)
