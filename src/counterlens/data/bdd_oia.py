"""BDD-OIA (Xu et al., CVPR 2020): what a driver may do, from a folder in its published layout.

`data/<picture>`, `train_25k_images_actions.json` and `val_25k_images_actions.json`. Its terms must
be accepted first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from counterlens.config import DatasetOptions
from counterlens.data.formats.image_folders import FolderDataset, read_json
from counterlens.data.formats.labelled_pictures import Labelled
from counterlens.errors import UserError

IMAGES = "data"
LISTS = {"train": "train_25k_images_actions.json", "test": "val_25k_images_actions.json"}


class Options(DatasetOptions):
    """`height` in pixels, the width is twice that. A classifier names the action that it tells."""

    attributes: ClassVar[tuple[str, ...]] = ("forward", "stop", "left", "right")
    licence: ClassVar[str] = "BDD100K: non-commercial research and education only"

    folder: str | None = None
    height: int = Field(default=256, ge=16)

    @property
    def shape(self) -> tuple[int, int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """RGB, twice as wide as high."""
        return (3, self.height, 2 * self.height)

    @property
    def name(self) -> str:
        """A folder for each size."""
        return f"{self.mirror_folder}-{self.height}"


class BddOia(FolderDataset):
    """Pictures with four actions, or with the fifth ("confusing") not set, as the release does."""

    crop = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The pictures and the two lists."""
        return (IMAGES, *LISTS.values())

    def pictures(self, root: Path) -> Iterator[Labelled]:
        """In the order of the lists; a picture's `id` is the place of its annotation."""
        for split, name in LISTS.items():
            content = read_json(root / name)
            try:
                annotations = content["annotations"]
                listed = [
                    (image["file_name"], tuple(annotations[image["id"]]["category"]))
                    for image in content["images"]
                ]
            except (KeyError, IndexError, TypeError) as error:
                raise UserError(f"{root / name}: not BDD-OIA's list of actions ({error})") from None
            for file, actions in listed:
                if len(actions) not in (4, 5) or not {*actions} <= {0, 1}:
                    raise UserError(f"{root / name}: {file}: its actions are not 4 or 5 of 0 and 1")
                if len(actions) == 4 or not actions[4]:
                    yield Labelled(split, f"{IMAGES}/{file}", attributes=actions[:4])
