"""CelebA-HQ (Karras et al., ICLR 2018) with CelebA's attributes, from a folder as CelebAMask-HQ.

`CelebA-HQ-img/<n>.jpg`, `CelebAMask-HQ-attribute-anno.txt`, `CelebA-HQ-to-CelebA-mapping.txt`, and
CelebA's `list_eval_partition.txt`, which gives the split. For non-commercial research only; the
pictures must not be published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.formats.celeba_lists import read_attributes, read_partition
from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.image_folders import FolderDataset, read_lines
from counterlens.data.formats.labelled_pictures import Labelled
from counterlens.errors import UserError

IMAGES = "CelebA-HQ-img"
ANNOTATION = "CelebAMask-HQ-attribute-anno.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION = "list_eval_partition.txt"


class Options(DatasetOptions):
    """`size` in pixels. A classifier names the `attribute` that it tells, as CelebA spells it."""

    attributes: ClassVar[tuple[str, ...]] = ATTRIBUTES
    licence: ClassVar[str] = "CelebA: non-commercial research only, pictures not to be published"

    folder: str | None = None
    size: int = Field(default=256, ge=16, le=1024)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB squares."""
        return (3, self.size, self.size)

    @property
    def name(self) -> str:
        """A folder for each size."""
        return f"{self.mirror_folder}-{self.size}"


class CelebaHQ(FolderDataset):
    """CelebA's official split; its validation pictures are not used."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The pictures and the three lists."""
        return (IMAGES, ANNOTATION, MAPPING, PARTITION)

    def pictures(self, root: Path) -> Iterator[Labelled]:
        """In the order of the pictures' numbers."""
        known, split_of = read_attributes(root / ANNOTATION), read_partition(root / PARTITION)
        _, *rows = [*read_lines(root / MAPPING), ""]
        for row in filter(str.strip, rows):  # number, number in CelebA, name in CelebA
            number, original = f"{row.split()[0]}.jpg", row.split()[-1]
            if original not in split_of or number not in known:
                raise UserError(f"{root / MAPPING}: {number} ({original}) stands in no other list")
            picture = f"{IMAGES}/{number}"
            yield Labelled(split_of[original], picture, attributes=known[number])
