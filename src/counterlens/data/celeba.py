"""CelebA (Liu et al., ICCV 2015): 202,599 aligned faces with 40 attributes.

Its terms must be accepted first, so nothing is downloaded: put the three official files into
`data/raw/<dataset>/` or a mirror. The pictures must not be published.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset, Source
from counterlens.data.formats.celeba_lists import read_attributes, read_partition
from counterlens.data.formats.celeba_options import ATTRIBUTES
from counterlens.data.formats.labelled_pictures import Labelled, splits
from counterlens.data.formats.zipped_images import open_zip, read_images
from counterlens.errors import UserError

IMAGES = "img_align_celeba"
CROP = 178


class Options(DatasetOptions):
    """`size` in pixels of the centre crop. A classifier names the `attribute` that it tells."""

    attributes: ClassVar[tuple[str, ...]] = ATTRIBUTES
    files: ClassVar[tuple[str, ...]] = (
        "img_align_celeba.zip",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    )
    licence: ClassVar[str] = "CelebA: non-commercial research only, pictures not to be published"

    size: int = Field(default=128, ge=16, le=178)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB squares."""
        return (3, self.size, self.size)

    @property
    def name(self) -> str:
        """A folder for each size."""
        return f"{self.mirror_folder}-{self.size}"


class Celeba(Dataset):
    """The official split; centre crop of 178 pixels, resized (Lanczos)."""

    sources = (
        Source("img_align_celeba.zip", (), "md5:00d2c5bc6d35e252742224ab0c1e8fcb"),
        Source("list_attr_celeba.txt", (), "md5:75e246fa4810816ffd6ee81facbd244c"),
        Source("list_eval_partition.txt", (), "md5:d32c9cbf5e040fd4025c592c306e6668"),
    )

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits; the official validation split is not used."""
        zipped, attributes, partition = (raw / source.file for source in self.sources)
        known = read_attributes(attributes)

        def labelled() -> Iterator[Labelled]:
            for file, split in read_partition(partition).items():
                if file not in known:
                    raise UserError(f"{attributes}: has no row for {file}; download it again")
                yield Labelled(split, f"{IMAGES}/{file}", attributes=known[file])

        with open_zip(zipped) as archive:
            return splits(
                labelled(), lambda names: read_images(archive, names, self.shape[1], CROP)
            )
