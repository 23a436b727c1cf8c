"""Experiments and models files, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from counterlens import plugins
from counterlens.config import (
    CONFIG_DIR,
    DatasetOptions,
    Experiment,
    Models,
    Options,
    Scale,
    merge,
    read_yaml,
)
from counterlens.config.checks import check_experiment, check_models
from counterlens.config.files import validate
from counterlens.errors import UserError

MODELS = CONFIG_DIR / "models"
EXPERIMENTS = CONFIG_DIR / "experiments"
OF_MODELS = ("dataset", "seed", "classifiers", "generators", "oracles")


def load_experiment(name: str, scale: Scale) -> Experiment:
    """The experiment `config/experiments/<name>.yaml` at one of its two scales.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    path = EXPERIMENTS / f"{name}.yaml"
    content = _at_scale(path, scale)
    if content.get("name") != name:
        raise UserError(f"{path}: name: must be '{name}', the file's own name")
    allowed = sorted({*Experiment.model_fields, *OF_MODELS})
    for key in content:
        if key not in allowed:
            raise UserError(f"{path}: {key}: unknown key; allowed: {', '.join(allowed)}")
    if "models" in content:
        content["models"] = _named_models(path, content, scale)
    else:
        content["models"] = _inline_models(path, content, scale)
    content["methods"] = _named_options(path, "methods", content.get("methods", {}))
    metrics = content.get("metrics", [])
    if not isinstance(metrics, list):
        raise UserError(f"{path}: metrics: a list is expected")
    content["metrics"] = [
        _options(path, "metrics", f"metrics.{i}", m) for i, m in enumerate(metrics)
    ]

    experiment = validate(path, "", Experiment, content)
    if experiment.classifier not in experiment.models.classifiers:
        known = ", ".join(experiment.models.classifiers)
        raise UserError(f"{path}: classifier: '{experiment.classifier}' is unknown; known: {known}")
    if experiment.unsuited == "skip":
        experiment = _without_unsuited(path, experiment)
    check_experiment(path, experiment)
    return experiment


