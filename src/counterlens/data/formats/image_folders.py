"""What the datasets share whose pictures lie in a folder that the user names."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from counterlens.data.base import SPLITS, Arrays, Dataset, SourceRecord
from counterlens.data.formats.labelled_pictures import Labelled, splits
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.progress import progress


class FolderDataset(Dataset):
    """Pictures in a folder that the user names as the option `folder`; nothing is downloaded.

    Subclasses tell what the folder must have (`needs`) and what its pictures are (`pictures`).
    """

    crop: ClassVar[bool] = True
    """Whether a picture of other proportions is cut instead of stretched."""

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The files and folders that the folder must have."""

    @abstractmethod
    def pictures(self, root: Path) -> Iterator[Labelled]:
        """The pictures of the folder, by their paths in it.

        Raises:
            UserError: a list is damaged, or there are no pictures.
        """

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits, RGB, resized (bicubic); `raw` is not used."""
        root, (_, height, width) = self._root(), self.shape
        return splits(
            self.pictures(root),
            lambda names: read_pictures([root / name for name in names], height, width, self.crop),
        )

    def records(self, raw: Path) -> tuple[SourceRecord, ...]:
        """The lists, and as one file what `sha256sum` prints of the pictures of both splits."""
        root = self._root()
        names = [picture.name for picture in self.pictures(root) if picture.split in SPLITS]
        sums = hashlib.sha256()
        for name in progress(names, len(names), "checksums of the pictures"):
            sums.update(f"{files.sha256(root / name)}  {name}\n".encode())
        lists = [name for name in self.needs if (root / name).is_file()]
        return (
            *(SourceRecord(file=name, sha256=files.sha256(root / name)) for name in lists),
            SourceRecord(file=f"{len(names)} pictures", sha256=sums.hexdigest()),
        )

    def _root(self) -> Path:
        folder = self.options.folder  # type: ignore[attr-defined]
        content = ", ".join(self.needs)
        if folder is None:
            raise UserError(
                f"dataset {self.name}: its terms must be accepted, so nothing is downloaded; get "
                f"it from its authors and name the folder with {content} under `dataset.folder`"
            )
        root = Path(folder).expanduser()
        for name in self.needs:
            if not (root / name).exists():
                raise UserError(
                    f"dataset {self.name}: {root / name} is missing; needed are {content}"
                )
        return root


def read_pictures(paths: Sequence[Path], height: int, width: int, crop: bool) -> np.ndarray:
    """Decode pictures: uint8 (N, 3, height, width), turned as EXIF says and resized (bicubic).

    Args:
        paths: in order; a progress bar counts them.
        crop: keep the proportions and cut what is over on both sides, instead of stretching.

    Raises:
        UserError: one is missing or damaged.
    """
    from PIL import Image, ImageOps

    images = np.empty((len(paths), 3, height, width), np.uint8)
    for place, path in enumerate(progress(paths, len(paths), "reading pictures")):
        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError as error:
            raise UserError(f"{path}: {error}") from None
        size, method = (width, height), Image.Resampling.BICUBIC
        shown = ImageOps.fit(picture, size, method) if crop else picture.resize(size, method)
        images[place] = np.asarray(shown).transpose(2, 0, 1)
    return images


def read_lines(file: Path) -> list[str]:
    """A text file's lines.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from None
