"""Figures of methods that edit latents: their channels, variants by threshold, and the angle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from counterlens.config import Experiment, Figure
from counterlens.errors import UserError
from counterlens.methods.parts.eced_options import THRESHOLDS
from counterlens.reports import aggregate, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def grey(values: np.ndarray) -> np.ndarray:
    """A plane (h, w) of any range as an image (1, h, w) in [0, 1]."""
    low, high = values.min(), values.max()
    return ((values - low) / max(float(high - low), 1e-12))[None]


def draw_latents(figure: Figure, experiment: Experiment) -> Canvas:
    """Queries and the channels of their latents as grey images (ECED, supplement, Figure 1)."""
    method = figure.methods[0]
    rows: list[tuple[str, list[np.ndarray]]] = []
    for direction in figure.directions:
        tensors, _ = drawing.load_set(experiment, method, direction)
        latents = drawing.tensor_of(tensors, "query_latent", figure, method)
        for query, latent in list(zip(tensors["query"], latents, strict=True))[: figure.images]:
            name = experiment.classes[direction[0]]
            rows.append((name, [query, *(grey(channel) for channel in latent)]))
    columns = len(rows[0][1])
    canvas = drawing.canvas(1.3 * columns, 1.4 * len(rows) + 0.3)
    grid = canvas.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, shown) in zip(grid, rows, strict=True):
        for axes, image in zip(axes_row, shown, strict=True):
            drawing.show(axes, image)
        axes_row[0].set_ylabel(name, fontsize=9)
    for place, axes in enumerate(grid[0]):
        axes.set_title(f"channel {place}" if place else "query", fontsize=9)
    return canvas


def draw_diversity(figure: Figure, experiment: Experiment) -> Canvas:
    """Queries and their variants; below each its mask, and whether it is of the target class."""
    method = figure.methods[0]
    sweep = getattr(experiment.methods[method], "sweep", ())
    parts: list[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for direction in figure.directions:
        tensors, _ = drawing.load_set(experiment, method, direction)
        variants = drawing.tensor_of(tensors, "variants", figure, method)
        masks = drawing.tensor_of(tensors, "variant_masks", figure, method)
        found = drawing.tensor_of(tensors, "variant_found", figure, method)
        name = aggregate.direction_name(experiment, direction)
        for row in range(min(figure.images, len(variants))):
            parts.append((name, tensors["query"][row], variants[row], masks[row], found[row]))
    columns = 1 + len(sweep)
    canvas = drawing.canvas(1.3 * columns, 2.7 * len(parts) + 0.3)
    grid = canvas.subplots(2 * len(parts), columns, squeeze=False)
    for place, (name, query, variants, masks, found) in enumerate(parts):
        above, below = grid[2 * place], grid[2 * place + 1]
        drawing.show(above[0], query)
        above[0].set_ylabel(name, fontsize=9)
        below[0].axis("off")
        shown = enumerate(zip(variants, masks, found, strict=True), start=1)
        for column, (variant, mask, valid) in shown:
            drawing.show(above[column], variant)
            drawing.show(below[column], mask)
            above[column].set_xlabel("valid" if valid else "not valid", fontsize=8)
    grid[0][0].set_title("query", fontsize=9)
    for axes, threshold in zip(grid[0][1:], sweep, strict=True):
        axes.set_title(f"ξ = {threshold:g}", fontsize=9)
    return canvas


def draw_angle(figure: Figure, experiment: Experiment) -> Canvas:
    """The angle between gradient and pruned gradient by threshold (Propositions 1 and 2).

    Left: one gradient of each query, that of the first method's first update, pruned by the region
    of each threshold; the mean in colour. Then, over the updates of every method: the mean angle
    and the mean target probability.
    """
    import matplotlib

    methods = sorted(
        figure.methods, key=lambda name: float(getattr(experiment.methods[name], "threshold", -1))
    )
    thresholds = [float(getattr(experiment.methods[name], "threshold", -1)) for name in methods]
    angles: list[np.ndarray] = []
    traces: list[np.ndarray] = []
    starts = np.empty((0, len(THRESHOLDS)))
    for method in methods:
        found = [drawing.load_set(experiment, method, d)[0] for d in figure.directions]
        angles.append(
            np.concatenate([drawing.tensor_of(each, "angle", figure, method) for each in found])
        )
        traces.append(np.concatenate([each["attack_probability"] for each in found]))
        if method == figure.methods[0]:
            name = "angle_by_threshold"
            parts = [drawing.tensor_of(each, name, figure, method) for each in found]
            starts = np.concatenate(parts)
    if min(each.shape[1] for each in angles) == 0 or len({len(each) for each in angles}) > 1:
        raise UserError(f"figure {figure.name}: the methods must make updates, of the same images")
    canvas = drawing.canvas(11, 3.2)
    first, second, third = canvas.subplots(1, 3)
    first.plot(THRESHOLDS, starts.T, color="#9ca3af", lw=0.6, alpha=0.5)
    first.plot(THRESHOLDS, starts.mean(axis=0), color=drawing.TARGET, lw=2)
    first.set(xlabel="ξ", ylabel="angle at the first update in degrees", ylim=(0, 90))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(methods)))
    for threshold, angle, trace, colour in zip(thresholds, angles, traces, colours, strict=True):
        second.plot(angle.mean(axis=0), color=colour, label=f"ξ = {threshold:g}")
        third.plot(trace.mean(axis=0), color=colour, label=f"ξ = {threshold:g}")
    second.set(xlabel="update", ylabel="mean angle in degrees", ylim=(0, 90))
    third.set(xlabel="update", ylabel="mean target probability", ylim=(0, 1))
    third.legend(frameon=False, fontsize=8)
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
    return canvas


DRAW = {"latents": draw_latents, "diversity": draw_diversity, "angle": draw_angle}
