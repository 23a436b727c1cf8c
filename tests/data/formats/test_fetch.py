"""The fetcher, against a server on this machine and mirror folders."""

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterlens.data.base import Source
from counterlens.data.formats import fetch
from counterlens.data.formats.fetch import FetchError
from counterlens.errors import UserError
from counterlens.experiments import dataset_options

GOOD = bytes(range(256)) * 2000  # more than one chunk
BAD = b"<html>this is not the file</html>"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_wrong_checksum_is_set_aside_and_the_next_source_is_tried(server, tmp_path):
    server.content = {"/bad": BAD, "/good": GOOD}
    source = server.source("f.bin", "/bad", "/good", content=GOOD)
    output = tmp_path / "raw" / "f.bin"
    assert fetch.fetch(source, "numbers", output) == output
    assert output.read_bytes() == GOOD
    assert left(output.parent) == ["f.bin", f"f.bin.bad-{digest(BAD)[:8]}"]
    assert (output.parent / f"f.bin.bad-{digest(BAD)[:8]}").read_bytes() == BAD


def test_error_names_every_source_and_the_remedy_in_one_line(server, tmp_path):
    server.content = {"/bad": BAD}
    source = server.source("f.bin", "/bad", "/absent", content=GOOD)
    output = tmp_path / "raw" / "f.bin"
    with pytest.raises(FetchError) as caught:
        fetch.fetch(source, "numbers", output)
    text = str(caught.value)
    assert f"{server.url}/bad: wrong SHA-256 {digest(BAD)}" in text
    assert f"{server.url}/absent: HTTP status 404" in text
    assert "COUNTERLENS_MIRROR" in text and "numbers/f.bin" in text and str(output) in text
    assert "\n" not in text
    assert len(caught.value.reasons) == 2
    assert not output.exists()


def test_a_publisher_may_state_an_md5(server, tmp_path):
    server.content = {"/bad": BAD, "/good": GOOD}
    md5, found = (hashlib.md5(content).hexdigest() for content in (GOOD, BAD))
    right = Source("f.bin", (f"{server.url}/bad", f"{server.url}/good"), f"md5:{md5}")
    fetch.fetch(right, "numbers", tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == GOOD
    asked = len(server.requests)
    fetch.fetch(right, "numbers", tmp_path / "f.bin")
    assert len(server.requests) == asked
    with pytest.raises(FetchError) as caught:
        fetch.fetch(Source("g", (f"{server.url}/bad",), f"md5:{md5}"), "numbers", tmp_path / "g")
    assert f"gave the file with MD5 {md5}: " in str(caught.value)
    assert f"wrong MD5 {found} (kept as g.bad-{digest(BAD)[:8]})" in str(caught.value)


def test_file_with_the_right_checksum_is_kept_without_a_request(server, tmp_path):
    source = server.source("f.bin", "/good", content=GOOD)
    output = tmp_path / "f.bin"
    output.write_bytes(GOOD)
    before = output.stat().st_mtime_ns
    fetch.fetch(source, "numbers", output)
    assert output.stat().st_mtime_ns == before
    assert server.requests == []


def test_file_with_a_wrong_checksum_is_replaced_and_kept_aside(server, tmp_path):
    server.content = {"/good": GOOD}
    output = tmp_path / "f.bin"
    output.write_bytes(BAD)
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert output.read_bytes() == GOOD
    assert left(tmp_path) == ["f.bin", f"f.bin.bad-{digest(BAD)[:8]}"]


def test_broken_connection_is_resumed_with_a_range_request(server, tmp_path):
    server.content = {"/good": GOOD}
    server.breaks = {"/good": [200_000, 100_000]}
    output = tmp_path / "f.bin"
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert output.read_bytes() == GOOD
    first, *later = [asked for _, asked in server.requests]
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in later]
    assert first is None
    assert len(starts) == 2 and 0 < starts[0] <= 200_000 and starts[0] < starts[1] <= 300_000
    assert left(tmp_path) == ["f.bin"]


