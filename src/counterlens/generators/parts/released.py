"""Reading the checkpoints that authors release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from counterlens.errors import UserError
from counterlens.runtime import files


def read_checkpoint(path: Path, sha256: str) -> Any:
    """The content of a `.pt`, `.pth` or `.tar` of PyTorch: tensors in dictionaries, no objects.

    Raises:
        UserError: the file is missing or another one, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; download the checkpoint from its authors and name it under "
            "the options of the generator"
        )
    digest = files.sha256(path)
    if digest != sha256:
        raise UserError(f"{path}: its SHA-256 is {digest}, not {sha256}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: holds not tensors alone, or is damaged ({error})") from None
