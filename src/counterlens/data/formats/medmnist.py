"""The `.npz` format of MedMNIST (Yang et al., Scientific Data 2023) and files like it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from counterlens.data.base import Arrays, Dataset
from counterlens.errors import UserError


class MedMnistDataset(Dataset):
    """One `.npz` with `{train,val,test}_images` uint8 (N, H, W[, C]) and `*_labels` (N, 1).

    The validation split is not used: `train` and `test` are taken as they are.
    """

    def read(self, raw: Path) -> dict[str, Arrays]:
        """Both splits, in the file's order."""
        (source,) = self.sources
        path = raw / source.file
        try:
            with np.load(path, allow_pickle=False) as content:
                return {split: self._split(content, split) for split in ("train", "test")}
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; download the dataset first") from None
        except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{path}: not a readable MedMNIST file ({error}); delete it and download it again"
            ) from None

    def _split(self, content: np.lib.npyio.NpzFile, split: str) -> Arrays:
        images = content[f"{split}_images"]
        labels = content[f"{split}_labels"].reshape(-1).astype(np.int64)
        images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
        return Arrays(np.ascontiguousarray(images), labels)
