"""Where every artifact lies, relative to the project folder. The rules use the same paths."""

from __future__ import annotations

from pathlib import Path

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
WEIGHTS = Path("data/weights")
RESULTS = Path("results")
MODELS = RESULTS / "models"
TABLES = RESULTS / "tables"
FIGURES = RESULTS / "figures"
TIMINGS = RESULTS / "timings"
CHECKPOINTS = Path(".cache/checkpoints")


def raw(dataset: str) -> Path:
    """Folder of a dataset's files as downloaded."""
    return RAW / dataset


def prepared(dataset: str, split: str) -> Path:
    """Images and labels of a split: `train` or `test`."""
    return PREPARED / dataset / f"{split}.safetensors"


def dataset_card(dataset: str) -> Path:
    """Classes, shape, licence, sources and counts of a dataset."""
    return PREPARED / dataset / "dataset.json"


def weight(name: str) -> Path:
    """Availability record of a named pretrained weight."""
    return WEIGHTS / f"{name}.json"


def classifier(models: str, name: str) -> Path:
    """Folder of a classifier that is explained."""
    return MODELS / models / "classifiers" / name


def oracle(models: str, name: str) -> Path:
    """Folder of an oracle."""
    return MODELS / models / "oracles" / name


def generator(models: str, name: str, scope: str) -> Path:
    """Folder of a generator trained on `all-classes` or on one pair."""
    return MODELS / models / "generators" / name / scope


def method(experiment: str, name: str, scope: str) -> Path:
    """Folder of a method trained on one pair or on `all-pairs`."""
    return RESULTS / experiment / "methods" / name / scope


def counterfactuals(experiment: str, method: str, source: int, target: int) -> Path:
    """A counterfactual set, without suffix (`.safetensors`, `.parquet`, `.png`)."""
    return RESULTS / experiment / "counterfactuals" / method / f"{source}_to_{target}"


def shard(experiment: str, method: str, source: int, target: int, number: int, of: int) -> Path:
    """One shard of a counterfactual set, without suffix; numbered from 1."""
    whole = counterfactuals(experiment, method, source, target)
    return whole.parent / "shards" / f"{whole.name}.{number}-of-{of}"


def timing(experiment: str, method: str, source: int, target: int) -> Path:
    """Seconds per image of a direction. Outputs under `TIMINGS` alone differ from run to run."""
    return TIMINGS / experiment / method / f"{source}_to_{target}.json"


def generator_time(models: str, name: str, scope: str) -> Path:
    """Seconds that the training of a generator took."""
    return TIMINGS / "models" / models / "generators" / name / f"{scope}.json"


def method_time(experiment: str, name: str, scope: str) -> Path:
    """Seconds that the training of a method took."""
    return TIMINGS / experiment / "training" / name / f"{scope}.json"


def found(experiment: str, source: int, target: int) -> Path:
    """Which method found a counterfactual for which query, without suffix (`.parquet`, `.json`)."""
    return RESULTS / experiment / "found" / f"{source}_to_{target}"


def metrics(experiment: str, method: str, source: int, target: int) -> Path:
    """Metrics of a counterfactual set, without suffix (`.json`, `.parquet`)."""
    return RESULTS / experiment / "metrics" / method / f"{source}_to_{target}"


def pair_metrics(experiment: str, method: str, pair: str) -> Path:
    """Metrics of all directions of a pair together, without suffix (`.json`)."""
    return RESULTS / experiment / "metrics" / method / pair


def animations(experiment: str, method: str, dataset: str, pair: str) -> Path:
    """Folder of the animated paths of a pair."""
    return RESULTS / experiment / "animations" / method / dataset / pair


def report(experiment: str) -> Path:
    """The self-contained HTML report of an experiment."""
    return RESULTS / experiment / "report.html"
