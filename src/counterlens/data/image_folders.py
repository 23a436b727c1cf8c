"""What the datasets share whose pictures lie in a folder that the user names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from counterlens.errors import UserError


def folder_of(dataset: str, folder: str | None, needs: Sequence[str]) -> Path:
    """The folder that a dataset's options name.

    Raises:
        UserError: none is named, or it lacks one of the files and folders that are needed.
    """
    content = ", ".join(needs)
    if folder is None:
        raise UserError(
            f"dataset {dataset}: its terms must be accepted, so nothing is downloaded; get it from "
            f"its authors and name the folder with {content} under `dataset.folder`"
        )
    found = Path(folder).expanduser()
    for name in needs:
        if not (found / name).exists():
            raise UserError(f"dataset {dataset}: {found / name} is missing; needed are {content}")
    return found


def read_pictures(files: Sequence[Path], height: int, width: int, crop: bool) -> np.ndarray:
    """Decode pictures: uint8 (N, 3, height, width), resized (bicubic).

    Args:
        files: in order; a progress bar counts them.
        crop: keep the proportions and cut what is over on both sides, instead of stretching.

    Raises:
        UserError: one is missing or damaged.
    """
    from PIL import Image, ImageOps

    from counterlens.runtime.progress import progress

    found = np.empty((len(files), 3, height, width), np.uint8)
    for place, file in enumerate(progress(files, len(files), "reading pictures")):
        try:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
        except OSError as error:
            raise UserError(f"{file}: {error}") from None
        size, method = (width, height), Image.Resampling.BICUBIC
        shown = ImageOps.fit(picture, size, method) if crop else picture.resize(size, method)
        found[place] = np.asarray(shown).transpose(2, 0, 1)
    return found


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
