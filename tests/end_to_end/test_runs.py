"""The tiny project from end to end: what comes out, and what makes a job run again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from counterlens.runtime import files

if TYPE_CHECKING:
    from .conftest import Project

NOTHING_TO_DO = "Nothing to be done"

AFTER_PGD = {
    "digits/counterfactuals/pgd/3_to_8",
    "digits/counterfactuals/pgd/8_to_3",
    "digits/metrics/pgd/3_to_8",
    "digits/metrics/pgd/8_to_3",
    "digits/found/3_to_8",
    "digits/found/8_to_3",
    "digits/report",
    "figures/digits-gallery",
    "tables/c3lt-table1",
    "tables/c3lt-table5",
    "tables/digits-cost",
}
"""The attack's jobs, and the reports that show it."""


def test_everything_is_there_and_nothing_else(built: Project) -> None:
    results = built.path / "results"
    stems = [
        f"digits/{stage}/{method}/{direction}"
        for stage in ("counterfactuals", "metrics")
        for method in ("c3lt", "pgd", "original-data")
        for direction in ("3_to_8", "8_to_3")
    ]
    suffixes = {
        "counterfactuals": ("parquet", "png", "safetensors"),
        "metrics": ("json", "parquet"),
    }
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in suffixes[stem.split("/")[1]]]
    trained = ("model.safetensors", "training.csv")
    for model, further in (
        ("classifiers/lenet", ("predictions.parquet", "embeddings.safetensors")),
        ("oracles/autoencoders", ()),
        ("generators/dcgan/all-classes", ("samples.png",)),
        ("generators/encoder/3-8", ("samples.png",)),
    ):
        names = (*trained, "card.json", *further)
        expected += [f"models/digits/{model}/{name}" for name in names]
    expected += [f"digits/methods/c3lt/3-8/{name}" for name in (*trained, "card.json")]
    expected += [
        f"timings/digits/{m}/{d}.json" for m in ("c3lt", "pgd") for d in ("3_to_8", "8_to_3")
    ]
    expected += [
        f"timings/{training}.json"
        for training in (
            "models/digits/generators/dcgan/all-classes",
            "models/digits/generators/encoder/3-8",
            "digits/training/c3lt/3-8",
        )
    ]
    for table in ("c3lt-table1", "c3lt-table5"):
        expected += [f"tables/{table}.{kind}" for kind in ("csv", "html", "json", "md", "tex")]
    expected += ["tables/digits-cost.csv", "tables/digits-cost.md"]
    expected += ["digits/report.html", "figures/digits-gallery.png"]
    expected += [f"digits/found/{d}.{k}" for d in ("3_to_8", "8_to_3") for k in ("json", "parquet")]
    there = [p.relative_to(results).as_posix() for p in results.rglob("*") if p.is_file()]
    assert sorted(there) == sorted(expected)
    assert not list((built.path / ".cache/checkpoints").glob("*")), "checkpoints are removed"
    report = (results / "digits/report.html").read_text(encoding="utf-8")
    assert all(method in report for method in ("C3LT", "PGD", "Original data"))


def test_nothing_runs_again_after_a_touch(project: Project) -> None:
    assert project.jobs("all") == []
    for folder in ("src", "rules", "config", "data", "results"):
        for path in (project.path / folder).rglob("*"):
            os.utime(path)
    assert project.jobs("all") == []


def test_editing_a_method_runs_that_method_again(project: Project) -> None:
    project.append("src/counterlens/methods/pgd.py", "\n# another remark\n")
    assert set(project.jobs("all")) == AFTER_PGD


def test_changing_a_key_of_a_method_runs_that_method_again(project: Project) -> None:
    project.edit("config/experiments/digits.yaml", "pgd: {steps: 5}", "pgd: {steps: 6}")
    assert set(project.jobs("all")) == AFTER_PGD


def test_a_key_that_the_scale_overrides_changes_only_what_prints_it(project: Project) -> None:
    project.edit("config/experiments/digits.yaml", "steps: 9", "steps: 10")
    assert project.jobs("all") == []


def test_editing_the_control_part_runs_only_what_prints_it(project: Project) -> None:
    project.append("src/counterlens/plan/plan.py", "\n# another remark\n")
    assert project.jobs("all") == []
    project.append("src/counterlens/plan/inputs.py", "\n# another remark\n")
    sets = ("digits/counterfactuals", "digits/metrics")
    assert set(project.jobs("all")) == {job for job in AFTER_PGD if not job.startswith(sets)}


