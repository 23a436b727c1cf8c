"""How long a stage takes, in a file beside its outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from counterlens.runtime import files


@contextmanager
def timed(path: Path, threads: int) -> Iterator[None]:
    """Write the seconds of the block to `path`, with device and threads, unless it fails.

    Of a training that was killed and resumed it is the last run that counts.
    """
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    from counterlens.runtime import device

    files.write_json(path, {"seconds": seconds, "device": device.describe(), "threads": threads})
