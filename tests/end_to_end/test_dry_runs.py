"""Dry runs of what the project ships: every target, the spellings of the documentation, lints."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from counterlens import layout
from counterlens.config import ORIGINAL_DATA
from counterlens.plan import inputs, targets
from counterlens.plan.plan import Plan

if TYPE_CHECKING:
    from .conftest import Project

ROOT = Path(__file__).parents[2]
SPELLING = re.compile(r"^(?:\w+=\S+ )*(snakemake (?!--lint)[a-z0-9-][^#`|]*?)(?: +#.*)?$")


def spellings() -> list[str]:
    """The `snakemake` lines in the code blocks of README and docs that run on one computer."""
    found: dict[str, None] = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in path.read_text(encoding="utf-8").split("```")[1::2]:
            for line in block.splitlines():
                match = SPELLING.match(line)
                if match and not re.search(r"[<\\]|--workflow-profile|--sdm|my-", match[1]):
                    found[match[1]] = None
    return list(found)


@pytest.mark.parametrize("scale", ["small", "published"])
def test_every_target_and_the_jobs_of_all(shipped: Project, scale: str, root: Path) -> None:
    project = Plan({"scale": scale})
    listed = [project.experiments[name] for name in project.config.experiments]
    datasets = {e.dataset.name: e.dataset for e in listed}.values()
    models = {f for e in listed for f in inputs.model_folders(e) if f.is_relative_to(layout.MODELS)}
    asked = {
        layout.classifier(e.models.name, g.classifier)
        for e in listed
        for g in e.generators.values()
        if g.classifier is not None
    }
    trained = Counter(folder.parts[3] for folder in models | asked)
    expected = {
        **trained,
        "methods": sum(len(e.training_scopes(m)) for e in listed for m in e.trained_methods()),
        "animations": sum(len(targets.animations(project, e.name)) for e in listed),
        # shards, where there are several, and what joins them
        "counterfactuals": sum(
            len(e.directions(name)) * (e.evaluation.shards + (e.evaluation.shards > 1))
            for e in listed
            for name in e.methods
        )
        + sum(len(e.directions(ORIGINAL_DATA)) for e in listed),
        "metrics": sum(
            len(e.directions(name)) + e.pooled() * len(e.method_pairs(name))
            for e in listed
            for name in (*e.methods, ORIGINAL_DATA)
        ),
        "found": sum(len(e.directions(ORIGINAL_DATA)) for e in listed),
        "report": len(listed),
        "data": sum(1 + len(dataset.files) for dataset in datasets)
        + len({w for e in listed for o in e.oracles.values() for w in o.weights}),
    }
    alone = [(e.name,) for e in listed]
    own = {name for name, table in project.tables.items() if table.experiments in alone}
    expected["tables"] = len(listed) + len(own | set(project.config.tables))
    drawn = {figure.name for e in listed for figure in project.pareto_figures(e.name)}
    expected["figures"] = len(drawn | set(project.config.figures))

    scaled = ("--config", f"scale={scale}")
    jobs = Counter(stage(log) for log in shipped.jobs("all", *scaled))
    assert jobs == expected

    every = shipped.jobs(*targets.named_targets(project), "demo", *scaled)
    missing = set(project.figures) - set(project.config.figures)
    assert set(shipped.jobs("all", *scaled)) <= set(every)
    assert {f"figures/{name}" for name in missing} <= set(every)
    assert {f"tables/{name}" for name in project.tables} <= set(every)


def stage(log: str) -> str:
    """The stage of a job, by its log."""
    parts = log.split("/")
    if parts[0] == "models":
        return parts[2]
    return parts[0] if parts[0] in ("data", "tables", "figures") else parts[1]


@pytest.mark.parametrize("command", spellings())
def test_the_spellings_of_the_documentation(shipped: Project, command: str) -> None:
    text = shipped.run(*command.split(), "-n")
    assert "counterlens" in text or "Job stats" in text


def test_the_documentation_shows_the_main_spellings() -> None:
    shown = " ".join(spellings())
    assert "snakemake --cores 8 --resources gpu=2 all" in shown
    assert "snakemake c3lt-table1-mnist" in shown


def test_the_command_of_the_environment_takes_targets_behind_resources(shipped: Project) -> None:
    command = shutil.which("snakemake", path=shipped.environment["PATH"])
    assert command is not None
    text = Path(command).read_text(encoding="utf-8")
    assert "counterlens" in text, "make setup must install the package last"
    words = ("--cores", "8", "--resources", "gpu=2")
    user, first = (
        dict(re.findall(r"^(\w+) +(\d+)$", shipped.run("snakemake", *line, "-n"), re.M))
        for line in ((*words, "demo"), ("demo", *words))
    )
    assert user == first and int(user["explain"]) > 20


def test_lint_and_format(shipped: Project) -> None:
    assert "good condition" in shipped.run("snakemake", "--lint")
    shipped.run("snakefmt", "--check", "Snakefile", "rules")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "evaluation: {images: 60",
            "evaluation: {image: 60",
            "evaluation.image: unknown key",
        ),
        ("pairs: [[3, 8], [4, 9]]", "pairs: [[3, 8], [4, 19]]", "pairs: [4, 19] is not two"),
    ],
)
def test_a_config_error_stops_before_any_job(
    shipped: Project, tmp_path: Path, old: str, new: str, told: str
) -> None:
    project = shipped.clone(tmp_path / "project")
    project.edit("config/experiments/digits.yaml", old, new)
    text = project.snakemake("demo", fails=True)
    lines = [line for line in text.splitlines() if "config/experiments/digits.yaml: " in line]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in text
    assert not (project.path / layout.RESULTS).exists()
    assert not (project.path / "logs").exists()


def test_an_unknown_target_is_an_error(shipped: Project) -> None:
    assert "c3lt-table99" in shipped.snakemake("c3lt-table99", "-n", fails=True)


def test_the_experiment_of_a_user_s_own(shipped: Project, tmp_path: Path) -> None:
    """`snakemake my-pictures`, as docs/bring-your-own.md says, with the files that it names."""
    project = shipped.clone(tmp_path / "project")
    shutil.copytree(ROOT / "examples", project.path / "examples", dirs_exist_ok=True)
    shown = project.path / "examples/bring_your_own/my-pictures.yaml"
    shutil.copy(shown, project.path / "config/experiments")
    for name in ("three", "eight", "nine"):
        (project.path / "my/pictures" / name).mkdir(parents=True)
    (project.path / "my/net.safetensors").touch()
    place = "my-pictures/counterfactuals/nearest/0_to_1"
    assert {"models/my-pictures/classifiers/pretrained", place} <= set(project.jobs("my-pictures"))
    (project.path / "my/net.safetensors").unlink()
    assert "my/net.safetensors" in project.snakemake("my-pictures", "-n", fails=True)
