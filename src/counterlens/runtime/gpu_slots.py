"""Which GPUs this process may use: one file lock per device.

Snakemake's ``gpu`` resource only counts; it does not say which device a job gets. Here each
process takes a lock on the devices it wants, before CUDA starts, and shows CUDA those alone.
The kernel drops the locks when the process ends, however it ends.

This module does not import torch, and must run before anything starts CUDA.
"""

import fcntl
import logging
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from counterlens.errors import UserError

logger = logging.getLogger(__name__)

VARIABLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = (0.1, 0.4)
_MIG = re.compile(r"^\s*MIG .*\(UUID: (MIG-[^)]+)\)")

# Descriptors of the locks that this process holds; open until it ends or releases them.
_held: dict[int, Path] = {}


@dataclass
class Slots:
    """The devices this process holds, as ``CUDA_VISIBLE_DEVICES`` now names them.

    Kept until the process ends; leaving it as a context manager, or ``release``, gives the
    devices back earlier and restores the variable.
    """

    devices: tuple[str, ...]
    _before: str | None

    def release(self) -> None:
        _close_all()
        if self._before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = self._before

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def acquire(gpus: int) -> Slots:
    """Wait for ``gpus`` free devices and make CUDA see only those.

    With 0, and on a machine without an NVIDIA GPU, CUDA sees none. The pool is what
    ``CUDA_VISIBLE_DEVICES`` names (a scheduler's or the user's choice: indices or UUIDs), else
    every device of the machine. Devices are taken all or none, so that two processes that want
    several never wait for each other.

    Raises:
        UserError: more devices asked for than the pool has, or the lock folder is not ours.
        ValueError: ``gpus`` is negative.
        RuntimeError: this process already holds devices.
    """
    if gpus < 0:
        raise ValueError(f"gpus must not be negative: {gpus}")
    if _held:
        raise RuntimeError("this process already holds GPU slots")
    before = os.environ.get(VARIABLE)
    chosen: tuple[str, ...] = ()
    if gpus:
        pool = device_pool()
        if not pool:
            logger.warning("no NVIDIA GPU here: running on the CPU")
        elif gpus > len(pool):
            where = f"{VARIABLE}={before}" if before is not None else "this machine"
            raise UserError(
                f"--gpus {gpus}: {where} has {len(pool)}; ask for at most {len(pool)}"
                " (the gpu resource of the rule or of the profile)"
            )
        else:
            chosen = _wait(pool, gpus)
    os.environ[VARIABLE] = ",".join(chosen)
    return Slots(chosen, before)


def device_pool() -> tuple[str, ...]:
    """Devices this process may choose from, as CUDA names them; empty without a GPU."""
    named = os.environ.get(VARIABLE)
    return _visible(named) if named is not None else _installed()


def _visible(value: str) -> tuple[str, ...]:
    """What CUDA makes of the variable: it stops at the first name that is none ("-1", "")."""
    devices: list[str] = []
    for entry in value.split(","):
        name = entry.strip()
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", name):
            break
        devices.append(name)
    return tuple(dict.fromkeys(devices))


def _installed() -> tuple[str, ...]:
    """Indices of the NVIDIA devices of this machine, or the UUIDs of their MIG slices."""
    program = shutil.which("nvidia-smi")
    if program:
        try:
            answer = subprocess.run(
                [program, "-L"], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("nvidia-smi -L failed (%s): looking for devices in /proc", error)
        else:
            return _listed(answer.stdout.splitlines())
    folder = Path("/proc/driver/nvidia/gpus")
    count = len(list(folder.iterdir())) if folder.is_dir() else 0
    return tuple(str(index) for index in range(count))


def _listed(lines: Iterable[str]) -> tuple[str, ...]:
    """Devices in the output of ``nvidia-smi -L``."""
    lines = list(lines)
    slices = tuple(match[1] for line in lines if (match := _MIG.match(line)))
    count = sum(bool(re.match(r"GPU \d+:", line)) for line in lines)
    return slices or tuple(str(index) for index in range(count))


def _wait(pool: tuple[str, ...], gpus: int) -> tuple[str, ...]:
    folder = _folder()
    told = False
    while True:
        chosen = _try(folder, pool, gpus)
        if chosen:
            return chosen
        if not told:
            logger.warning("waiting for %d of the GPUs %s to become free", gpus, ",".join(pool))
            told = True
        time.sleep(random.uniform(*_POLL_SECONDS))


def _try(folder: Path, pool: tuple[str, ...], gpus: int) -> tuple[str, ...]:
    """Lock ``gpus`` devices of the pool, or none."""
    chosen: list[str] = []
    for device in pool:
        path = folder / f"{_key(device)}.lock"
        # Python opens descriptors so that no started program inherits them.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        _held[descriptor] = path
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            del _held[descriptor]
            os.close(descriptor)
            continue
        os.utime(descriptor)  # cleaners of temporary folders go by age
        chosen.append(device)
        if len(chosen) == gpus:
            return tuple(chosen)
    _close_all()
    return ()


def _key(device: str) -> str:
    """Name of a device's lock file.

    Inside a Slurm job the devices are the job's own, and where Slurm hides the others two jobs
    on one node both call theirs "0": the job is part of the name, so that they do not wait for
    each other. The host is too, for temporary folders that several nodes share.
    """
    job = os.environ.get("SLURM_JOB_ID")
    parts = [socket.gethostname(), *([f"slurm-{job}"] if job else []), device]
    return re.sub(r"[^A-Za-z0-9.-]", "_", "_".join(parts))


def _folder() -> Path:
    """The user's own folder for lock files, made on first use."""
    folder = Path(tempfile.gettempdir()) / f"counterlens-gpu-slots-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(f"{folder}: is not a folder of this user; remove it or set TMPDIR")
    return folder


def _close_all() -> None:
    for descriptor in list(_held):
        del _held[descriptor]
        os.close(descriptor)


# A forked child (a data loader's worker) must not keep the devices when this process is killed.
# Closing its copy does not unlock ours.
os.register_at_fork(after_in_child=_close_all)
