"""The stage `cost`: measured seconds of every method of an experiment, its training included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from counterlens import layout
from counterlens.config import Experiment, Pair, Scale
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.runtime import files


def collect(
    experiment: Experiment, directions: Mapping[str, Sequence[Pair]] | None = None
) -> pd.DataFrame:
    """One row per method: the mean over its directions, weighted by images, and its trainings.

    The seconds of a method that goes on from another's counterfactuals include the other's.
    `training_seconds` is of the method itself, `generator_seconds` of all the generators it needs;
    methods that share one count it each.

    Args:
        experiment: the experiment.
        directions: by method, those that count, with the trainings on their pairs; None: all.

    Raises:
        UserError: a timing file is missing.
    """
    summary = []
    chosen_of = inputs.own_directions(experiment) if directions is None else directions
    for method, chosen in chosen_of.items():
        paths = inputs.timing_files(experiment, method, chosen)
        measured: list[dict[str, Any]] = [files.read_json(path) for path in paths]
        seconds, images = per_image(experiment, method, chosen)
        summary.append(
            {
                "experiment": experiment.name,
                "method": method,
                "seconds_per_image": seconds,
                "images": images,
                "training_seconds": _seconds(inputs.training_times(experiment, method, chosen)),
                "generator_seconds": _seconds(inputs.generator_times(experiment, method, chosen)),
                "device": "; ".join(sorted({str(each["device"]) for each in measured})),
                "threads": "; ".join(sorted({str(each["threads"]) for each in measured})),
            }
        )
    return pd.DataFrame(summary)


def per_image(experiment: Experiment, method: str, directions: Sequence[Pair]) -> tuple[float, int]:
    """Mean seconds of a counterfactual over all images of some directions, and their number.

    What the method goes on from is included.

    Raises:
        UserError: a timing file is missing.
    """
    seconds, images = _mean(inputs.timing_files(experiment, method, directions))
    earlier, _ = _mean(inputs.earlier_timing_files(experiment, method, directions))
    return seconds + earlier, images


def _mean(paths: Iterable[Path]) -> tuple[float, int]:
    """Mean seconds per image of some timing files, weighted by images, and the images."""
    read: list[dict[str, Any]] = [files.read_json(path) for path in paths]
    images = sum(int(each["images"]) for each in read)
    seconds = sum(float(each["seconds_per_image"]) * int(each["images"]) for each in read)
    return seconds / max(1, images), images


def _seconds(paths: Iterable[Path]) -> float:
    return sum(float(files.read_json(path)["seconds"]) for path in paths)


def to_markdown(experiment: Experiment, summary: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    lines = [
        f"# Cost of a counterfactual: {experiment.name} (scale {experiment.scale})",
        "",
        "| method | seconds per image | images | training, s | its generators, s "
        "| device | threads |",
        "|:---|---:|---:|---:|---:|:---|---:|",
    ]
    for row in summary.to_dict("records"):
        name, device = experiment.label(row["method"]), str(row["device"]).replace("|", "\\|")
        lines.append(
            f"| {name} | {row['seconds_per_image']:.3g} | {row['images']} "
            f"| {row['training_seconds']:.1f} | {row['generator_seconds']:.1f} "
            f"| {device} | {row['threads']} |"
        )
    return "\n".join(lines) + "\n"


def run(name: str, scale: Scale) -> None:
    """Write `results/tables/<experiment>-cost.{csv,md}`."""
    experiment = load_experiment(name, scale)
    summary = collect(experiment)
    stem = layout.TABLES / f"{name}-cost"
    files.write_csv(stem.with_suffix(".csv"), summary)
    files.write_text(stem.with_suffix(".md"), to_markdown(experiment, summary))
