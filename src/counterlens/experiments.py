"""Experiment files, read and checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from counterlens import plugins
from counterlens.config.checks import check
from counterlens.config.experiment import Experiment, Scale
from counterlens.config.files import CONFIG_DIR, merge, read_yaml, validate
from counterlens.config.options import DatasetOptions, Options
from counterlens.errors import UserError


def _experiment_file(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = CONFIG_DIR / "experiments" / f"{name}.yaml"
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if parent in (*seen, name):
        raise UserError(f"{path}: extends: '{parent}' extends this file in turn")
    inherited = _experiment_file(str(parent), (*seen, name))
    merged = merge({key: value for key, value in inherited.items() if key != "name"}, content)
    below, above = inherited.get("small"), content.get("small")
    if isinstance(below, dict) and isinstance(above, dict):
        merged["small"] = merge(below, above, keep_null=True)
    return merged


def load_experiment(name: str, scale: Scale) -> Experiment:
    """The experiment `config/experiments/<name>.yaml` at one of its two scales.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    path = CONFIG_DIR / "experiments" / f"{name}.yaml"
    content = _experiment_file(name)
    small = content.pop("small", None) or {}
    if not isinstance(small, dict):
        raise UserError(f"{path}: small: a mapping of keys is expected")
    if scale == "small":
        content = merge(content, small)
    if content.get("name") != name:
        raise UserError(f"{path}: name: must be '{name}', the file's own name")

    def options(section: str, key: str, value: object) -> Options:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or "kind" not in value:
            raise UserError(f"{path}: {key}: a mapping with a 'kind' is expected")
        try:
            model = plugins.options_class(section, str(value["kind"]))
        except UserError as error:
            raise UserError(f"{path}: {key}.kind: {error}") from None
        return validate(path, key, model, value)

    for key, section in (("dataset", "data"), ("classifier", "classifiers")):
        if key in content:
            content[key] = options(section, key, content[key])
    for section in ("generators", "oracles", "methods"):
        named = content.get(section, {})
        if not isinstance(named, dict):
            raise UserError(f"{path}: {section}: a mapping of names is expected")
        content[section] = {k: options(section, f"{section}.{k}", v) for k, v in named.items()}
    metrics = content.get("metrics", [])
    if not isinstance(metrics, list):
        raise UserError(f"{path}: metrics: a list is expected")
    content["metrics"] = [options("metrics", f"metrics.{i}", m) for i, m in enumerate(metrics)]

    experiment = validate(path, "", Experiment, {**content, "scale": scale})
    if experiment.unsuited == "skip":
        experiment = _without_unsuited(path, experiment)
    check(path, experiment)
    return experiment


def _without_unsuited(path: Path, experiment: Experiment) -> Experiment:
    """The experiment with the methods moved to `skipped` that cannot serve it, and why."""
    reasons = {
        name: reason
        for name, method in experiment.methods.items()
        if (reason := method.unsuited(experiment.dataset, experiment.classifier))
    }
    kept = {name: m for name, m in experiment.methods.items() if name not in reasons}
    if not kept:
        raise UserError(f"{path}: methods: none can serve: {'; '.join(reasons.values())}")
    found = {"methods": kept, "skipped": {**experiment.skipped, **reasons}}
    return experiment.model_copy(update=found)


def dataset_options(kind: str, settings: Iterable[str]) -> DatasetOptions:
    """A dataset as `DatasetOptions.arguments` names it: kind and `key=value` settings.

    Raises:
        UserError: there is no such dataset or setting.
    """
    content: dict[str, Any] = {"kind": kind}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key == "kind":
            raise UserError(f"--set {setting}: write KEY=VALUE, an option of the dataset")
        try:
            content[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: the value is not valid YAML") from None
    model = plugins.options_class("data", kind)
    assert issubclass(model, DatasetOptions)
    return validate(Path("--set"), "", model, content)
