"""Some classes of ImageNet (Russakovsky et al., IJCV 2015) from a folder in its usual layout.

`train/<wnid>/` and `val/<wnid>/` with pictures. Classes are named by their WordNet ids, so that two
folders are enough. Its terms must be accepted first: non-commercial research and education only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from counterlens.config import DatasetOptions
from counterlens.data.formats.image_folders import FolderDataset
from counterlens.data.formats.labelled_pictures import Labelled
from counterlens.errors import UserError

SUFFIXES = {".jpeg", ".jpg", ".png"}
FOLDERS = {"train": "train", "test": "val"}


class Options(DatasetOptions):
    """`wnids` in the order of the labels, `names` of the same classes; `size` of the crop."""

    licence: ClassVar[str] = "ImageNet: non-commercial research and education only"

    folder: str | None = None
    wnids: tuple[Annotated[str, Field(pattern=r"^n\d{8}$")], ...] = Field(min_length=2)
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


class ImageNet(FolderDataset):
    """The shorter side resized, the centre cut out; the validation split is the test split."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The folders of the classes."""
        wnids = self.options.wnids  # type: ignore[attr-defined]
        return tuple(f"{folder}/{wnid}" for folder in FOLDERS.values() for wnid in wnids)

    def pictures(self, root: Path) -> Iterator[Labelled]:
        """Class by class, in the order of the pictures' names."""
        for split, folder in FOLDERS.items():
            for label, wnid in enumerate(self.options.wnids):  # type: ignore[attr-defined]
                files = (root / folder / wnid).glob("*")
                names = sorted(file.name for file in files if file.suffix.lower() in SUFFIXES)
                if not names:
                    raise UserError(f"{root / folder / wnid}: has no pictures")
                yield from (Labelled(split, f"{folder}/{wnid}/{name}", label) for name in names)