def test_part_of_an_earlier_run_is_resumed(server, tmp_path):
    server.content = {"/good": GOOD}
    (tmp_path / "f.bin.part").write_bytes(GOOD[:1000])
    output = tmp_path / "f.bin"
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert server.requests == [("/good", "bytes=1000-")]
    assert output.read_bytes() == GOOD
    assert left(tmp_path) == ["f.bin"]


def test_complete_part_needs_no_request(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(GOOD)
    output = tmp_path / "f.bin"
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert server.requests == []
    assert output.read_bytes() == GOOD


@pytest.mark.parametrize("part", [b"x" * 1000, GOOD + b"more"], ids=["other bytes", "too long"])
def test_part_that_does_not_fit_is_dropped(server, tmp_path, part):
    server.content = {"/good": GOOD}
    (tmp_path / "f.bin.part").write_bytes(part)
    output = tmp_path / "f.bin"
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert output.read_bytes() == GOOD
    assert server.requests[-1] == ("/good", None)
    assert left(tmp_path) == ["f.bin"]


def test_server_without_range_support_starts_again(server, tmp_path):
    server.content = {"/good": GOOD}
    server.supports_range = False
    (tmp_path / "f.bin.part").write_bytes(GOOD[:1000])
    output = tmp_path / "f.bin"
    fetch.fetch(server.source("f.bin", "/good", content=GOOD), "numbers", output)
    assert output.read_bytes() == GOOD
    assert len(server.requests) == 1


def test_server_error_is_retried_and_a_missing_file_is_not(server, tmp_path):
    server.content = {"/good": GOOD}
    server.statuses = [503, 503]
    fetch.fetch(server.source("f", "/good", content=GOOD), "numbers", tmp_path / "f")
    assert len(server.requests) == 3
    server.requests.clear()
    with pytest.raises(FetchError):
        fetch.fetch(server.source("g", "/absent", content=GOOD), "numbers", tmp_path / "g")
    assert len(server.requests) == 1


def test_server_error_without_end_gives_up(server, tmp_path):
    server.statuses = [503] * 10
    with pytest.raises(FetchError, match="HTTP status 503"):
        fetch.fetch(server.source("f", "/good", content=GOOD), "numbers", tmp_path / "f")
    assert len(server.requests) == fetch.ATTEMPTS


def test_connection_that_always_breaks_at_the_same_byte_gives_up(server, tmp_path):
    server.content = {"/good": GOOD}
    server.supports_range = False
    server.breaks = {"/good": [40_000] * 20}
    with pytest.raises(FetchError, match=r"broke after 3\d{4} bytes"):
        fetch.fetch(server.source("f", "/good", content=GOOD), "numbers", tmp_path / "f")
    assert len(server.requests) <= 2 * fetch.ATTEMPTS


def test_gz_file_labelled_as_encoded_arrives_as_stored(server, tmp_path):
    packed = gzip.compress(GOOD, mtime=0)
    server.content = {"/f.gz": packed}
    server.headers = {"Content-Encoding": "gzip"}
    output = tmp_path / "f.gz"
    fetch.fetch(server.source("f.gz", "/f.gz", content=packed), "numbers", output)
    assert output.read_bytes() == packed


def test_no_server_is_a_reason_and_not_a_traceback(tmp_path):
    source = Source("f", ("http://127.0.0.1:9/f", "nonsense"), digest(GOOD))
    with pytest.raises(FetchError) as caught:
        fetch.fetch(source, "numbers", tmp_path / "f")
    assert caught.value.reasons[0] == "http://127.0.0.1:9/f: no answer (ConnectionError)"
    assert caught.value.reasons[1] == "nonsense: no answer (MissingSchema)"
    assert left(tmp_path) == []


def test_mirror_folder_comes_first(server, mirror, tmp_path):
    (mirror / "numbers" / "f.bin").write_bytes(GOOD)
    source = server.source("f.bin", "/good", content=GOOD)
    fetch.fetch(source, "numbers", tmp_path / "f.bin", str(mirror))
    assert (tmp_path / "f.bin").read_bytes() == GOOD
    assert server.requests == []


def test_mirror_url_comes_first(server, tmp_path):
    server.content = {"/mirror/numbers/f.bin": GOOD}
    source = server.source("f.bin", "/absent", content=GOOD)
    fetch.fetch(source, "numbers", tmp_path / "f.bin", f"{server.url}/mirror/")
    assert [path for path, _ in server.requests] == ["/mirror/numbers/f.bin"]


def test_environment_wins_over_the_argument(mirror, tmp_path, monkeypatch):
    (mirror / "numbers" / "f.bin").write_bytes(GOOD)
    monkeypatch.setenv("COUNTERLENS_MIRROR", str(mirror))
    source = Source("f.bin", (), digest(GOOD))
    fetch.fetch(source, "numbers", tmp_path / "f.bin", str(tmp_path / "nowhere"))
    assert (tmp_path / "f.bin").read_bytes() == GOOD


def test_missing_mirror_is_told_and_the_urls_are_tried(server, tmp_path):
    server.content = {"/good": GOOD}
    nowhere = str(tmp_path / "nowhere")
    fetch.fetch(server.source("f", "/good", content=GOOD), "numbers", tmp_path / "f", nowhere)
    assert (tmp_path / "f").read_bytes() == GOOD
    with pytest.raises(FetchError) as caught:
        fetch.fetch(server.source("g", "/no", content=GOOD), "numbers", tmp_path / "g", nowhere)
    assert caught.value.reasons[0] == "mirror: the folder does not exist"
    assert nowhere in str(caught.value)


def test_mirror_without_the_file_or_with_a_damaged_one(server, mirror, tmp_path):
    server.content = {"/good": GOOD}
    (mirror / "numbers" / "f").write_bytes(GOOD[:-1])
    fetch.fetch(server.source("f", "/good", content=GOOD), "numbers", tmp_path / "f", str(mirror))
    assert (tmp_path / "f").read_bytes() == GOOD
    assert (tmp_path / f"f.bad-{digest(GOOD[:-1])[:8]}").exists()
    assert (mirror / "numbers" / "f").read_bytes() == GOOD[:-1]
    with pytest.raises(FetchError) as caught:
        fetch.fetch(Source("g", (), digest(GOOD)), "numbers", tmp_path / "g", str(mirror))
    assert caught.value.reasons == ("mirror: has no file numbers/g",)


def test_password_of_a_mirror_is_not_printed(server, tmp_path):
    secret = server.url.replace("http://", "http://me:hush@")
    with pytest.raises(FetchError) as caught:
        fetch.fetch(server.source("f", "/no", content=GOOD), "numbers", tmp_path / "f", secret)
    assert "hush" not in str(caught.value)
    assert "hush" not in " ".join(caught.value.reasons)


def test_output_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"while fetching .*; free space or change permissions"):
        fetch.fetch(Source("f", (), digest(GOOD)), "numbers", tmp_path / "file" / "f")


