"""A user's own pictures: one folder for each class, in one folder.

No checksum holds the folder to what it was; `dataset.json` records what was read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, model_validator

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays
from counterlens.data.formats.image_folders import FolderDataset
from counterlens.data.formats.labelled_pictures import Labelled
from counterlens.errors import UserError

SUFFIXES = {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SUFFIXES |= {".pgm", ".pnm", ".ppm"}
LUMA = (0.299, 0.587, 0.114)


class Options(DatasetOptions):
    """Where the pictures are, and what becomes of them.

    Attributes:
        folder: has a folder for each class.
        names: of the folders, which are the classes, in the order of the labels.
        size: height and width, to which the pictures are resized; what is over on both sides is
            cut, or with `stretch` the proportions change.
        grey: one channel instead of three.
        test_share: of each class, drawn with `split_seed` by the pictures' names, so that another
            picture does not move the others.
        title: the dataset's name in paths; by default the folder's, and the size.
    """

    licence: ClassVar[str] = "the user's own"

    folder: str
    names: tuple[str, ...] = Field(min_length=2)
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = (28, 28)
    stretch: bool = False
    grey: bool = False
    test_share: float = Field(default=0.2, gt=0, lt=1)
    split_seed: int = 0
    title: str | None = Field(default=None, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")

    @model_validator(mode="after")
    def _no_name_twice(self):
        if len({*self.names}) < len(self.names):
            raise ValueError("a class stands twice in `names`")
        return self

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folders' names."""
        return self.names

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Grey or RGB, of the size."""
        return (1 if self.grey else 3, *self.size)

    @property
    def name(self) -> str:
        """The title, or `folder-28x28`."""
        if self.title is not None:
            return self.title
        last = self.folder.rstrip("/").rpartition("/")[2].lower()
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in last).split()
        return "-".join([*(words or ["image-folder"]), f"{self.size[0]}x{self.size[1]}"])


class ImageFolder(FolderDataset):
    """Pictures of any size, by their suffixes; other files are passed over."""

    @property
    def crop(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether a picture of other proportions is cut instead of stretched."""
        return not self.options.stretch  # type: ignore[attr-defined]

    @property
    def needs(self) -> tuple[str, ...]:
        """The folders of the classes."""
        return self.classes

    def pictures(self, root: Path) -> Iterator[Labelled]:
        """The classes spread evenly, each in the order of its pictures' names; both splits mixed.

        So the first pictures of a split are of all classes.

        Raises:
            UserError: a class has fewer than two pictures.
        """
        options: Options = self.options  # type: ignore[assignment]
        placed: list[tuple[float, int, Labelled]] = []
        for label, folder in enumerate(options.names):
            files = (root / folder).rglob("*")
            names = sorted(
                file.relative_to(root).as_posix()
                for file in files
                if file.suffix.lower() in SUFFIXES and file.is_file()
            )
            if len(names) < 2:
                raise UserError(
                    f"{root / folder}: has {len(names)} pictures; at least two are needed, one to "
                    f"train with and one to test (read are {', '.join(sorted(SUFFIXES))})"
                )
            tested = {*sorted(names, key=self._place)[: _count(len(names), options.test_share)]}
            for number, name in enumerate(names):
                picture = Labelled("test" if name in tested else "train", name, label)
                placed.append((number / len(names), label, picture))
        yield from (picture for *_, picture in sorted(placed, key=lambda entry: entry[:2]))

    def _place(self, name: str) -> str:
        seed = self.options.split_seed  # type: ignore[attr-defined]
        return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits; grey is the luma of ITU-R BT.601, as Pillow computes it up to rounding."""
        splits = super().read(raw)
        if self.shape[0] == 3:
            return splits
        return {
            split: arrays._replace(images=_grey(arrays.images)) for split, arrays in splits.items()
        }


def _count(pictures: int, share: float) -> int:
    """How many of the pictures are tested with: at least one, and not all."""
    return min(pictures - 1, max(1, math.ceil(pictures * share)))


def _grey(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 3, H, W) to (N, 1, H, W)."""
    luma = np.einsum("nchw,c->nhw", images.astype(np.float64), np.array(LUMA))
    return np.rint(luma).clip(0, 255).astype(np.uint8)[:, None]
