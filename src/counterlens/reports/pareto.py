"""Methods in the plane of two metric columns, with their Pareto front."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from counterlens.config import Column, Experiment, Figure
from counterlens.errors import UserError
from counterlens.plan import inputs
from counterlens.reports import aggregate
from counterlens.reports.drawing import INK, TARGET, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BEHIND = "#9a9aa5"
ANGLES = np.arange(12) * np.pi / 6
PLACES = [(r * np.cos(a), r * np.sin(a)) for r in (10, 20, 32, 46) for a in ANGLES]
"""Where a label may stand, in points from its own point, the nearest first."""
OUTLYING = 30.0
"""An axis is logarithmic where one method's value is so many times the median."""


def front(points: np.ndarray, columns: tuple[Column, Column]) -> np.ndarray:
    """Which points no other point dominates.

    A point dominates another if it is as good in both columns and better in one; so equal points
    are on the front together.

    Args:
        points: float (N, 2).
        columns: say which way is better.

    Returns:
        bool (N,).
    """
    signs = np.array([1.0 if column.direction == "up" else -1.0 for column in columns])
    good = points * signs
    as_good = (good[:, None] >= good[None]).all(axis=2)
    better = (good[:, None] > good[None]).any(axis=2)
    return np.logical_not(np.any(as_good & better, axis=0))


