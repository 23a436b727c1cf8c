"""BDD-OIA (Xu et al., CVPR 2020): what a driver may do, from a folder in its published layout.

`data/<picture>`, `train_25k_images_actions.json` and `val_25k_images_actions.json`. Its terms must
be accepted first.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.base import Arrays, Dataset
from counterlens.data.image_folders import folder_of, read_json, read_pictures
from counterlens.errors import UserError

IMAGES = "data"
LISTS = {"train": "train_25k_images_actions.json", "test": "val_25k_images_actions.json"}


class Options(DatasetOptions):
    """`attribute`: the action that is the label; `height` in pixels, the width is twice that."""

    attributes: ClassVar[tuple[str, ...]] = ("forward", "stop", "left", "right")
    licence: ClassVar[str] = "BDD100K: non-commercial research and education only"

    folder: str | None = None
    attribute: str = "forward"
    height: int = Field(default=256, ge=16)

    @property
    def classes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Without and with the action."""
        return (f"not {self.attribute}", self.attribute)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB, twice as wide as high."""
        return (3, self.height, 2 * self.height)

    @property
    def name(self) -> str:
        """A folder for each action and size."""
        return f"{self.mirror_folder}-{self.attribute}-{self.height}"


class BddOia(Dataset):
    """Pictures with four actions, or with the fifth ("confusing") not set, as the release does."""

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits, in the order of the lists."""
        attribute, folder = self.options.attribute, self.options.folder  # type: ignore[attr-defined]
        root = folder_of(self.name, folder, (IMAGES, *LISTS.values()))
        if attribute not in self.attributes:
            known = ", ".join(self.attributes)
            raise UserError(f"dataset.attribute: '{attribute}' is unknown; known: {known}")
        found = {}
        for split, name in LISTS.items():
            content = read_json(root / name)
            try:
                listed = [
                    (image["file_name"], annotation["category"])
                    for image, annotation in zip(
                        content["images"], content["annotations"], strict=True
                    )
                ]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{root / name}: not BDD-OIA's list of actions ({error})") from None
            kept = [(n, actions) for n, actions in listed if len(actions) == 4 or not actions[4]]
            images = read_pictures(
                [root / IMAGES / n for n, _ in kept], *self.shape[1:], crop=False
            )
            known = np.array([actions[:4] for _, actions in kept], np.uint8).reshape(-1, 4)
            labels = known[:, self.attributes.index(attribute)].astype(np.int64)
            found[split] = Arrays(images, labels, known)
        return found
