"""The plan itself: the names of the project's files, shards, patterns of wildcards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from counterlens.errors import UserError
from counterlens.plan import plan
from counterlens.plan.plan import Plan

from .rules import Job


def test_datasets_are_named_with_their_options(project: Plan) -> None:
    hq = Job(dataset="celeba-hq-256")
    assert project.dataset_arguments(hq) == "celeba-hq"  # 256 is the default
    assert project.dataset_arguments(Job(dataset="mnist")) == "mnist"
    subset = Job(dataset="celeba-subset")
    assert project.raw_files(subset) == ["data/raw/celeba-subset/celeba_subset_64.zip"]


def test_shards(copied_project: Path) -> None:
    (copied_project / "config/experiments/digits-dcgan.yaml").unlink()  # extends digits
    path = copied_project / "config/experiments/digits.yaml"
    content = yaml.safe_load(path.read_text())
    content["evaluation"] = {"images": 50, "shard_size": 20}
    path.write_text(yaml.safe_dump(content))
    project = Plan({})
    wildcards = Job(experiment="digits", method="pgd", source="9", target="4")
    assert project.shard_count(wildcards) == 3
    stem = "results/digits/counterfactuals/pgd/shards/9_to_4"
    assert set(project.shards(wildcards)) == {
        file
        for n in (1, 2, 3)
        for file in (
            f"{stem}.{n}-of-3.safetensors",
            f"{stem}.{n}-of-3.parquet",
            f"results/timings/digits/pgd/9_to_4.{n}-of-3.json",
        )
    }
    assert "digits" in project.sharded(True).split("|")
    assert "digits" not in project.sharded(False).split("|")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        (
            "config.yaml",
            "experiments:\n  - digits\n",
            "experiments:\n  - digit\n",
            r"config/config\.yaml: experiments: 'digit' is unknown; known: .*digits",
        ),
        (
            "config.yaml",
            "  - c3lt-table1\n",
            "  - c3lt-table9\n",
            r"config/config\.yaml: tables: 'c3lt-table9' is unknown; known: .*c3lt-table1, ",
        ),
        (
            "config.yaml",
            "  - c3lt-figure5\n",
            "  - c3lt-figure1\n",
            r"config/config\.yaml: figures: 'c3lt-figure1' is unknown; known: ",
        ),
        (
            "tables/c3lt-table1.yaml",
            "  digits: [digits]",
            "  digits: [digit]",
            r"table c3lt-table1-digits: experiments: 'digit' is unknown; known: ",
        ),
        (
            "figures/c3lt-figure5.yaml",
            "experiment: c3lt-mnist",
            "experiment: c3lt",
            r"figure c3lt-figure5: experiment: 'c3lt' is unknown; known: ",
        ),
    ],
)
def test_names_that_are_not_there(
    copied_project: Path, file: str, old: str, new: str, told: str
) -> None:
    path = copied_project / "config" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=told):
        Plan({})


def test_patterns() -> None:
    assert re.fullmatch(plan.any_of([]), "") is None
    assert re.fullmatch(plan.any_of([]), "any") is None
    assert plan.any_of(["b", "a", "b"]) == "a|b"
    assert Plan.hours(3)(None, 1) == 180 and Plan.hours(3)(None, 2) == 360


def test_the_mirror_reaches_the_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("COUNTERLENS_MIRROR", "first")
    Plan({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "first"  # the environment wins
    monkeypatch.delenv("COUNTERLENS_MIRROR")
    Plan({"mirror": "second"})
    assert os.environ["COUNTERLENS_MIRROR"] == "second"
