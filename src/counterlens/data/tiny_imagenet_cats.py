"""Four cats of Tiny ImageNet (Stanford CS231n), 64x64, from a mirror.

500 training and 50 validation images of each class; the official validation split is the test
split. For non-commercial research and education only.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset, Source
from counterlens.data.formats.labelled_pictures import Labelled, splits
from counterlens.data.formats.zipped_images import open_zip, read_images, table


class Options(DatasetOptions):
    """Nothing to choose."""

    classes: ClassVar[tuple[str, ...]] = ("Persian cat", "Egyptian cat", "cougar", "lion")
    shape: ClassVar[tuple[int, int, int]] = (3, 64, 64)
    files: ClassVar[tuple[str, ...]] = ("tiny_imagenet_cats_64.zip",)
    licence: ClassVar[str] = "ImageNet: non-commercial research and education only"


class TinyImagenetCats(Dataset):
    """`labels.csv` in the zip names file, label and split."""

    sources = (
        Source(
            "tiny_imagenet_cats_64.zip",
            (),
            "b58d37213d70640972b2cf0f70657b86cc7cc657eda2046ac9d72649204e1ebc",
        ),
    )

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits."""
        with open_zip(raw / self.sources[0].file) as archive:
            rows = table(archive)
            named = {"train": "train", "val": "test"}
            labelled = (
                Labelled(named[row["split"]], row["file"], int(row["label"])) for row in rows
            )
            return splits(labelled, lambda names: read_images(archive, names, self.shape[1]))