def draw(figure: Figure, experiment: Experiment) -> Canvas:
    """One point per method, with 95 % intervals where there are any; the front is marked.

    Raises:
        UserError: a column has no better direction, or has no number for any method.
    """
    results = aggregate.Results(experiment)
    methods = inputs.figure_methods(figure, experiment)
    columns = _columns(figure, experiment)
    cells = {m: [results.cell(m, c.name, figure.directions) for c in columns] for m in methods}
    shown = {m: both for m, both in cells.items() if all(_measured(cell) for cell in both)}
    if not shown:
        reasons = [cell.reason or cell.status for both in cells.values() for cell in both]
        raise UserError(f"figure {figure.name}: nothing to draw: {reasons[0]}")
    points = np.array([[cell.value for cell in both] for both in shown.values()], np.float64)
    printed = np.stack([points[:, i].round(columns[i].decimals) for i in (0, 1)], axis=1)
    best = front(printed, columns)
    drawing = canvas(6.4, 4.8)
    axes = drawing.subplots()
    line = points[best][np.argsort(points[best][:, 0])]
    axes.plot(*line.T, color=TARGET, lw=1.2, ls="--", zorder=1)
    intervals: list[np.ndarray] = []
    for point, both, chosen in zip(points, shown.values(), best, strict=True):
        color = TARGET if chosen else BEHIND
        for axis, cell in enumerate(both):
            if cell.low is not None and cell.high is not None:
                ends = np.stack([point, point])
                ends[:, axis] = cell.low, cell.high
                axes.plot(*ends.T, color=color, alpha=0.45, lw=1, zorder=2)
                intervals.append(ends)
        order = 4 if chosen else 3
        axes.scatter(*point, s=42, color=color, edgecolor="white", lw=0.8, zorder=order)
    setters = ((axes.set_xscale, axes.set_xlabel), (axes.set_yscale, axes.set_ylabel))
    for (scale, label), column, values in zip(setters, columns, np.abs(points).T, strict=True):
        header, middle = aggregate.header(column), float(np.median(values))
        if values.max() > OUTLYING * middle > 0:
            scale("symlog", linthresh=10 ** np.floor(np.log10(middle)))
            header += ", logarithmic"
        label(header)
    axes.margins(0.12)
    axes.grid(color="#e6e6ea", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    without = [experiment.label(method) for method in methods if method not in shown]
    title = f"{experiment.name}, scale {experiment.scale}. Green: the Pareto front"
    axes.set_title(title + (f"; no number: {', '.join(without)}" if without else ""), fontsize=8.5)
    drawing.draw_without_rendering()
    _label(axes, points, [experiment.label(method) for method in shown], best, intervals, line)
    return drawing


def _columns(figure: Figure, experiment: Experiment) -> tuple[Column, Column]:
    known = experiment.columns()
    place = f"figure {figure.name}: columns"
    if len(figure.columns) != 2:
        raise UserError(f"{place}: a figure of kind 'pareto' has two, one for each axis")
    for name in figure.columns:
        if name not in known or known[name].direction == "none":
            ranked = [column.name for column in known.values() if column.direction != "none"]
            raise UserError(f"{place}: '{name}' cannot be ranked; allowed: {', '.join(ranked)}")
    return known[figure.columns[0]], known[figure.columns[1]]


def _measured(cell: aggregate.Cell) -> bool:
    return cell.value is not None and bool(np.isfinite(cell.value))


def _label(
    axes: Axes,
    points: np.ndarray,
    names: list[str],
    best: np.ndarray,
    intervals: list[np.ndarray],
    line: np.ndarray,
) -> None:
    """Write each name beside its point, off every line and where it covers as little as possible.

    Places are tried from the nearest on; a line leads to a name that stands further away, or
    nearer to another point than to its own.
    """
    scale = axes.figure.dpi / 72
    at = axes.transData.transform(points)
    frame = axes.get_window_extent()
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in at]
    for ends in intervals:
        (left, low), (right, high) = axes.transData.transform(ends)
        taken.append((left - scale, low - scale, right + scale, high + scale))
    lines_at = _along(axes.transData.transform(line))
    names_at: list[tuple[float, float, float, float]] = []
    for number in np.argsort(-at[:, 1], kind="stable"):
        name, bold = names[number], bool(best[number])
        text = axes.text(0, 0, name, size=8, weight="bold" if bold else "normal")
        size = text.get_window_extent()
        text.remove()
        own = [box for place, box in enumerate(taken) if place != number]

        def cost(
            place: int, own=own, size=size, number=number, lines_at=lines_at
        ) -> tuple[float, int]:
            left, low = _corner(at[number], PLACES[place], size, scale)
            box = (left, low, left + size.width, low + size.height)
            covered = sum(_overlap(box, other) for other in own)
            way = np.linspace(at[number], (left + size.width / 2, low + size.height / 2), 16)[1:]
            covered += 5 * sum(_overlap(box, other) for other in names_at)
            covered += 20 * sum(_inside(way, other) for other in names_at)
            covered += 200 * _inside(lines_at, box)
            outside = size.width * size.height - _overlap(box, frame.extents)
            return covered + 2 * outside, place

        place = min(range(len(PLACES)), key=cost)
        left, low = _corner(at[number], PLACES[place], size, scale)
        names_at.append((left, low, left + size.width, low + size.height))
        taken.append(names_at[-1])
        middle = np.array((left + size.width / 2, low + size.height / 2))
        nearest = int(np.hypot(*(at - middle).T).argmin())
        far = place >= len(ANGLES) or nearest != number
        if far:
            lines_at = np.concatenate([lines_at, _along(np.array([at[number], middle]))])
        axes.annotate(
            name,
            tuple(points[number]),
            xytext=((left - at[number][0]) / scale, (low - at[number][1]) / scale),
            textcoords="offset points",
            size=8,
            weight="bold" if bold else "normal",
            color=TARGET if bold else INK,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": BEHIND, "lw": 0.6} if far else None,
            annotation_clip=False,
        )


def _corner(
    point: np.ndarray, offset: tuple[float, float], size: Any, scale: float
) -> tuple[float, float]:
    """Lower left corner, in pixels, of a text whose nearest side is `offset` points away."""
    across, up = offset[0] * scale, offset[1] * scale
    length = float(np.hypot(across, up))
    left = point[0] + across + (across / length - 1) / 2 * size.width
    low = point[1] + up + (up / length - 1) / 2 * size.height
    return float(left), float(low)


def _along(corners: np.ndarray) -> np.ndarray:
    """Points (N, 2), about one a pixel, on the line through some corners."""
    steps = [max(2, int(np.hypot(*(b - a)))) for a, b in pairwise(corners)]
    parts = [np.linspace(a, b, n) for (a, b), n in zip(pairwise(corners), steps, strict=True)]
    return np.concatenate([corners, *parts])


def _inside(points: np.ndarray, box: Any) -> int:
    """How many of the points (N, 2) a box (left, low, right, high) holds."""
    return int(((points >= box[:2]) & (points <= box[2:])).all(axis=1).sum())


def _overlap(one: Any, other: Any) -> float:
    """Area that two boxes (left, low, right, high) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(0.0, width) * max(0.0, height))
