"""Stage `metrics`: every metric of an experiment on one counterfactual set, or on a pair's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, MetricOptions, Pair, pair_name
from counterlens.data.base import load_split
from counterlens.metrics.base import (
    CounterfactualSet,
    Metric,
    MetricContext,
    NotAvailable,
    quantise,
)
from counterlens.oracles import base as oracles
from counterlens.runtime import files

__all__ = ["compute", "compute_pair", "evaluate", "evaluate_pair"]

FEATURES = Path(".cache/features")
EMPTY = "the counterfactual set has no image"
UNPAIRED = "compares each counterfactual with its query, and these images have none"
NONE_COUNTS = "no image of the set counts"
NONE_FLIPS = "no counterfactual reaches its target class"


def context_of(
    experiment: Experiment, metrics: Iterable[MetricOptions], device: torch.device
) -> MetricContext:
    """What some of an experiment's metrics need, loaded."""
    models = experiment.models
    train_file = layout.prepared(models.dataset.name, "train")
    attribute = models.attribute_index(experiment.classifier)
    return MetricContext(
        classifier=classifiers.load(models, experiment.classifier, device),
        oracles={
            name: oracles.load(models, name, device)
            for name in sorted({name for metric in metrics for name in metric.oracles()})
        },
        reference=lambda label: quantise(load_split(train_file, [label], attribute).images),
        device=device,
        class_names=experiment.classes,
        attribute=attribute,
        cache=FEATURES,
    )


def compute(
    experiment: Experiment, method: str, source: int, target: int, device: torch.device
) -> None:
    """Read a counterfactual set, judge it, and write its `.json` and `.parquet`.

    Raises:
        UserError: an input is missing, or a set is too small for a metric.
    """
    cf = CounterfactualSet.load(layout.counterfactuals(experiment.name, method, source, target))
    here = [m for m in experiment.metrics if any(c.per != "pair" for c in m.columns())]
    wanted = [metric for metric in here if _reason_to_skip(metric, [cf]) is None]
    context = context_of(experiment, wanted, device)
    summary, table = evaluate(cf, experiment.metrics, context)
    output = layout.metrics(experiment.name, method, source, target)
    files.write_parquet(Path(f"{output}.parquet"), table)
    files.write_json(Path(f"{output}.json"), summary)


def compute_pair(experiment: Experiment, method: str, pair: Pair, device: torch.device) -> None:
    """Read all directions of a pair, judge them together, and write the pair's `.json`.

    Raises:
        UserError: an input is missing.
    """
    sets = [
        CounterfactualSet.load(layout.counterfactuals(experiment.name, method, *direction))
        for direction in experiment.pair_directions(pair)
    ]
    pooled = [m for m in experiment.metrics if any(c.per == "pair" for c in m.columns())]
    wanted = [metric for metric in pooled if _reason_to_skip(metric, sets) is None]
    context = context_of(experiment, wanted, device)
    summary = evaluate_pair(sets, pooled, context)
    output = layout.pair_metrics(experiment.name, method, pair_name(pair))
    files.write_json(Path(f"{output}.json"), {"pair": list(pair), **summary})


