"""Device slots, with made-up devices: nothing here needs a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterlens.errors import UserError
from counterlens.runtime import gpu_slots

SOURCE = Path(gpu_slots.__file__).parents[2]

HOLD = """
import json, os, sys, time
from counterlens.runtime import gpu_slots
gpus, seconds = int(sys.argv[1]), float(sys.argv[2])
slots = gpu_slots.acquire(gpus)
start = time.monotonic()
print(json.dumps({"held": slots.devices}), flush=True)
time.sleep(seconds)
end = time.monotonic()
visible = os.environ["CUDA_VISIBLE_DEVICES"]
torch = "torch" in sys.modules
print(json.dumps({"devices": slots.devices, "visible": visible, "start": start, "end": end,
                  "torch": torch}))
"""


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An empty temporary folder and no scheduler; slots are given back after the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield monkeypatch
    gpu_slots._close_all()


def start(gpus: int, seconds: float, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(gpus), str(seconds)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def held(process: subprocess.Popen[str]) -> list[str]:
    """Wait until the process holds its devices; which ones."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())["held"]


def finish(process: subprocess.Popen[str]) -> dict:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def overlap(first: dict, second: dict) -> bool:
    return first["start"] < second["end"] and second["start"] < first["end"]


def test_jobs_never_share_a_device(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    wanted = [1, 1, 2, 1, 1, 1]
    jobs = [finish(p) for p in [start(gpus, 0.3) for gpus in wanted]]
    assert [len(job["devices"]) for job in jobs] == wanted
    for index, first in enumerate(jobs):
        assert first["visible"] == ",".join(first["devices"])
        assert not first["torch"]
        for second in jobs[index + 1 :]:
            if set(first["devices"]) & set(second["devices"]):
                assert not overlap(first, second)


def test_second_job_takes_the_other_device(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    first, second = start(1, 60), start(1, 60)
    try:
        assert sorted(held(first) + held(second)) == ["0", "1"]
    finally:
        first.kill()
        second.kill()
        first.communicate()
        second.communicate()


def test_two_device_job_waits_for_both(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    single = start(1, 1.0)
    held(single)
    both = finish(start(2, 0.0))
    assert both["visible"] == "0,1"
    assert both["start"] >= finish(single)["end"]


def test_killed_holder_frees_its_slot(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0")
    holder = start(1, 600)
    assert held(holder) == ["0"]
    waiting = start(1, 0.0)
    time.sleep(1.0)
    assert waiting.poll() is None, "the device was held, yet a second process got it"
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert finish(waiting)["devices"] == ["0"]


def test_children_do_not_keep_the_slot(clean: pytest.MonkeyPatch) -> None:
    """A forked worker and a started program outlive a killed holder, its lock does not."""
    clean.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = """
import os, subprocess, sys, time
from counterlens.runtime import gpu_slots
gpu_slots.acquire(1)
child = os.fork()
if child == 0:
    time.sleep(600)
program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
print(child, program.pid, flush=True)
time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    children = [int(word) for word in holder.stdout.readline().split()]
    try:
        holder.kill()
        holder.wait()
        assert finish(start(1, 0.0))["devices"] == ["0"]
        for child in children:
            os.kill(child, 0)  # still alive: the lock was freed although they run
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_fork_in_a_worker_leaves_the_parents_lock(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0")
    with gpu_slots.acquire(1):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        clean.setenv("CUDA_VISIBLE_DEVICES", "0")
        waiting = start(1, 0.0)
        time.sleep(1.0)
        assert waiting.poll() is None
    assert finish(waiting)["devices"] == ["0"]


def test_pool_of_uuids(clean: pytest.MonkeyPatch) -> None:
    pool = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    clean.setenv("CUDA_VISIBLE_DEVICES", ",".join(pool))
    with gpu_slots.acquire(2) as slots:
        assert slots.devices == tuple(pool)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(pool)


def test_zero_hides_every_device_and_leaving_restores(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_slots.acquire(0) as slots:
        assert slots.devices == ()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_no_gpu_runs_on_the_cpu_and_says_so(
    clean: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clean.setattr(gpu_slots, "_installed", lambda: ())
    with gpu_slots.acquire(1) as slots:
        assert slots.devices == ()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert [record.message for record in caplog.records] == [
        "no NVIDIA GPU here: running on the CPU"
    ]


def test_more_than_the_pool_is_an_error(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(UserError, match=r"--gpus 2: CUDA_VISIBLE_DEVICES=5 has 1"):
        gpu_slots.acquire(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_process_acquires_once(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with gpu_slots.acquire(1), pytest.raises(RuntimeError, match="already holds"):
        gpu_slots.acquire(1)


def test_slurm_jobs_do_not_wait_for_each_other(clean: pytest.MonkeyPatch) -> None:
    """Two jobs on one node may both call their own device 0; within one job it is one device."""
    clean.setenv("CUDA_VISIBLE_DEVICES", "0")
    holder = start(1, 600, SLURM_JOB_ID="7")
    try:
        assert held(holder) == ["0"]
        assert finish(start(1, 0.0, SLURM_JOB_ID="8"))["devices"] == ["0"]
        sibling = start(1, 0.0, SLURM_JOB_ID="7")
        time.sleep(1.0)
        assert sibling.poll() is None
    finally:
        holder.kill()
        holder.communicate()
    assert finish(sibling)["devices"] == ["0"]


def test_foreign_lock_folder_is_refused(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", "0")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"counterlens-gpu-slots-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(UserError, match="TMPDIR"):
        gpu_slots.acquire(1)


@pytest.mark.parametrize(
    ("value", "devices"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("3", ("3",)),
        (" 1, 0 ", ("1", "0")),
        ("0,0,1", ("0", "1")),
        ("0,-1,1", ("0",)),
        ("MIG-1a2b,GPU-3c4d", ("MIG-1a2b", "GPU-3c4d")),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(
    clean: pytest.MonkeyPatch, value: str, devices: tuple[str, ...]
) -> None:
    clean.setenv("CUDA_VISIBLE_DEVICES", value)
    assert gpu_slots.device_pool() == devices


@pytest.mark.parametrize(
    ("listing", "devices"),
    [
        ("", ""),
        ("GPU 0: NVIDIA X (UUID: GPU-aa)\nGPU 1: NVIDIA X (UUID: GPU-bb)", "0 1"),
        (
            "GPU 0: NVIDIA X (UUID: GPU-aa)\n"
            "  MIG 1g.10gb     Device  0: (UUID: MIG-cc)\n"
            "  MIG 1g.10gb     Device  1: (UUID: MIG-dd)",
            "MIG-cc MIG-dd",
        ),
    ],
)
def test_listing_of_the_machine(
    clean: pytest.MonkeyPatch, tmp_path: Path, listing: str, devices: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listing}\nEND\n")
    program.chmod(0o755)
    clean.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_slots.device_pool() == tuple(devices.split())
