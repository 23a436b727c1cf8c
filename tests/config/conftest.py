"""An empty project to write files of `config/` in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write an experiment or models file (a mapping or YAML text) in an empty project."""
    monkeypatch.chdir(tmp_path)

    def save(
        content: dict[str, Any] | str, name: str = "tiny", folder: str = "experiments"
    ) -> Path:
        path = Path("config") / folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    return save