def evaluate(
    cf: CounterfactualSet, metrics: Sequence[MetricOptions], context: MetricContext
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Judge one set. A metric sees only the rows that it counts.

    Returns:
        The content of the `.json`: means of the per-image columns, per-set columns, and for each
        column that could not be computed the reason. And the table of the `.parquet`: one row per
        image; rows that a metric does not count are NaN; curves are list columns. Queries that
        are errors of the classifier have a row only if some metric counts them.

    Raises:
        UserError: the set is too small for a metric.
        ValueError: a metric gave columns other than it declares, or a value that is not finite.
    """
    errors = cf.select(cf.errors())
    if not any(options.errors for options in metrics):
        cf = cf.select(~cf.errors()) if len(errors) else cf
    numbers = cf.table["image"].to_numpy() if "image" in cf.table else np.arange(len(cf))
    table: dict[str, Any] = {"image": numbers}
    per_image: dict[str, float] = {}
    per_set: dict[str, float] = {}
    not_available: dict[str, str] = {}
    notes: dict[str, str] = {}
    for options in metrics:
        declared = {c.name: c for c in options.columns() if c.per != "pair"}
        if not declared:
            continue
        reason = _reason_to_skip(options, [cf])
        if reason is not None:
            not_available |= dict.fromkeys(declared, reason)
            continue
        rows = context.counted(cf, options)
        if not rows.any():
            reason = NONE_FLIPS if options.flipped else NONE_COUNTS
            not_available |= dict.fromkeys(declared, reason)
            nothing = (name for name, column in declared.items() if column.per == "image")
            table |= dict.fromkeys(nothing, np.full(len(cf), np.nan))
            continue
        seen = cf if rows.all() else cf.select(rows)
        metric: Metric = plugins.create("metrics", options, Metric, context)
        try:
            images, sets = metric.per_image(seen), metric.per_set(seen)
        except NotAvailable as error:
            not_available |= dict.fromkeys(declared, error.reason)
            continue
        scalars = {name for name, values in images.items() if values.ndim == 1}
        expected = {
            per: {name for name, column in declared.items() if column.per == per}
            for per in ("image", "set")
        }
        if scalars != expected["image"] or set(sets) != expected["set"]:
            raise ValueError(
                f"metric {options.kind} declares {sorted(declared)} and gave "
                f"{sorted(scalars)} per image and {sorted(sets)} per set"
            )
        for name, values in images.items():
            if len(values) != len(seen) or not np.isfinite(values).all():
                raise ValueError(f"{name}: not one finite value for each of {len(seen)} images")
            table[name] = _spread(values, rows)
            if values.ndim == 1:
                per_image[name] = float(values.mean())
        per_set |= _finite(sets)
        notes |= metric.notes(seen)
    summary = {
        "experiment": cf.experiment,
        "method": cf.method,
        "source": cf.source,
        "target": cf.target,
        "images": len(cf),
        "per_image": per_image,
        "per_set": per_set,
        "not_available": not_available,
        "notes": notes,
    }
    if len(errors):
        reached = errors.table["predicted_counterfactual"].to_numpy() == errors.target
        summary["errors"] = {"images": len(errors), "validity": float(reached.mean())}
    return summary, pd.DataFrame(table)


def evaluate_pair(
    sets: Sequence[CounterfactualSet], metrics: Sequence[MetricOptions], context: MetricContext
) -> dict[str, Any]:
    """Judge all directions of a pair together, by the metrics that do so.

    Returns:
        The content of the pair's `.json`: the values, the number of images that the metric
        counted for each, and for each column that could not be computed the reason.

    Raises:
        ValueError: a metric gave columns other than it declares, or a value that is not finite.
    """
    per_pair: dict[str, float] = {}
    images: dict[str, int] = {}
    not_available: dict[str, str] = {}
    for options in metrics:
        declared = [column.name for column in options.columns() if column.per == "pair"]
        reason = _reason_to_skip(options, sets)
        if reason is not None:
            not_available |= dict.fromkeys(declared, reason)
            continue
        metric: Metric = plugins.create("metrics", options, Metric, context)
        try:
            values = metric.per_pair(sets)
        except NotAvailable as error:
            not_available |= dict.fromkeys(declared, error.reason)
            continue
        if set(values) != set(declared):
            raise ValueError(
                f"metric {options.kind} declares {sorted(declared)} and gave {sorted(values)}"
            )
        per_pair |= _finite(values)
        count = sum(int(context.counted(cf, options).sum()) for cf in sets)
        images |= dict.fromkeys(declared, count)
    return {"per_pair": per_pair, "images": images, "not_available": not_available}


def _spread(values: np.ndarray, rows: np.ndarray) -> Any:
    """Values of the counted rows as a column of all rows: NaN, or None for a curve, elsewhere."""
    if values.ndim > 1:
        column: list[np.ndarray | None] = [None] * len(rows)
        for row, value in zip(np.flatnonzero(rows), values, strict=True):
            column[row] = value
        return column
    spread = np.full(len(rows), np.nan)
    spread[rows] = values
    return spread


def _finite(values: dict[str, float]) -> dict[str, float]:
    for name, value in values.items():
        if not np.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return {name: float(value) for name, value in values.items()}


def _reason_to_skip(options: MetricOptions, sets: Sequence[CounterfactualSet]) -> str | None:
    if not all(len(cf) for cf in sets):
        return EMPTY
    if options.paired and not all(cf.paired for cf in sets):
        return UNPAIRED
    return None
