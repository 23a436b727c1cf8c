"""CelebA-HQ (Karras et al., ICLR 2018) with CelebA's attributes, from a folder as CelebAMask-HQ.

`CelebA-HQ-img/<n>.jpg`, `CelebAMask-HQ-attribute-anno.txt`, `CelebA-HQ-to-CelebA-mapping.txt`, and
CelebA's `list_eval_partition.txt`, which gives the split. For non-commercial research only; the
pictures must not be published.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset
from counterlens.data.celeba_attributes import ATTRIBUTES, class_names
from counterlens.data.image_folders import folder_of, read_lines, read_pictures
from counterlens.errors import UserError

IMAGES = "CelebA-HQ-img"
ANNOTATION = "CelebAMask-HQ-attribute-anno.txt"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION = "list_eval_partition.txt"
SPLITS = {"train": "0", "test": "2"}


class Options(DatasetOptions):
    """`attribute` as CelebA spells it (class 1 has it); `size` in pixels."""

    attributes: ClassVar[tuple[str, ...]] = ATTRIBUTES
    licence: ClassVar[str] = "CelebA: non-commercial research only, pictures not to be published"

    folder: str | None = None
    attribute: str = "Smiling"
    size: int = Field(default=256, ge=16, le=1024)

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Without and with the attribute."""
        return class_names(self.attribute)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB squares."""
        return (3, self.size, self.size)

    @property
    def name(self) -> str:
        """A folder for each attribute and size."""
        return f"{self.mirror_folder}-{self.attribute.replace('_', '-').lower()}-{self.size}"


class CelebaHQ(Dataset):
    """CelebA's official split; its validation pictures are not used."""

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits, in the order of the pictures' numbers."""
        attribute, folder = self.options.attribute, self.options.folder  # type: ignore[attr-defined]
        root = folder_of(self.name, folder, (IMAGES, ANNOTATION, MAPPING, PARTITION))
        _, header, *rows = read_lines(root / ANNOTATION)
        if (*header.split(),) != ATTRIBUTES:
            raise UserError(f"{root / ANNOTATION}: its columns are not CelebA's")
        if attribute not in ATTRIBUTES:
            known = ", ".join(ATTRIBUTES)
            raise UserError(f"dataset.attribute: '{attribute}' is unknown; known: {known}")
        known_of = {
            row.split()[0]: [int(int(value) > 0) for value in row.split()[1:]]
            for row in rows
            if row.strip()
        }
        split_of = dict(line.split()[:2] for line in read_lines(root / PARTITION) if line.strip())
        numbers: dict[str, list[str]] = {"train": [], "test": []}
        for line in read_lines(root / MAPPING)[1:]:  # index, number in CelebA, name in CelebA
            if not line.strip():
                continue
            number, original = f"{line.split()[0]}.jpg", line.split()[-1]
            if original not in split_of or number not in known_of:
                raise UserError(f"{root / MAPPING}: {number} ({original}) stands in no other list")
            for split, code in SPLITS.items():
                if split_of[original] == code:
                    numbers[split].append(number)
        found = {}
        for split, chosen in numbers.items():
            images = read_pictures([root / IMAGES / n for n in chosen], *self.shape[1:], crop=True)
            known = np.array([known_of[n] for n in chosen], np.uint8).reshape(-1, len(ATTRIBUTES))
            labels = known[:, ATTRIBUTES.index(attribute)].astype(np.int64)
            found[split] = Arrays(images, labels, known)
        return found
