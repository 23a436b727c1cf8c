"""What a ranked table has besides numbers: ranks, their mean, and what a method costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterlens.config import ORIGINAL_DATA, Column, Experiment, Pair
from counterlens.plan import inputs
from counterlens.reports import timing
from counterlens.reports.aggregate import Cell, comparable

if TYPE_CHECKING:
    from collections.abc import Sequence

MEAN_RANK = Column(name="mean_rank", label="mean rank", direction="down", decimals=2)
COSTS = {
    "seconds_per_image": Column(
        name="seconds_per_image", label="time", direction="down", unit="s per image", decimals=4
    ),
    "training_seconds": Column(
        name="training_seconds", label="training", direction="none", unit="s", decimals=1
    ),
    "generator_seconds": Column(
        name="generator_seconds", label="generators", direction="none", unit="s", decimals=1
    ),
}
Cells = Mapping[str, Mapping[str, Cell]]
"""By column and method."""


def ranks(cells: Mapping[str, Cell], column: Column) -> dict[str, float]:
    """The place of each method in one column, by its printed value.

    1 is the best; methods of equal value share the mean of their places. Real images, methods
    without a number and sets too small to be compared have no rank; nor has any method in a column
    without a better direction.
    """
    values = comparable(cells, column)
    if column.direction == "none" or not values:
        return {}
    placed = pd.Series(values, dtype=np.float64).rank(ascending=column.direction == "down")
    return {str(method): float(rank) for method, rank in placed.items()}


def complete(cells: Cells, columns: Sequence[Column]) -> list[Column]:
    """The columns that rank every method which is run: those that a mean rank is taken over."""
    counted = []
    for column in columns:
        run = {m for m, cell in cells[column.name].items() if _is_run(m, cell)}
        if run and run == set(ranks(cells[column.name], column)):
            counted.append(column)
    return counted


def mean_ranks(cells: Cells, columns: Sequence[Column]) -> dict[str, Cell]:
    """The mean rank of each method over the complete columns, as cells of a column of its own."""
    counted = [ranks(cells[column.name], column) for column in complete(cells, columns)]
    means: dict[str, Cell] = {}
    for method, cell in next(iter(cells.values())).items():
        if not _is_run(method, cell):
            means[method] = Cell("not defined") if method == ORIGINAL_DATA else cell
        elif not counted:
            means[method] = Cell("not available", reason="no column ranks every method")
        else:
            means[method] = Cell("ok", float(np.mean([each[method] for each in counted])))
    return means


def _is_run(method: str, cell: Cell) -> bool:
    return cell.status not in ("not run", "skipped") and method != ORIGINAL_DATA


def costs(
    experiment: Experiment, directions: Mapping[str, Sequence[Pair]]
) -> dict[str, dict[str, float]]:
    """Seconds by method and column of `COSTS`, on some directions of each method.

    Empty as long as a timing is missing.
    """
    wanted = {m: chosen for m, chosen in directions.items() if m in experiment.methods}
    paths = inputs.cost_inputs(experiment, wanted)
    if not paths or not all(path.is_file() for path in paths):
        return {}
    table = timing.collect(experiment, wanted).set_index("method")[list(COSTS)]
    return {str(method): row.to_dict() for method, row in table.iterrows()}
