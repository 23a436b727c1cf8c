"""What a dataset is, and how every later stage reads a prepared one.

Importing this module does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from counterlens.config import DatasetOptions, Model
from counterlens.errors import UserError
from counterlens.runtime import files

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """One downloadable file: its name, the URLs tried in order, and its checksum (lower case).

    `sha256` is the SHA-256, or, where the publisher states no other, `md5:` and the MD5.
    """

    file: str
    urls: tuple[str, ...]
    sha256: str

    @property
    def checksum(self) -> str:
        """The checksum in words."""
        kind, _, value = self.sha256.rpartition(":")
        return f"{kind.upper() or 'SHA-256'} {value}"

    def found(self, path: Path) -> str:
        """The checksum of a file, of the kind that the source states."""
        kind, _, _ = self.sha256.rpartition(":")
        return f"md5:{files.md5(path)}" if kind == "md5" else files.sha256(path)


class Arrays(NamedTuple):
    """One split: images uint8 (N, C, H, W) in 0..255 and labels int64 (N,) in 0..K-1.

    `attributes` is uint8 (N, A) of 0 and 1, for a dataset that names attributes. Where it has
    no classes, all labels are 0.
    """

    images: np.ndarray
    labels: np.ndarray
    attributes: np.ndarray | None = None


class Dataset(ABC):
    """A dataset: class names, shape and licence from its `Options`, plus sources and a reader.

    Subclasses set `sources`, one entry for each name in their `Options.files` and in that
    order; it stays empty where nothing is downloaded.
    """

    sources: ClassVar[tuple[Source, ...]] = ()

    def __init__(self, options: DatasetOptions) -> None:
        self.options = options

    @property
    def name(self) -> str:
        """The name used in paths, e.g. `fashion-mnist`."""
        return self.options.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the label is the index."""
        return self.options.classes

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, in the order of the arrays' columns."""
        return self.options.attributes

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.options.shape

    @property
    def licence(self) -> str:
        """The licence of the images."""
        return self.options.licence

    def records(self, raw: Path) -> tuple[SourceRecord, ...]:
        """What `read` reads, with checksums, for `dataset.json`."""
        return tuple(
            SourceRecord(file=source.file, sha256=files.sha256(raw / source.file))
            for source in self.sources
        )

    @abstractmethod
    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits, `{"train": ..., "test": ...}`, from the folder of downloaded files.

        Raises:
            UserError: a file is missing, damaged, or not what its name promises.
        """


class SourceRecord(Model):
    """A file that was read, in `dataset.json`."""

    file: str
    sha256: str


class SplitRecord(Model):
    """The size of one split in `dataset.json`: in all, of each class, and with each attribute."""

    images: int
    per_class: tuple[int, ...]
    per_attribute: tuple[int, ...] = ()


class DatasetCard(Model):
    """The content of `dataset.json`."""

    name: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    shape: tuple[int, int, int]
    licence: str
    sources: tuple[SourceRecord, ...]
    splits: dict[str, SplitRecord]


@dataclass(frozen=True)
class ImageSet:
    """Images float32 (N, C, H, W) in [0, 1], labels int64 (N,), index int64 (N,) in the split.

    `attributes` is float32 (N, A) of 0 and 1, None where the dataset names none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    attributes: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: torch.Tensor) -> ImageSet:
        """Some images, in the order of `rows`."""
        attributes = None if self.attributes is None else self.attributes[rows]
        return ImageSet(self.images[rows], self.labels[rows], self.index[rows], attributes)


def load_split(
    path: Path, classes: Sequence[int] | None = None, attribute: int | None = None
) -> ImageSet:
    """Read one prepared split as tensors, in the split's order.

    Args:
        path: `train.safetensors` or `test.safetensors` of a prepared dataset.
        classes: keep only images with these labels; `None` keeps all of them.
        attribute: index of the attribute that is the label, 0 or 1; `None`: the class is. Where
            the dataset has no classes, all labels are then 0.

    Raises:
        UserError: the file is missing or damaged, or no image has one of the labels.
    """
    import torch

    tensors = files.load_tensors(path)
    images, labels, attributes = tensors["images"], tensors["labels"], tensors.get("attributes")
    if attribute is not None:
        if attributes is None:
            raise UserError(f"{path}: has no attributes; delete it and prepare the dataset again")
        labels = attributes[:, attribute].astype(np.int64)
    index = np.arange(len(labels), dtype=np.int64)
    if classes is not None:
        index = np.flatnonzero(np.isin(labels, np.asarray(classes, dtype=np.int64)))
        if len(index) == 0:
            raise UserError(f"{path}: has no image of the classes {list(classes)}")
        images, labels = images[index], labels[index]
        attributes = None if attributes is None else attributes[index]
    return ImageSet(
        images=torch.from_numpy(images.astype(np.float32) / np.float32(255)),
        labels=torch.from_numpy(labels),
        index=torch.from_numpy(index),
        attributes=None if attributes is None else torch.from_numpy(attributes).float(),
    )
