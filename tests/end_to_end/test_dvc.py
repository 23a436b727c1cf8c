"""DVC records what Snakemake decides: nothing is lost, made twice, or stale."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from .conftest import Project

ROOT = Path(__file__).parents[2]
UP_TO_DATE = "Data and pipelines are up to date."
NOTHING_TO_DO = "Nothing to be done"


def stages(project: Project) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((project.path / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def outs(stage: dict[str, Any]) -> list[str]:
    sections = ("outs", "metrics", "plots")
    return [path for name in sections for entry in stage.get(name, []) for path in entry]


def needed(found: dict[str, dict[str, Any]], name: str) -> set[str]:
    """A stage and all that `dvc repro` runs before it."""
    result = {name}
    for dep in found[name]["deps"]:
        for other, stage in found.items():
            if dep in outs(stage):
                result |= needed(found, other)
    return result


def target(stage: dict[str, Any]) -> str:
    words = stage["cmd"].split()
    assert words[0] == "snakemake"
    assert words[2:] == ["$SMK_ARGS"]
    return words[1]


def record(project: Project) -> None:
    """Make the folder a git repository with all that git should know."""
    if not (project.path / ".git").exists():
        project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "state")


def test_dvc_yaml_says_what_the_configuration_needs(shipped: Project) -> None:
    shipped.run(sys.executable, "rules/dvc_yaml.py")
    written = (shipped.path / "dvc.yaml").read_text(encoding="utf-8")
    shown = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert shown == written, "run: python rules/dvc_yaml.py"


def test_the_outputs_of_every_job_are_recorded(shipped: Project) -> None:
    """A checkout would lack any other output, and its job would run again."""
    summary = shipped.snakemake("all", "--summary").splitlines()
    files = [line.split("\t")[0] for line in summary if line.startswith(("data/", "results/"))]
    assert len(files) > 500
    recorded = [path for stage in stages(shipped).values() for path in outs(stage)]
    assert not [
        f for f in files if not any(f == out or f.startswith(f"{out}/") for out in recorded)
    ]


@pytest.mark.parametrize(
    "name", ["table_c3lt_1_mnist", "table_c3lt_2_fashion_mnist", "figure_c3lt_9"]
)
def test_a_stage_makes_what_it_needs_and_nothing_else(shipped: Project, name: str) -> None:
    """A stage of a generator or method has all of its pairs, also those that a report leaves out.

    The one stage of pretrained weights has all of them.
    """
    found = stages(shipped)
    recorded = shipped.jobs(*(target(found[stage]) for stage in needed(found, name)))
    wanted = shipped.jobs(target(found[name]))
    assert set(recorded) >= set(wanted)
    assert {job.rpartition("/")[0] for job in recorded} == {
        job.rpartition("/")[0] for job in wanted
    }
    if name.startswith("table"):
        further = set(recorded) - set(wanted)
        assert not [job for job in further if not job.startswith("data/weights/")]


def test_round_trip(project: Project, tmp_path: Path) -> None:
    """Snakemake alone made everything: DVC records it, and brings it back anywhere."""
    record(project)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    before = project.results()

    text = project.dvc("repro")
    asked = [stage for stage in stages(project).values() if "snakemake" in stage["cmd"]]
    assert text.count(NOTHING_TO_DO) == len(asked)
    assert UP_TO_DATE in project.dvc("repro")
    assert project.results() == before

    assert "c3lt-table1.json" in project.dvc("metrics", "show")
    project.dvc("plots", "show", "results/tables/c3lt-table1.csv", "--out", str(tmp_path / "plots"))
    assert (tmp_path / "plots/index.html").exists()
    record(project)
    project.dvc("push")

    project.run("rm", "-rf", "results", "data")
    project.git("checkout", "--quiet", "--", "results")
    project.dvc("checkout")
    assert project.results() == before
    assert project.jobs("all") == []

    copy = type(project)(tmp_path / "copy")
    project.git("clone", "--quiet", ".", str(copy.path))
    copy.dvc("pull")
    assert copy.results() == before
    assert copy.jobs("all") == []
    assert UP_TO_DATE in copy.dvc("repro")
    copy.edit("config/experiments/digits.yaml", "pgd: {steps: 5}", "pgd: {steps: 6}")
    jobs = copy.jobs("c3lt-table5")
    assert jobs == [
        "digits/counterfactuals/pgd/3_to_8",
        "digits/counterfactuals/pgd/8_to_3",
        "digits/metrics/pgd/3_to_8",
        "digits/metrics/pgd/8_to_3",
        "tables/c3lt-table5",
    ]
    assert "small.methods.pgd" in copy.dvc("params", "diff")


@pytest.mark.slow
def test_no_table_is_ever_stale(
    project: Project, unbuilt: Callable[[], Project], tmp_path: Path
) -> None:
    """After every step the table of DVC equals one made from nothing by Snakemake alone."""

    def check(state: Project) -> None:
        fresh = unbuilt()
        for folder in ("config", "src", "rules"):
            fresh.run("rm", "-rf", folder)
            fresh.run("cp", "-r", str(state.path / folder), folder)
        fresh.snakemake("c3lt-table1")
        table = "results/tables/c3lt-table1.csv"
        assert (state.path / table).read_bytes() == (fresh.path / table).read_bytes()
        assert state.jobs("c3lt-table1") == []

    record(project)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.dvc("repro")
    record(project)
    project.dvc("push")
    first = (project.path / "results/tables/c3lt-table1.csv").read_bytes()

    # a fresh clone, then a key
    copy = type(project)(tmp_path / "copy")
    project.git("clone", "--quiet", ".", str(copy.path))
    copy.dvc("pull")
    copy.edit("config/experiments/digits.yaml", "pgd: {steps: 5}", "pgd: {steps: 6}")
    copy.dvc("repro")
    check(copy)
    assert (copy.path / "results/tables/c3lt-table1.csv").read_bytes() != first
    record(copy)

    # an edit of code that changes a number
    copy.edit("src/counterlens/metrics/validity.py", "predicted == cf", "predicted != cf")
    copy.dvc("repro", "table_c3lt_1")
    check(copy)
    record(copy)

    # another value by DVC's own means
    copy.dvc(
        "exp", "run", "--set-param", "config/experiments/digits.yaml:small.methods.pgd.steps=7"
    )
    assert "steps: 7" in (copy.path / "config/experiments/digits.yaml").read_text(encoding="utf-8")
    check(copy)
    record(copy)

    # two commits back
    copy.git("checkout", "--quiet", "HEAD~2")
    copy.dvc("checkout")
    check(copy)
