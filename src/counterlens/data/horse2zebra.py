"""Horses and zebras of CycleGAN's horse2zebra (Zhu et al., ICCV 2017), 128x128, from a mirror.

The official split; re-encoded from 256x256. The horses are ImageNet's "wild horse", which is not
the "sorrel" of the 1,000 classes. For non-commercial research and education only.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset, Source
from counterlens.data.formats.labelled_pictures import Labelled, splits
from counterlens.data.formats.zipped_images import open_zip, read_images, table


class Options(DatasetOptions):
    """`size` in pixels, resized (Lanczos)."""

    classes: ClassVar[tuple[str, ...]] = ("horse", "zebra")
    files: ClassVar[tuple[str, ...]] = ("horse2zebra_128.zip",)
    licence: ClassVar[str] = "ImageNet: non-commercial research and education only"

    size: int = Field(default=64, ge=16, le=128)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB squares."""
        return (3, self.size, self.size)

    @property
    def name(self) -> str:
        """A folder for each size."""
        return f"{self.mirror_folder}-{self.size}"


class Horse2Zebra(Dataset):
    """`labels.csv` in the zip names file, label and split."""

    sources = (
        Source(
            "horse2zebra_128.zip",
            (),
            "4310995d6aceb620a5abcee4611f58d83524cfe51034d3076360e15f6be8fbe4",
        ),
    )

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits."""
        with open_zip(raw / self.sources[0].file) as archive:
            rows = table(archive)
            labelled = (Labelled(row["split"], row["file"], int(row["label"])) for row in rows)
            return splits(labelled, lambda names: read_images(archive, names, self.shape[1]))
