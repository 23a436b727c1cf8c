"""Some classes of ImageNet (Russakovsky et al., IJCV 2015) from a folder in its usual layout.

`train/<wnid>/` and `val/<wnid>/` with pictures. Classes are named by their WordNet ids, so that two
folders are enough. Its terms must be accepted first: non-commercial research and education only.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset
from counterlens.data.image_folders import folder_of, read_pictures
from counterlens.errors import UserError

SUFFIXES = {".jpeg", ".jpg", ".png"}
FOLDERS = {"train": "train", "test": "val"}


class Options(DatasetOptions):
    """`wnids` in the order of the labels, `names` of the same classes; `size` of the crop."""

    licence: ClassVar[str] = "ImageNet: non-commercial research and education only"

    folder: str | None = None
    wnids: tuple[str, ...] = Field(min_length=2)
    names: tuple[str, ...] = Field(min_length=2)
    size: int = Field(default=256, ge=16)

    @model_validator(mode="after")
    def _as_many_names(self):
        if len(self.names) != len(self.wnids) or len({*self.wnids}) < len(self.wnids):
            raise ValueError("`names` and `wnids` must be equally many, without repetition")
        return self

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The given names."""
        return self.names

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB squares."""
        return (3, self.size, self.size)

    @property
    def name(self) -> str:
        """A folder for each choice of classes and size."""
        return "-".join([self.mirror_folder, *self.wnids, str(self.size)])


class ImageNet(Dataset):
    """The shorter side resized, the centre cut out; the validation split is the test split."""

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits; pictures of a class in the order of their names."""
        wnids, named = self.options.wnids, self.options.folder  # type: ignore[attr-defined]
        needs = [f"{folder}/{wnid}" for folder in FOLDERS.values() for wnid in wnids]
        root = folder_of(self.name, named, needs)
        found = {}
        for split, folder in FOLDERS.items():
            files = [
                sorted(f for f in (root / folder / wnid).iterdir() if f.suffix.lower() in SUFFIXES)
                for wnid in wnids
            ]
            for wnid, of_class in zip(wnids, files, strict=True):
                if not of_class:
                    raise UserError(f"{root / folder / wnid}: has no pictures")
            labels = np.repeat(np.arange(len(wnids)), [len(of_class) for of_class in files])
            pictures = [file for of_class in files for file in of_class]
            images = read_pictures(pictures, *self.shape[1:], crop=True)
            found[split] = Arrays(images, labels.astype(np.int64))
        return found
