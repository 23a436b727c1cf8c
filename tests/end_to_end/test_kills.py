"""Kill the whole workflow without warning, go on, and end with the same bytes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Project

PATIENCE = 600  # seconds for a moment to come


def kill_when(project: Project, moment: Callable[[], bool], *words: str) -> None:
    """Start the workflow and kill all of its processes as soon as `moment` is true."""
    running = project.start(*words)
    deadline = time.monotonic() + PATIENCE
    try:
        while not moment():
            assert running.poll() is None, "the workflow ended before the moment came"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.02)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def checkpoints(project: Project) -> list[str]:
    return [str(path) for path in (project.path / ".cache/checkpoints").glob("*/state.pt")]


def go_on(project: Project, built: Project) -> None:
    """What was left behind is whole; after `--unlock` the run ends as one without the kill."""
    whole = built.results()
    for name, content in project.results().items():
        if "/." not in name:  # a file being written has a hidden name
            assert whole[name] == content, f"{name} is not what an uninterrupted run writes"
    assert "--unlock" in project.snakemake("all", fails=True)
    project.snakemake("--unlock")
    project.snakemake("all")
    project.assert_same(built)
    assert not checkpoints(project)
    assert project.jobs("all") == []


def test_killed_in_a_training_it_goes_on_from_the_checkpoint(
    built: Project, unbuilt: Callable[[], Project]
) -> None:
    """Started from nothing, so that this also compares two whole runs."""
    project = unbuilt()
    log = project.path / "logs/digits/generators/dcgan/all-classes.log"
    results = project.path / "results/digits"
    others = [results / "classifier", results / "oracles/autoencoders"]

    def saved() -> bool:
        """The checkpoint is that of the generator: no other training can be under way."""
        over = all((folder / "model.safetensors").exists() for folder in others)
        return log.exists() and over and len(checkpoints(project)) == 1

    kill_when(project, saved, "all")
    assert checkpoints(project)
    assert not (results / "generators/dcgan/all-classes/model.safetensors").exists()
    go_on(project, built)
    total = log.read_text(encoding="utf-8").replace("\r", "\n").splitlines()[-1]
    assert "20/20" not in total, "the training began again"


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 3.0, 6.0])
@pytest.mark.parametrize(
    "log",
    [
        "data/prepared/digits",
        "digits/classifier",
        "digits/oracles/autoencoders",
        "digits/generators/encoder/3-8",
        "digits/methods/c3lt/3-8",
        "digits/counterfactuals/c3lt/3_to_8",
        "digits/metrics/pgd/8_to_3",
        "digits/report",
    ],
)
def test_killed_at_any_stage(
    built: Project, unbuilt: Callable[[], Project], log: str, wait: float
) -> None:
    project = unbuilt()
    file = project.path / f"logs/{log}.log"

    def moment() -> bool:
        return file.exists() and time.time() - file.stat().st_ctime >= wait

    try:
        kill_when(project, moment, "all")
    except AssertionError as error:
        if "ended before" not in str(error):
            raise
        pytest.skip("the whole run was over by then")
    go_on(project, built)