def load_models(name: str, scale: Scale) -> Models:
    """The models `config/models/<name>.yaml`, or those that the experiment `<name>` holds itself.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    path = MODELS / f"{name}.yaml"
    if not path.exists() and (EXPERIMENTS / f"{name}.yaml").exists():
        return load_experiment(name, scale).models
    content = _at_scale(path, scale)
    for key in content:
        if key not in OF_MODELS:
            raise UserError(f"{path}: {key}: unknown key; allowed: {', '.join(sorted(OF_MODELS))}")
    return _models(path, {**content, "name": name}, scale)


def _at_scale(path: Path, scale: Scale) -> dict[str, Any]:
    """The content of a file and of those that it extends, with or without its reduction."""
    content = _with_extended(path)
    small = content.pop("small", None) or {}
    if not isinstance(small, dict):
        raise UserError(f"{path}: small: a mapping of keys is expected")
    return merge(content, small) if scale == "small" else content


def _with_extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    extended = path.parent / f"{parent}.yaml"
    if extended in (*seen, path):
        raise UserError(f"{path}: extends: '{parent}' extends this file in turn")
    inherited = _with_extended(extended, (*seen, path))
    merged = merge({key: value for key, value in inherited.items() if key != "name"}, content)
    below, above = inherited.get("small"), content.get("small")
    if isinstance(below, dict) and isinstance(above, dict):
        merged["small"] = merge(below, above, keep_null=True)
    return merged


def _named_models(path: Path, content: dict[str, Any], scale: Scale) -> Models:
    """The models file that an experiment names, of whose keys it has none itself."""
    name = content["models"]
    if not isinstance(name, str) or not (MODELS / f"{name}.yaml").is_file():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml"))) or "none"
        raise UserError(f"{path}: models: '{name}' is no file of {MODELS}; known: {known}")
    for key in OF_MODELS:
        if key in content:
            file = MODELS / f"{name}.yaml"
            raise UserError(f"{path}: {key}: stands in {file}, which `models` names; leave it out")
    return load_models(name, scale)


def _inline_models(path: Path, content: dict[str, Any], scale: Scale) -> Models:
    """The models that an experiment holds itself; they are taken out of its content.

    Its only classifier may stand under `classifier`, and is then known by its kind.
    """
    if (MODELS / f"{content['name']}.yaml").exists():
        raise UserError(
            f"{path}: name: {MODELS}/{content['name']}.yaml has the same name as the models that "
            "this file holds itself; name that file under `models`, or choose another name"
        )
    own: dict[str, Any] = {key: content.pop(key) for key in OF_MODELS if key in content}
    written = "classifiers"
    if isinstance(content.get("classifier"), dict):
        if "classifiers" in own:
            raise UserError(f"{path}: classifier: must be one of the names under `classifiers`")
        options, written = content["classifier"], "classifier"
        words = re.findall("[a-z0-9]+", Path(str(options.get("kind"))).stem.lower())
        content["classifier"] = "-".join(words) or "classifier"
        own["classifiers"] = {content["classifier"]: options}
    elif "classifier" not in content:
        raise UserError(f"{path}: classifier: key is missing")
    elif "classifiers" not in own:
        raise UserError(
            f"{path}: classifier: '{content['classifier']}' is the name of a model; name its file "
            "under `models`, or give a mapping with a 'kind'"
        )
    return _models(path, {**own, "name": content["name"]}, scale, written)


def _models(
    path: Path, content: dict[str, Any], scale: Scale, classifiers: str = "classifiers"
) -> Models:
    """Models validated; `classifiers` is the key under which the file has its classifiers."""
    if "dataset" in content:
        content["dataset"] = _options(path, "data", "dataset", content["dataset"])
    only = classifiers == "classifier"
    for section in ("classifiers", "generators", "oracles"):
        if only and section == "classifiers":
            [(name, value)] = content[section].items()
            content[section] = {name: _options(path, section, classifiers, value)}
        elif section in content:
            content[section] = _named_options(path, section, content[section])
    models = validate(path, "", Models, {**content, "scale": scale})
    models = with_only_classifier(models)
    check_models(path, models, "classifier" if only else None)
    return models


def with_only_classifier(models: Models) -> Models:
    """Models in which those that ask a classifier name it, where there is only one."""
    if len(models.classifiers) > 1:
        return models
    (only,) = models.classifiers

    def named(section: str) -> dict[str, Any]:
        return {
            name: options.model_copy(update={"classifier": only})
            if options.uses_classifier and options.classifier is None
            else options
            for name, options in getattr(models, section).items()
        }

    return models.model_copy(update={each: named(each) for each in ("generators", "oracles")})


def _named_options(path: Path, section: str, content: object) -> dict[str, Options]:
    """The entries of a section; the kind of each defaults to its name."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: {section}: a mapping of names is expected")
    return {
        name: _options(path, section, f"{section}.{name}", value, default=str(name))
        for name, value in content.items()
    }


def _options(
    path: Path, section: str, key: str, value: object, default: str | None = None
) -> Options:
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict) and default is not None:
        value = {"kind": default, **value}
    if not isinstance(value, dict) or "kind" not in value:
        raise UserError(f"{path}: {key}: a mapping with a 'kind' is expected")
    try:
        model = plugins.options_class(section, str(value["kind"]))
    except UserError as error:
        raise UserError(f"{path}: {key}.kind: {error}") from None
    return validate(path, key, model, value)


def _without_unsuited(path: Path, experiment: Experiment) -> Experiment:
    """The experiment with the methods moved to `skipped` that cannot serve it, and why."""
    reasons = {
        name: reason
        for name, method in experiment.methods.items()
        if (reason := method.unsuited(experiment.dataset, experiment.classifier_options))
    }
    kept = {name: m for name, m in experiment.methods.items() if name not in reasons}
    if not kept:
        raise UserError(f"{path}: methods: none can serve: {'; '.join(reasons.values())}")
    skipped = {**experiment.skipped, **reasons}
    return experiment.model_copy(update={"methods": kept, "skipped": skipped})


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