def test_dataset_file_from_a_mirror(mirror, tmp_path, monkeypatch):
    from counterlens.data.mnist import Mnist

    name = "t10k-labels-idx1-ubyte.gz"
    monkeypatch.setattr(Mnist, "sources", (Source(name, (), digest(GOOD)),))
    (mirror / "mnist").mkdir()
    (mirror / "mnist" / name).write_bytes(GOOD)
    mnist = dataset_options("mnist", [])
    fetch.fetch_dataset_file(mnist, name, tmp_path / "out", str(mirror))
    assert (tmp_path / "out").read_bytes() == GOOD


def test_unknown_dataset_or_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"'nmist' is unknown; allowed: .*mnist"):
        dataset_options("nmist", [])
    with pytest.raises(UserError, match=r"^mnist: .*train-images-idx3-ubyte\.gz"):
        fetch.fetch_dataset_file(dataset_options("mnist", []), "x", tmp_path / "x")
    with pytest.raises(UserError, match="needs no download"):
        fetch.fetch_dataset_file(dataset_options("digits", []), "x", tmp_path / "x")


def test_fetching_and_preparing_import_neither_torch_nor_sklearn():
    script = (
        "import sys; from counterlens import plugins; "
        "from counterlens.data import base; "
        "from counterlens.data.formats import fetch, prepare, weights; "
        "[plugins.implementation('data', kind, base.Dataset) for kind in plugins.known('data')]; "
        "print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"
