"""Which settings a job depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterlens.config import ORIGINAL_DATA
from counterlens.plan.plan import Plan

from .rules import Job, asked, jobs, rules


def settings_of(project: Plan) -> dict[tuple[str, ...], str]:
    """Every settings string by rule and wildcards."""
    return {
        (
            name,
            *(value for key, value in job.items() if key not in ("source", "target", "scope")),
        ): project.settings(*asked(body, "settings"))(job)
        for name, body in rules().items()
        if "project.settings(" in body
        for job in jobs(project, body)
    }


Edit = Callable[[dict[str, Any]], object]
Differences = Callable[..., set[tuple[str, ...]]]


@pytest.fixture
def differences(copied_project: Path, monkeypatch: pytest.MonkeyPatch) -> Differences:
    """The settings that an edit of a digits.yaml changes, other than those of reports."""
    (copied_project / "config/experiments/digits-dcgan.yaml").unlink()  # extends digits
    before = settings_of(Plan({}))

    def changed(edit: Edit, folder: str = "experiments") -> set[tuple[str, ...]]:
        monkeypatch.chdir(copied_project)
        path = copied_project / "config" / folder / "digits.yaml"
        text = path.read_text()
        content = yaml.safe_load(text)
        edit(content)
        path.write_text(yaml.safe_dump(content))
        after = settings_of(Plan({}))
        path.write_text(text)
        assert before.keys() == after.keys()
        different = {key for key in before if before[key] != after[key]}
        assert different & {("report", "digits", ORIGINAL_DATA)} or not different
        return {key for key in different if key[0] not in ("report", "table")}

    return changed


def explained(*methods: str) -> set[tuple[str, ...]]:
    """The jobs that ask for the settings of explaining by some methods."""
    return {(rule, "digits", method) for rule in ("explain", "explain_shard") for method in methods}


def test_an_option_of_a_method_changes_that_method_alone(differences) -> None:
    assert differences(lambda e: e["small"]["methods"]["pgd"].update(steps=7)) == {
        ("fit", "digits", "pgd"),
        *explained("pgd"),
    }


def test_pairs_do_not_change_what_a_method_is_trained_with(differences, project) -> None:
    assert differences(lambda e: e["methods"]["c3lt-n3"].pop("pairs")) == set()
    assert differences(lambda e: e["methods"]["c3lt"].update(pairs=[[4, 9]])) == set()
    # a joint training is on all of them
    e = project.experiments["digits"]
    joint = {name for name in e.methods if e.methods[name].joint and e.methods[name].pairs is None}
    assert joint
    assert differences(lambda e: e["pairs"].append([4, 8])) == {
        ("fit", "digits", name) for name in joint
    }


def test_evaluation_changes_the_counterfactuals_only(differences, project) -> None:
    methods = project.experiments["digits"].methods
    assert differences(lambda e: e["evaluation"].update(images=7)) == {
        ("original_data", "digits", ORIGINAL_DATA),
        *(("animations", "digits", method) for method in methods),
        *explained(*methods),
    }


def test_models(differences) -> None:
    def models(edit: Edit) -> set[tuple[str, ...]]:
        return differences(edit, "models")

    # what names a classifier, its recipe or its labels depends on its options
    asking = models(lambda m: m["classifiers"]["gap-resnet"].update(lr=0.5))
    assert ("classifier", "digits", "gap-resnet") in asking
    assert ("oracle", "digits", "feature-extractor") in asking
    assert ("generator", "digits", "vae") in asking
    assert ("generator", "digits", "encoder") not in asking  # which names the other one
    assert ("oracle", "digits", "autoencoders") not in asking  # which names none
    encoder = models(lambda m: m["generators"]["encoder"].update(batch_size=7))
    assert encoder == {("generator", "digits", "encoder")}
    simsiam = models(lambda m: m["oracles"]["simsiam"].update(batch_size=7))
    assert simsiam == {("oracle", "digits", "simsiam")}


def test_metrics_and_descriptions(differences, project) -> None:
    rows = (*project.experiments["digits"].methods,)
    metrics = differences(lambda e: e["metrics"][4].update(steps=7))
    assert metrics == {
        (rule, "digits", row) for rule in ("metrics", "metrics_of_pair") for row in rows
    }
    assert differences(lambda e: e.update(description="the same")) == set()


def test_the_seed_changes_everything_of_its_dataset(differences, project) -> None:
    changed = differences(lambda m: m.update(seed=7), "models")
    everything = {key for key in settings_of(project) if key[1] == "digits"}
    assert changed == {key for key in everything if key[0] not in ("report", "found", "export")} | {
        key for key in everything if key[0] == "export"
    }


def test_spelling_a_default_out_changes_nothing(differences) -> None:
    assert differences(lambda e: e["methods"]["c3lt"].update(alpha=0.1)) == set()


def test_only_what_shapes_a_training_trains_anew(project: Plan) -> None:
    name = "mirror-cfe-mnist"
    e = project.experiments[name]
    job = Job(experiment=name, method="mirror-cfe")

    def settings(**changes: Any) -> tuple[str, str]:
        options = e.methods["mirror-cfe"].model_copy(update=changes)
        methods = {**e.methods, "mirror-cfe": options}
        project.experiments[name] = e.model_copy(update={"methods": methods})
        rule = rules()
        fit, explain = (project.settings(*asked(rule[r], "settings")) for r in ("fit", "explain"))
        return fit(job), explain(job)

    fit, explain = settings()
    for change in ({"point": "reflection"}, {"grid": 7}):
        assert settings(**change)[0] == fit and settings(**change)[1] != explain
    assert settings(pairs=e.pairs[:1]) == (fit, explain)
    assert settings(lr=0.5)[0] != fit
    # a joint training depends on the pairs that it is of
    joint = {"scope": "all-pairs"}
    assert settings(**joint)[0] != settings(**joint, pairs=e.pairs[:1])[0] != fit
