from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterlens import layout
from counterlens.config import Experiment
from counterlens.data.base import ImageSet, load_split
from counterlens.runtime import files


@pytest.fixture
def experiment(make_experiment: Callable[..., Experiment]) -> Callable[..., Experiment]:
    """An experiment on MNIST's shape with the oracles that a test asks for."""

    def make(
        oracles: dict[str, dict], classifier: dict | str | None = None, **sections: Any
    ) -> Experiment:
        chosen = classifier
        if not isinstance(chosen, str):
            chosen = {"kind": "lenet", "epochs": 2, **(chosen or {})}
        return make_experiment(pairs=[(0, 1)], classifier=chosen, oracles=oracles, **sections)

    return make


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ImageSet]:
    """Left, right and empty squares as classes 0, 1 and 2, prepared in an empty folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    sets = {}
    for split, count in (("train", 90), ("test", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 40, (count, 1, 28, 28))
        images[labels == 0, :, 6:22, 4:14] += 200
        images[labels == 1, :, 6:22, 14:24] += 200
        path = layout.prepared("mnist", split)
        files.save_tensors(path, {"images": images.astype(np.uint8), "labels": labels})
        sets[split] = load_split(path)
    return sets