SHARPNESS = '''
"""Stage `sharpness`: the mean difference of neighbouring pixels of one direction."""

import sys
from pathlib import Path

import numpy as np

from counterlens.runtime import files

if __name__ == "__main__":
    images = files.load_tensors(Path(sys.argv[1]))["counterfactual"]
    files.write_json(Path(sys.argv[2]), {"sharpness": float(np.abs(np.diff(images)).mean())})
'''
RULE = """
rule sharpness:
    input:
        images="results/{experiment}/counterfactuals/{method}/{source}_to_{target}.safetensors",
        code=project.code("reports/sharpness"),
    output:
        "results/{experiment}/sharpness/{method}/{source}_to_{target}.json",
    log:
        "logs/{experiment}/sharpness/{method}/{source}_to_{target}.log",
    params:
        settings=project.settings("methods.{method}", "evaluation"),
    shell:
        "python -m counterlens.reports.sharpness {input.images} {output} > {log} 2>&1"
"""


def test_adding_a_rule_is_the_rule_and_its_stage(project: Project) -> None:
    """As docs/add-a-rule.md says: no other file knows of it."""
    stage = project.path / "src/counterlens/reports/sharpness.py"
    stage.write_text(SHARPNESS, encoding="utf-8")
    project.append("rules/metrics.smk", RULE)
    wanted = "results/digits/sharpness/pgd/3_to_8.json"
    project.snakemake(wanted)
    first = files.read_json(project.path / wanted)["sharpness"]
    assert 0 < first < 1
    assert NOTHING_TO_DO in project.snakemake(wanted, "--dry-run")
    project.append(str(stage.relative_to(project.path)), "# another remark\n")
    assert "sharpness" in project.snakemake(wanted, "--dry-run")
    assert project.jobs("all") == []


def test_a_failing_job_says_why_in_one_line(project: Project) -> None:
    damaged = project.path / "results/digits/counterfactuals/pgd/3_to_8.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    (project.path / "results/digits/metrics/pgd/3_to_8.json").unlink()
    text = project.snakemake("results/digits/metrics/pgd/3_to_8.json", fails=True)
    log = (project.path / "logs/digits/metrics/pgd/3_to_8.log").read_text(encoding="utf-8")
    errors = [line for line in log.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("counterlens: error: results/digits/counterfactuals/pgd/3_to_8")
    assert errors[0] in text, "Snakemake shows the log of a failed job"
    assert "Traceback" not in log
    assert not (project.path / "results/digits/metrics/pgd/3_to_8.json").exists()


def test_shards_give_the_same_set(built: Project, project: Project) -> None:
    project.edit(
        "config/experiments/digits.yaml",
        "evaluation: {images: 12, ",
        "evaluation: {images: 12, shard_size: 8, ",
    )
    stems = [f"results/digits/counterfactuals/{method}/3_to_8" for method in ("c3lt", "pgd")]
    wanted = [f"{stem}.safetensors" for stem in stems]
    planned = project.jobs(*wanted)
    assert sum(".2-of-2" in job for job in planned) == 2
    assert len(planned) == 6
    project.snakemake(*wanted)
    for stem in stems:
        ours, whole = (
            files.load_tensors(each.path / f"{stem}.safetensors") for each in (project, built)
        )
        assert sorted(ours) == sorted(whole)
        for name in whole:
            # the paths of all queries are walked at once, in batches of another size
            tolerance = 1e-6 if name.startswith("path") else 0
            np.testing.assert_allclose(ours[name], whole[name], rtol=0, atol=tolerance)
        ours, whole = (pd.read_parquet(each.path / f"{stem}.parquet") for each in (project, built))
        plain = [name for name in whole if not str(name).startswith("path_")]
        # the classifier's confidences depend on the size of its batch in the last digit
        pd.testing.assert_frame_equal(ours[plain], whole[plain], rtol=0, atol=1e-6)
        assert not list((project.path / stem).parent.glob("shards/*.*"))


@pytest.mark.parametrize(
    "words",
    [
        ["fetch", "--dataset", "mnist", "--file", "nothing"],
        ["prepare", "--dataset", "digits"],
        ["table", "--table", "c3lt-table1"],
        ["cost", "--experiment", "digits"],
        ["report", "--experiment", "digits"],
        ["figure", "--figure", "digits-gallery"],
    ],
    ids=lambda words: words[0],
)
def test_stages_that_need_no_torch_do_not_import_it(project: Project, words: list[str]) -> None:
    code = 2 if words[0] == "fetch" else 0
    script = (
        "import sys; from counterlens.cli import main; "
        f"assert main({words!r}) == {code}; assert 'torch' not in sys.modules"
    )
    project.run(sys.executable, "-c", script)


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(built: Project, unbuilt: Callable[[], Project]) -> None:
    second = unbuilt()
    second.snakemake("all")
    second.assert_same(built)
