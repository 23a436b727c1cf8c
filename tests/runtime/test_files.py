"""Files appear whole or not at all, with the same bytes each time."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from counterlens.errors import UserError
from counterlens.runtime import files


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "model.safetensors"
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing_new(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(error), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []
    files.write_text(path, "first")
    with pytest.raises(error), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def _write_forever(path: Path, started) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        started.set()
        threading.Event().wait()


def test_a_killed_process_leaves_no_output(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    path = tmp_path / "file.bin"
    process = context.Process(target=_write_forever, args=(path, started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    assert not path.exists()
    # what it leaves has a name that no later job looks for
    assert all(left.name.startswith(".file.bin.") for left in tmp_path.iterdir())
    files.write_text(path, "again")
    assert path.read_text() == "again"


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    texts = [str(number) * 50_000 for number in range(8)]
    seen: list[str] = []

    def write(text: str) -> None:
        for _ in range(5):
            files.write_text(path, text)
            seen.append(path.read_text())

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 40 and set(seen) <= set(texts)  # never a mixture, never a part
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_one_spelling(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    files.write_json(first, {"b": [1, 2.5], "a": {"ü": None}})
    files.write_json(second, {"a": {"ü": None}, "b": [1, 2.5]})
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text(encoding="utf-8").endswith("}\n") and "ü" in first.read_text("utf-8")
    assert files.read_json(first) == {"a": {"ü": None}, "b": [1, 2.5]}
    with pytest.raises(ValueError):
        files.write_json(first, {"a": float("nan")})  # no reader agrees on NaN
    assert files.read_json(first)["b"] == [1, 2.5]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1,}', "nothing"])
def test_damaged_json(tmp_path: Path, content: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(content)
    with pytest.raises(
        UserError, match=r"card\.json: damaged JSON .*delete it and rerun"
    ) as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: no such file; run the stage that makes it"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.safetensors: no such file; run the stage"):
        files.load_tensors(tmp_path / "a.safetensors")


TENSORS: dict[str, np.ndarray] = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "turned": np.arange(24, dtype=np.float32).reshape(4, 6).T,
    "strided": np.arange(24, dtype=np.float64)[::-2],
    "step": np.array(7, dtype=np.int64),
    "none": np.zeros((0, 1, 28, 28), np.float32),
    "flags": np.array([True, False]),
}


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    before = {name: array.copy(order="K") for name, array in TENSORS.items()}
    files.save_tensors(path, TENSORS, {"method": "c3lt", "source": "4"})
    found = files.load_tensors(path)
    assert set(found) == set(TENSORS)
    for name, array in TENSORS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(array, before[name])
    assert files.read_metadata(path) == {"method": "c3lt", "source": "4"}
    files.save_tensors(path, {"x": TENSORS["images"]})
    assert files.read_metadata(path) == {}


def _table() -> pd.DataFrame:
    return pd.DataFrame({"image": [3, 5], "p": [0.1, 1 / 3], "path": [[0.5, 1.0], None]})


@pytest.mark.parametrize(
    ("name", "write"),
    [
        (
            "a.safetensors",
            lambda path: files.save_tensors(
                path, dict(sorted(TENSORS.items())), {"b": "2", "a": "1"}
            ),
        ),
        ("a.parquet", lambda path: files.write_parquet(path, _table())),
        ("a.csv", lambda path: files.write_csv(path, _table()[["image", "p"]])),
        ("a.json", lambda path: files.write_json(path, {"a": 1 / 3})),
    ],
)
def test_equal_content_gives_equal_bytes(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    digests = set()
    for number in range(3):
        path = tmp_path / str(number) / name
        write(path)
        digests.add(files.sha256(path))
        os.utime(path, (0, 0))
        assert [p.name for p in path.parent.iterdir()] == [name]
    assert len(digests) == 1


def test_the_order_of_tensors_and_metadata_does_not_matter(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "a", TENSORS, {"a": "1", "b": "2"})
    files.save_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), {"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tables_come_back_at_full_precision(tmp_path: Path) -> None:
    files.write_parquet(tmp_path / "a.parquet", _table())
    found = pd.read_parquet(tmp_path / "a.parquet")
    assert list(found.columns) == ["image", "p", "path"] and found["p"][1] == 1 / 3
    assert list(found["path"][0]) == [0.5, 1.0] and found["path"][1] is None
    files.write_csv(tmp_path / "a.csv", _table()[["image", "p"]])
    lines = (tmp_path / "a.csv").read_bytes().decode().split("\n")
    assert lines[0] == "image,p" and float(lines[2].split(",")[1]) == 1 / 3


@pytest.mark.parametrize("keep", [0, 7, 20, -1])
def test_damaged_tensors(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    files.save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        files.load_tensors(path)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_json_and_text_are_utf8_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    files.write_text(tmp_path / "a.txt", "ε é")
    assert (tmp_path / "a.txt").read_bytes() == "ε é".encode()
    files.write_json(tmp_path / "a.json", "ε")
    assert json.loads((tmp_path / "a.json").read_bytes()) == "ε"
