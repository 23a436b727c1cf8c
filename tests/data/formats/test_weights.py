"""Named weights: available, or a record that says why not."""

import hashlib
import json
from pathlib import Path

import pytest

from counterlens.data.base import Source
from counterlens.data.formats import weights
from counterlens.data.formats.weights import WEIGHTS, Weight, fetch_weight, load_weight_record
from counterlens.errors import UserError

CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RECORD = Path("data/weights/small.json")


@pytest.fixture
def register(monkeypatch, tmp_path):
    """Registers a weight "small" with these URLs; the test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def do(*urls: str) -> None:
        small = Weight(Source("small.pth", urls, SHA256), "MIT")
        monkeypatch.setattr(weights, "WEIGHTS", {"small": small})

    return do


def test_fetched_weight_is_recorded_with_its_place(server, register):
    server.content = {"/small.pth": CONTENT}
    register(f"{server.url}/small.pth")
    fetch_weight("small", RECORD)
    assert json.loads(RECORD.read_text()) == {
        "name": "small",
        "available": True,
        "file": "data/weights/small.pth",
        "sha256": SHA256,
        "reason": None,
    }
    assert Path("data/weights/small.pth").read_bytes() == CONTENT
    assert load_weight_record(RECORD).available


def test_weight_from_a_mirror(register, mirror):
    register("http://127.0.0.1:9/small.pth")
    (mirror / "weights").mkdir()
    (mirror / "weights" / "small.pth").write_bytes(CONTENT)
    assert fetch_weight("small", RECORD, str(mirror)).available


def test_unreachable_weight_is_not_available_with_the_reason(register, mirror):
    register("http://127.0.0.1:9/small.pth")
    fetch_weight("small", RECORD, str(mirror))
    assert json.loads(RECORD.read_text()) == {
        "name": "small",
        "available": False,
        "file": None,
        "sha256": SHA256,
        "reason": "mirror: has no file weights/small.pth; "
        "http://127.0.0.1:9/small.pth: no answer (ConnectionError)",
    }
    first = RECORD.read_bytes()
    fetch_weight("small", RECORD, str(mirror))
    assert RECORD.read_bytes() == first


def test_wrong_checksum_is_not_available(server, register):
    server.content = {"/small.pth": b"something else"}
    register(f"{server.url}/small.pth")
    record = fetch_weight("small", RECORD)
    assert not record.available and record.file is None
    assert record.reason is not None and "wrong SHA-256" in record.reason
    assert not Path("data/weights/small.pth").exists()


def test_record_whose_file_is_gone_or_changed_is_refused(server, register):
    server.content = {"/small.pth": CONTENT}
    register(f"{server.url}/small.pth")
    fetch_weight("small", RECORD)
    Path("data/weights/small.pth").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"small\.pth: missing or changed"):
        load_weight_record(RECORD)
    Path("data/weights/small.pth").unlink()
    with pytest.raises(UserError, match=r"small\.pth: missing or changed"):
        load_weight_record(RECORD)


def test_damaged_record_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"x\.json: not a weight record"):
        load_weight_record(tmp_path / "x.json")


def test_unknown_weight_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="'inception' is unknown; allowed: inception-v3-fid"):
        fetch_weight("inception", tmp_path / "x.json")


def test_registry_is_complete():
    for weight in WEIGHTS.values():
        assert weight.licence and weight.source.urls
        assert len(weight.source.sha256) == 64
        # The published files carry the first digits of their checksums in their names.
        assert weight.source.sha256.startswith(weight.source.file[:-4].split("-")[-1])
