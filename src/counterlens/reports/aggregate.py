"""From the metrics of single directions to one number per method and column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from counterlens import layout
from counterlens.config import ORIGINAL_DATA, Column, Experiment, Pair
from counterlens.errors import UserError
from counterlens.metrics.parts.bootstrap import mean_interval
from counterlens.plan import inputs
from counterlens.reports import timing
from counterlens.runtime import files
from counterlens.runtime.seeding import derive_seed

LEAST_SHARE = 0.8
"""Of the images of the largest set, those that a set needs to be compared where size matters."""
NONE_FOUND_BY_ALL = "there is no image for which every row found a counterfactual"
Status = Literal["ok", "not run", "skipped", "not available", "not defined"]


@dataclass(frozen=True)
class Cell:
    """One number of a table, in printed units (after the column's `scale`).

    `status` is "ok", "not run" (the experiment does not define the method), "skipped" (it cannot
    serve the experiment; `reason` tells why), "not available" (`reason` tells why) or "not
    defined" (a paired column of unpaired real images). `images` is how many images it was computed
    from; `low` and `high` bound the mean with 95 % confidence and exist for per-image columns only.
    """

    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class _Direction:
    """The metrics of one counterfactual set."""

    images: int
    per_image: pd.DataFrame
    per_set: Mapping[str, float]
    not_available: Mapping[str, str]
    notes: Mapping[str, str]


def _read(experiment: str, method: str, direction: Pair) -> _Direction:
    stem = layout.metrics(experiment, method, *direction)
    summary: dict[str, Any] = files.read_json(stem.with_suffix(".json"))
    table = stem.with_suffix(".parquet")
    if not table.is_file():
        raise UserError(f"{table}: no such file; run the stage that makes it")
    return _Direction(
        images=int(summary["images"]),
        per_image=pd.read_parquet(table),
        per_set=summary.get("per_set", {}),
        not_available=summary.get("not_available", {}),
        notes=summary.get("notes", {}),
    )


class Results:
    """The metrics of one experiment, each file read once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.columns = experiment.columns()
        self.paired = {c.name for m in experiment.metrics if m.paired for c in m.columns()}
        self._read: dict[tuple[str, Pair], _Direction] = {}

    def direction(self, method: str, direction: Pair) -> _Direction:
        """The metrics of one counterfactual set."""
        key = (method, direction)
        if key not in self._read:
            self._read[key] = _read(self.experiment.name, method, direction)
        return self._read[key]

    def images(self, method: str, directions: Iterable[Pair]) -> int:
        """How many counterfactuals of a method are judged."""
        return sum(self.direction(method, direction).images for direction in directions)

    def common(
        self, methods: Sequence[str], directions: Sequence[Pair]
    ) -> dict[Pair, tuple[int, ...]]:
        """The images of each direction that all of the methods explain, by index."""
        return {
            direction: tuple(
                sorted(
                    set.intersection(
                        *(set(self.direction(m, direction).per_image["image"]) for m in methods)
                    )
                )
            )
            for direction in directions
        }

    def notes(self, sets: Sequence[tuple[str, Pair]]) -> list[str]:
        """What the metrics remark on sets (method, direction): each remark once, with a count."""
        counts: dict[tuple[str, str], int] = {}
        for method, direction in sets:
            for column, note in self.direction(method, direction).notes.items():
                counts[column, note] = counts.get((column, note), 0) + 1
        labels = {name: column.label for name, column in self.columns.items()}
        return [
            f"{labels.get(column, column)}: {note} ({count} of {len(sets)} sets)"
            for (column, note), count in sorted(counts.items())
        ]

    def cell(
        self,
        method: str,
        column: str,
        directions: Sequence[Pair],
        *,
        only: Mapping[Pair, Sequence[int]] | None = None,
        interval: bool = True,
    ) -> Cell:
        """One number: a method, a column, some directions.

        Per-image columns: mean over all images of all directions, each image with equal weight; a
        direction of which no image counts adds none.
        Per-set columns: mean over the directions. The interval is a percentile bootstrap over
        images with a seed of its own, so that a number has the same interval in every table.

        Args:
            only: the images of each direction that per-image columns count; None: all of them.

        Raises:
            UserError: a metrics file is missing or lacks the column.
        """
        if method in self.experiment.skipped:
            return Cell("skipped", reason=self.experiment.skipped[method])
        if not inputs.runs(self.experiment, method):
            return Cell("not run")
        if column == inputs.TIME.name:
            return self._time_cell(method, directions)
        if column not in self.columns:
            reason = f"experiment {self.experiment.name} does not compute it"
            return Cell("not available", reason=reason)
        if method == ORIGINAL_DATA and column in self.paired:
            return Cell("not defined")
        declared = self.columns[column]
        if declared.per == "pair":
            return self._pair_cell(method, declared, directions)
        judged = [self.direction(method, direction) for direction in directions]
        reasons = [each.not_available[column] for each in judged if column in each.not_available]
        if any(column in each.not_available and not _has(each, column) for each in judged):
            return Cell("not available", reason=reasons[0])
        for direction, each in zip(directions, judged, strict=True):
            if not _has(each, column):
                stem = layout.metrics(self.experiment.name, method, *direction)
                raise UserError(f"{stem}.json: lacks the column '{column}'; delete it and rerun")
        if declared.per == "set":
            values = np.array([each.per_set[column] for each in judged], dtype=np.float64)
            images = sum(each.images for each in judged)
            return Cell("ok", float(values.mean()) * declared.scale, images=images)
        parts = [each.per_image for each in judged]
        if only is not None:
            counted = zip(directions, parts, strict=True)
            parts = [part.loc[part["image"].isin(only[direction])] for direction, part in counted]
            if not any(map(len, parts)):
                return Cell("not available", reason=NONE_FOUND_BY_ALL)
        values = np.concatenate([part[column].to_numpy(np.float64) for part in parts])
        values = values[np.isfinite(values)]  # NaN: the metric does not count the image
        if not len(values):
            return Cell("not available", reason=reasons[0] if reasons else NONE_FOUND_BY_ALL)
        low = high = None
        if interval:
            seed = derive_seed(
                self.experiment.seed, "bootstrap", self.experiment.name, method, column
            )
            low, high = (bound * declared.scale for bound in mean_interval(values, seed=seed))
        mean = float(values.mean()) * declared.scale
        return Cell("ok", mean, low, high, images=int(values.size))

    def _time_cell(self, method: str, directions: Sequence[Pair]) -> Cell:
        """Mean over all images of the directions."""
        if method == ORIGINAL_DATA:
            return Cell("not defined")
        seconds, images = timing.per_image(self.experiment, method, directions)
        return Cell("ok", seconds * inputs.TIME.scale, images=images)

    def _pair_cell(self, method: str, column: Column, directions: Sequence[Pair]) -> Cell:
        """Mean over the pairs that the directions belong to."""
        files_of = inputs.pair_files(self.experiment, method, directions)
        read: list[dict[str, Any]] = [files.read_json(path) for path in files_of]
        reasons = [
            each["not_available"][column.name]
            for each in read
            if column.name in each["not_available"]
        ]
        if reasons:
            return Cell("not available", reason=reasons[0])
        for path, each in zip(files_of, read, strict=True):
            if column.name not in each["per_pair"]:
                raise UserError(f"{path}: lacks the column '{column.name}'; delete it and rerun")
        mean = float(np.mean([each["per_pair"][column.name] for each in read]))
        images = sum(int(each["images"][column.name]) for each in read)
        return Cell("ok", mean * column.scale, images=images)


def _has(direction: _Direction, column: str) -> bool:
    return column in direction.per_set or column in direction.per_image.columns


def comparable(cells: Mapping[str, Cell], column: Column) -> dict[str, float]:
    """The printed values that may be set against each other, by method.

    Not those of real images; of a size-biased column only those of about as many images as the
    largest set has.
    """
    run = {
        method: cell
        for method, cell in cells.items()
        if cell.value is not None and math.isfinite(cell.value) and method != ORIGINAL_DATA
    }
    least = LEAST_SHARE * max((cell.images for cell in run.values()), default=0)
    return {
        method: round(cell.value, column.decimals)
        for method, cell in run.items()
        if cell.value is not None and (not column.size_biased or cell.images >= least)
    }


def best(cells: Mapping[str, Cell], column: Column) -> frozenset[str]:
    """The methods with the best printed value of a column, of those that may be compared."""
    values = comparable(cells, column)
    if column.direction == "none" or len(values) < 2:
        return frozenset()
    winner = max(values.values()) if column.direction == "up" else min(values.values())
    return frozenset(method for method, value in values.items() if value == winner)


def direction_name(experiment: Experiment, direction: Pair, arrow: str = "→") -> str:
    """`4→9`, with the names of the classes."""
    classes = experiment.classes
    return f"{classes[direction[0]]}{arrow}{classes[direction[1]]}"


@dataclass(frozen=True)
class Gate:
    """A quality gate of a trained model: its value, its threshold and whether it passed.

    `bound` is "at least" or "at most", or empty where the card does not tell.
    """

    model: str
    name: str
    value: float
    threshold: float
    bound: str
    passed: bool


def gates(cards: Iterable[Path]) -> list[Gate]:
    """Every quality gate on the cards of some models, in their order.

    Raises:
        UserError: a card is missing.
    """
    shown = []
    for path in cards:
        card = files.read_json(path)
        model = inputs.model_name(path.parent)
        for name, gate in sorted(card.get("gates", {}).items()):
            shown.append(
                Gate(
                    model,
                    name,
                    float(gate["value"]),
                    float(gate["threshold"]),
                    str(gate.get("bound", "")),
                    bool(gate["passed"]),
                )
            )
    return shown


def header(column: Column) -> str:
    """`COUT ↑`: label, unit and which way is better."""
    arrow = {"up": " ↑", "down": " ↓", "none": ""}[column.direction]
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.label}{unit}{arrow}"


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """A number as printed, with a true minus sign; a rounded zero has no sign."""
    rounded = round(value, decimals) + 0.0
    text = f"{rounded:{'+' if sign and rounded else ''}.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")
