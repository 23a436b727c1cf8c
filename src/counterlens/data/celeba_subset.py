"""A 64x64 subset of CelebA (Liu et al., ICCV 2015) with its 40 attributes, from a mirror.

9,960 aligned faces, centre crop of 178 pixels, JPEG. For non-commercial research only; its terms
forbid to publish any of the pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset, Source
from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.labelled_pictures import Labelled, splits
from counterlens.data.formats.zipped_images import open_zip, read_images, table


class Options(DatasetOptions):
    """A classifier names the `attribute` that it tells, as CelebA spells it."""

    shape: ClassVar[tuple[int, int, int]] = (3, 64, 64)
    attributes: ClassVar[tuple[str, ...]] = ATTRIBUTES
    files: ClassVar[tuple[str, ...]] = ("celeba_subset_64.zip",)
    licence: ClassVar[str] = "CelebA: non-commercial research only, pictures not to be published"

    @property
    def name(self) -> str:
        """Not CelebA's."""
        return f"{self.mirror_folder}-subset"

    @property
    def mirror_folder(self) -> str:
        """Beside CelebA's own files."""
        return "celeba"


class CelebaSubset(Dataset):
    """`labels.csv` in the zip names file, split and attributes; the official split."""

    sources = (
        Source(
            "celeba_subset_64.zip",
            (),
            "1ea571ff3f3513103f8d578683802a1b6cb0c71032e6379a33e1a0f28ed44273",
        ),
    )

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits; the official validation split is not used."""
        with open_zip(raw / self.sources[0].file) as archive:
            labelled = (
                Labelled(
                    row["split"],
                    row["file"],
                    attributes=tuple(int(row[name]) for name in ATTRIBUTES),
                )
                for row in table(archive)
            )
            return splits(labelled, lambda names: read_images(archive, names, self.shape[1]))
