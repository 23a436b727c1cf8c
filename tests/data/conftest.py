"""A file server on this machine, and small files in place of the public ones."""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from counterlens.data.base import Source
from counterlens.data.formats import fetch


@dataclass
class Server:
    """Serves `content` by path; the other fields make it misbehave."""

    url: str
    content: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    breaks: dict[str, list[int]] = field(default_factory=dict)  # bytes sent before each break
    statuses: list[int] = field(default_factory=list)  # answered first, one per request
    supports_range: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def source(self, name: str, *paths: str, content: bytes) -> Source:
        """A source whose right content is `content`."""
        urls = tuple(f"{self.url}{path}" for path in paths)
        return Source(name, urls, hashlib.sha256(content).hexdigest())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            if self.path not in state.content:
                self.send_error(404)
                return
            body, start = state.content[self.path], 0
            if wanted and state.supports_range:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body) - start))
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            breaks = state.breaks.get(self.path)
            self.wfile.write(body[start:][: breaks.pop(0)] if breaks else body[start:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def no_mirror(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no mirror of the machine they run on, except those that ask for it."""
    if "public_mirror" not in request.fixturenames:
        monkeypatch.delenv(fetch.MIRROR_VARIABLE, raising=False)


@pytest.fixture
def public_mirror() -> str:
    """The machine's mirror of the public datasets."""
    mirror = os.environ.get(fetch.MIRROR_VARIABLE)
    if not mirror:
        pytest.skip(f"{fetch.MIRROR_VARIABLE} is not set")
    return mirror


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """An empty mirror folder with a folder `numbers` in it."""
    folder = tmp_path / "mirror"
    (folder / "numbers").mkdir(parents=True)
    return folder
