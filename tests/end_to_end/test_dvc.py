"""DVC records what Snakemake decides: nothing is lost, made twice, or stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from counterlens.errors import UserError
from counterlens.plan.plan import Plan
from counterlens.plan.record import stages_behind

if TYPE_CHECKING:
    from .conftest import Project

ROOT = Path(__file__).parents[2]
UP_TO_DATE = "Data and pipelines are up to date."
NOTHING_TO_DO = "Nothing to be done"


def stages(project: Project) -> dict[str, dict[str, Any]]:
    """The stages of `dvc.yaml` with their `foreach` over the lists of config.yaml."""

    def read(file: str) -> dict[str, Any]:
        return yaml.safe_load((project.path / file).read_text(encoding="utf-8"))

    lists, whole = read("config/config.yaml"), {}
    for name, stage in read("dvc.yaml")["stages"].items():
        if "foreach" not in stage:
            whole[name] = stage
            continue
        key = re.fullmatch(r"\$\{(\w+)\}", stage["foreach"])
        assert key is not None
        for item in lists[key[1]]:
            text = yaml.safe_dump(stage["do"]).replace("${item}", item)
            whole[f"{name}@{item}"] = yaml.safe_load(text)
    return whole


def outs(stage: dict[str, Any]) -> list[str]:
    sections = ("outs", "metrics", "plots")
    return [path for name in sections for entry in stage.get(name, []) for path in entry]


def record(project: Project) -> None:
    """Make the folder a git repository with all that git should know."""
    if not (project.path / ".git").exists():
        project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "state")


def test_dvc_yaml_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_outputs_of_every_job_are_recorded(shipped: Project) -> None:
    """By DVC or, of tables, by git: a checkout would lack any other, and run its job again."""
    summary = shipped.snakemake("all", "--summary").splitlines()
    files = [line.split("\t")[0] for line in summary if line.startswith(("data/", "results/"))]
    assert len(files) > 500
    recorded = [path for stage in stages(shipped).values() for path in outs(stage)]
    tracked = re.compile(r"results/tables/\S+\.(csv|md|json)")  # by git
    for file in files:
        owned = any(file == out or file.startswith(f"{out}/") for out in recorded)
        assert owned or tracked.fullmatch(file), file


def test_what_a_target_is_made_from(root: Path) -> None:
    plan = Plan({})
    mnist = ["data", "models@mnist", "experiment@c3lt-mnist", "provenance"]
    assert stages_behind(plan, "c3lt-table1-mnist") == mnist
    assert stages_behind(plan, "c3lt-figure5") == mnist
    assert stages_behind(plan, "c3lt-mnist") == ["data", "models@mnist", "provenance"]
    assert stages_behind(plan, "models_mnist") == ["data", "provenance"]
    both = stages_behind(plan, "c3lt-table1")
    assert {"models@fashion-mnist", "experiment@c3lt-fashion-mnist"} < {*both}
    with pytest.raises(UserError, match="'c3lt-table99' is no table"):
        stages_behind(plan, "c3lt-table99")


def test_round_trip(project: Project, tmp_path: Path) -> None:
    """Snakemake alone made everything: DVC records it, and brings it back anywhere."""
    record(project)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    before = project.results()

    text = project.dvc("repro")
    asked = [stage for stage in stages(project).values() if "snakemake" in stage["cmd"]]
    assert text.count(NOTHING_TO_DO) == len(asked)
    assert UP_TO_DATE in project.dvc("repro", "table@c3lt-table1", "figure@digits-gallery")
    assert project.results() == before

    shown = project.dvc("metrics", "show", "results/tables/c3lt-table1.json", "--md")
    assert "c3lt-table1.json" in shown and shown.splitlines()[0].count("|") < 20
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


def test_one_recorded_table_brings_what_it_was_made_from(project: Project, tmp_path: Path) -> None:
    """The walk of someone who reproduces one table: nothing is lost, nothing runs again."""
    project.run("rm", "-rf", "results/figures", "results/digits/report.html")
    for name in ("c3lt-table1", "c3lt-table5", "digits-cost"):
        for file in (project.path / "results/tables").glob(f"{name}.*"):
            file.unlink()
    record(project)
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    project.dvc("repro", "table@c3lt-table1")
    assert UP_TO_DATE in project.dvc("repro", "table@c3lt-table1")
    before = project.results()
    record(project)
    project.dvc("push")
    project.dvc("checkout", "--allow-missing")  # without --force
    assert project.results() == before

    copy = type(project)(tmp_path / "copy")
    project.git("clone", "--quiet", ".", str(copy.path))
    copy.dvc("pull", "--allow-missing")
    assert copy.results() == before
    assert copy.jobs("c3lt-table1") == []
    # what the table did not need is made, and not mistaken for made
    assert "digits/report" in copy.jobs("digits")
    assert "Running stage 'experiment@digits'" in copy.dvc("repro", "experiment@digits")
    assert (copy.path / "results/digits/report.html").exists()


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
    copy.dvc("repro", "table@c3lt-table1")
    check(copy)
    record(copy)

    # another value by DVC's own means
    parameter = "config/experiments/digits.yaml:small.methods.pgd.steps=7"
    copy.dvc("exp", "run", "--set-param", parameter, "table@c3lt-table1")
    assert "steps: 7" in (copy.path / "config/experiments/digits.yaml").read_text(encoding="utf-8")
    check(copy)
    record(copy)

    # two commits back
    copy.git("checkout", "--quiet", "HEAD~2")
    copy.dvc("checkout")
    check(copy)
