"""The time of a stage is written when it ends, and only then."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from counterlens.runtime import files
from counterlens.runtime.stopwatch import timed


def test_the_seconds_of_the_block(tmp_path: Path) -> None:
    began = time.perf_counter()
    with timed(tmp_path / "a/b.json", threads=3):
        time.sleep(0.05)
    most = time.perf_counter() - began
    found = files.read_json(tmp_path / "a/b.json")
    assert 0.05 <= found["seconds"] <= most
    assert found["threads"] == 3 and found["device"]


def test_nothing_is_written_of_a_stage_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), timed(tmp_path / "b.json", threads=1):
        _ = 1 / 0
    assert not (tmp_path / "b.json").exists()
