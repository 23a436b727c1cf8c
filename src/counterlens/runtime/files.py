"""Files that appear whole or not at all. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterlens.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

METADATA = "counterlens"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block succeeds.

    The file is flushed to disk before it is renamed; on an error nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); delete it and rerun") from None


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV at full precision, without its index."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def save_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as safetensors.

    The metadata is kept as one JSON entry: the library writes several in no fixed order.
    """
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={METADATA: text} if metadata else None)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read safetensors as arrays.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors.numpy import load_file

    with _whole_safetensors(path):
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata that `save_tensors` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import safe_open

    with _whole_safetensors(path), safe_open(path, "numpy") as opened:
        return json.loads((opened.metadata() or {}).get(METADATA, "{}"))


@contextmanager
def _whole_safetensors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); delete it") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def md5(path: Path) -> str:
    """Hexadecimal MD5 of a file's content: for downloads whose publisher states nothing better."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "md5").hexdigest()
