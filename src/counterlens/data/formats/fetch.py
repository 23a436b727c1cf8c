"""The one way a file gets from the outside into `data/`: checked, resumable, never half there.

The sources of a file are tried in order. First the mirror, if there is one: a folder or an
http(s) URL laid out as `<dataset>/<file>` (`weights/<file>` for named weights), taken from the
environment variable `COUNTERLENS_MIRROR` or, when that is unset or empty, from `mirror:` in
`config/config.yaml`. Then the file's own URLs.

A download grows in `<file>.part`, which a later run continues. A file with the wrong SHA-256 is
kept as `<file>.bad-<first 8 digits of its SHA-256>` and the next source is tried.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from counterlens import plugins
from counterlens.config import DatasetOptions
from counterlens.data.base import Dataset, Source
from counterlens.errors import UserError
from counterlens.runtime import files

if TYPE_CHECKING:
    from requests import Response

MIRROR_VARIABLE = "COUNTERLENS_MIRROR"
TIMEOUT = (5.0, 30.0)  # seconds to connect, seconds without a byte
ATTEMPTS = 3  # in a row that bring nothing new, per URL
PAUSE = 1.0  # seconds before the second attempt; doubles
RETRIED_STATUS = {408, 429, 500, 502, 503, 504}


class FetchError(UserError):
    """No source gave the file; `reasons` holds one text for each source tried.

    A reason names the mirror only as "mirror", so that it can be stored in an artifact.
    """

    def __init__(self, message: str, reasons: tuple[str, ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


def fetch_dataset_file(
    dataset: DatasetOptions, file: str, output: Path, mirror: str | None = None
) -> Path:
    """Bring one raw file of a dataset to `output`.

    Args:
        dataset: the dataset.
        file: one of the dataset's `Options.files`.
        output: where the file goes, normally `data/raw/<dataset>/<file>`.
        mirror: a mirror folder or URL; `COUNTERLENS_MIRROR` wins over it.

    Raises:
        UserError: the dataset has no such file, or no source gave it.
    """
    chosen = load_dataset(dataset)
    for source in chosen.sources:
        if source.file == file:
            return fetch(source, dataset.mirror_folder, output, mirror)
    names = ", ".join(source.file for source in chosen.sources) or "none, it needs no download"
    raise UserError(f"{dataset.name}: has no file '{file}' to download; its files: {names}")


def load_dataset(options: DatasetOptions) -> Dataset:
    """The dataset of an experiment."""
    return plugins.create("data", options, Dataset)


def fetch(source: Source, folder: str, output: Path, mirror: str | None = None) -> Path:
    """Bring one file to `output`; a file that is there with the right SHA-256 stays.

    Args:
        source: the file, its URLs and its SHA-256.
        folder: its folder in a mirror.
        output: where the file goes.
        mirror: a mirror folder or URL; `COUNTERLENS_MIRROR` wins over it.

    Raises:
        FetchError: every source failed; the message names each with its reason.
        UserError: the disk is full, or a file or folder cannot be read or written.
    """
    mirror = os.environ.get(MIRROR_VARIABLE) or mirror
    part = output.with_name(f"{output.name}.part")
    reasons = []
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            if source.found(output) == source.sha256:
                return output
            reasons.append(f"{output}: {_set_aside(source, output, output)}")
        if part.exists() and source.found(part) == source.sha256:
            return _publish(part, output)
        for place in _places(source, folder, mirror):
            label = place if place in source.urls else "mirror"
            problem = _take(place, part, source)
            if problem is None and source.found(part) != source.sha256:
                problem = _set_aside(source, part, output)
            if problem is None:
                return _publish(part, output)
            reasons.append(f"{label}: {problem}")
        if _size(part) == 0:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}, while fetching {output}; "
            "free space or change permissions, then run again"
        ) from None
    raise FetchError(
        f"{output}: no source gave the file with {source.checksum}: {'; '.join(reasons)}; "
        f"set {MIRROR_VARIABLE} (or mirror: in config/config.yaml; now "
        f"{_without_password(mirror)}) to a folder or URL that has {folder}/{source.file}, or put "
        f"the file at {output} yourself",
        tuple(reasons),
    )


def _places(source: Source, folder: str, mirror: str | None) -> list[str | Path]:
    if not mirror:
        return list(source.urls)
    if "://" in mirror:
        return [f"{mirror.rstrip('/')}/{folder}/{source.file}", *source.urls]
    return [Path(mirror).expanduser() / folder / source.file, *source.urls]


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _without_password(mirror: str | None) -> str:
    return re.sub(r"//[^/@]*@", "//", mirror) if mirror else "not set"


def _publish(part: Path, output: Path) -> Path:
    with files.atomic_path(output) as temporary:
        part.replace(temporary)
    return output


def _set_aside(source: Source, file: Path, output: Path) -> str:
    bad = output.with_name(f"{output.name}.bad-{files.sha256(file)[:8]}")
    problem = f"wrong {replace(source, sha256=source.found(file)).checksum} (kept as {bad.name})"
    file.replace(bad)
    return problem


def _take(place: str | Path, part: Path, source: Source) -> str | None:
    """Fill `part` from one place; the reason if that failed."""
    if isinstance(place, Path):
        return _copy(place, part)
    resumed = _size(part) > 0
    problem = _download(place, part)
    if problem is None and resumed and source.found(part) != source.sha256:
        part.unlink()  # the old half may be what is wrong
        problem = _download(place, part)
    return problem


def _copy(place: Path, part: Path) -> str | None:
    if not place.parent.parent.is_dir():
        return "the folder does not exist"
    if not place.is_file():
        return f"has no file {place.parent.name}/{place.name}"
    if not os.access(place, os.R_OK):
        return "the file is not readable"
    shutil.copyfile(place, part)
    return None


def _download(url: str, part: Path) -> str | None:
    """Continue or start `part` over HTTP; the reason if that failed."""
    import requests
    from requests.exceptions import ChunkedEncodingError

    best = _size(part)
    failures = 0
    while True:
        start = _size(part)
        try:
            _request(url, part, start)
            return None
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            problem = f"HTTP status {status}"
            if status == 416 and start:
                part.unlink()  # it holds more than the server has
            elif status not in RETRIED_STATUS:
                return problem
        except requests.RequestException as error:
            got = _size(part)
            if got == start and not isinstance(error, ChunkedEncodingError):
                return f"no answer ({type(error).__name__})"
            problem = f"the connection broke after {got} bytes ({type(error).__name__})"
            if got > best:
                best, failures = got, -1
        failures += 1
        if failures >= ATTEMPTS:
            return problem
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def _request(url: str, part: Path, start: int) -> None:
    """One GET that appends to `part` what follows its first `start` bytes."""
    from pooch import HTTPDownloader

    with part.open("ab") as stream:

        def prepare(response: Response, *_: object, **__: object) -> None:
            # The bytes as stored are wanted, also from a server that labels .gz as encoded.
            response.raw.headers.pop("Content-Encoding", None)
            partial = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            continues = response.status_code == 206 and partial and int(partial[1]) == start
            if response.ok and not response.is_redirect and not continues:
                stream.truncate(0)

        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        download = HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=1 << 14,
            timeout=TIMEOUT,
            headers=headers,
            hooks={"response": prepare},
        )
        download(url, stream, None)
