"""Stage `metrics`: every metric of an experiment on one counterfactual set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, MetricOptions
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

__all__ = ["compute", "evaluate"]

FEATURES = Path(".cache/features")
EMPTY = "the counterfactual set has no image"
UNPAIRED = "compares each counterfactual with its query, and these images have none"


def compute(
    experiment: Experiment, method: str, source: int, target: int, device: torch.device
) -> None:
    """Read a counterfactual set, judge it, and write its `.json` and `.parquet`.

    Raises:
        UserError: an input is missing, or a set is too small for a metric.
    """
    cf = CounterfactualSet.load(layout.counterfactuals(experiment.name, method, source, target))
    wanted = [metric for metric in experiment.metrics if _reason_to_skip(metric, cf) is None]
    dataset = experiment.dataset.name
    context = MetricContext(
        classifier=classifiers.load(experiment, device),
        oracles={
            name: oracles.load(experiment, name, device)
            for name in sorted({name for metric in wanted for name in metric.oracles()})
        },
        reference=lambda label: quantise(
            load_split(layout.prepared(dataset, "train"), [label]).images
        ),
        device=device,
        cache=FEATURES,
    )
    summary, table = evaluate(cf, experiment.metrics, context)
    output = layout.metrics(experiment.name, method, source, target)
    files.write_parquet(Path(f"{output}.parquet"), table)
    files.write_json(Path(f"{output}.json"), summary)


def evaluate(
    cf: CounterfactualSet, metrics: Sequence[MetricOptions], context: MetricContext
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Judge a set with every metric. Queries that are errors of the classifier do not count.

    Returns:
        The content of the `.json`: means of the per-image columns, per-set columns, and for each
        column that could not be computed the reason. And the table of the `.parquet`: one row per
        image; curves are list columns.

    Raises:
        UserError: the set is too small for a metric.
        ValueError: a metric gave columns other than it declares, or a value that is not finite.
    """
    errors = cf.select(cf.errors())
    cf = cf.select(~cf.errors()) if len(errors) else cf
    numbers = cf.table["image"].to_numpy() if "image" in cf.table else np.arange(len(cf))
    table: dict[str, Any] = {"image": numbers}
    per_image: dict[str, float] = {}
    per_set: dict[str, float] = {}
    not_available: dict[str, str] = {}
    notes: dict[str, str] = {}
    for options in metrics:
        declared = {column.name: column for column in options.columns()}
        reason = _reason_to_skip(options, cf)
        if reason is not None:
            not_available |= dict.fromkeys(declared, reason)
            continue
        metric: Metric = plugins.create("metrics", options, Metric, context)
        try:
            images, sets = metric.per_image(cf), metric.per_set(cf)
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
            if len(values) != len(cf) or not np.isfinite(values).all():
                raise ValueError(f"{name}: not one finite value for each of {len(cf)} images")
            table[name] = values if values.ndim == 1 else list(values)
            if values.ndim == 1:
                per_image[name] = float(values.mean())
        for name, value in sets.items():
            if not np.isfinite(value):
                raise ValueError(f"{name} is {value}")
            per_set[name] = float(value)
        notes |= metric.notes(cf)
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


def _reason_to_skip(options: MetricOptions, cf: CounterfactualSet) -> str | None:
    if not len(cf):
        return EMPTY
    if options.paired and not cf.paired:
        return UNPAIRED
    return None
