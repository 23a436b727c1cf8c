"""Figures of the papers, redrawn from counterfactual sets and metrics.

A figure is described by `config/figures/<name>.yaml`; its `kind` names the function that draws it.
Equal inputs give equal bytes. Only the COUT figure imports torch: it asks the metric itself in
which order pixels are inserted.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterlens import layout
from counterlens.config import Experiment, Figure, Scale, load_figure, pair_name
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.reports import aggregate, pareto, strip
from counterlens.reports.drawing import (
    INK,
    SOURCE,
    TARGET,
    canvas,
    caption,
    load_set,
    show,
    tensor_of,
)
from counterlens.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

CURVE_IMAGES = 7
PATH_STOPS = (0.0, 0.25, 0.5, 0.75, 1.0)
TSNE_IMAGES = 2000
STAGES = {
    "causal_explanation": "causal",
    "pre_explanation": "pre-explanation",
    "activation_map": "ScoreCAM",
    "edit_mask": "edit mask",
    "reconstruction": "reconstruction",
}


def _pick(table: pd.DataFrame, target: int, count: int) -> np.ndarray:
    """Rows of the first `count` images with a valid counterfactual, else of the first images."""
    valid = np.flatnonzero(table["predicted_counterfactual"].to_numpy() == target)
    rows = valid if len(valid) >= count else np.arange(len(table))
    return rows[:count]


def draw_cout(figure: Figure, experiment: Experiment) -> Canvas:
    """Images x^(t) on the way from query to counterfactual, above both probability curves."""
    import torch

    from counterlens.metrics.cout import insertion_steps

    method, direction = figure.methods[0], figure.directions[0]
    tensors, table = load_set(experiment, method, direction)
    stem = layout.metrics(experiment.name, method, *direction)
    curves = pd.read_parquet(stem.with_suffix(".parquet"))
    asked = [getattr(m, "steps", None) for m in experiment.metrics if m.kind == "cout"]
    if "curve_target" not in curves or not asked or asked[0] is None:
        raise UserError(f"{stem}.parquet: has no COUT curves; add the metric 'cout' and rerun")
    names = experiment.classes
    rows = _pick(table, direction[1], figure.images)
    drawing = canvas(9, 3.6 * len(rows))
    parts = drawing.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        query, counterfactual = tensors["query"][row], tensors["counterfactual"][row]
        image = int(table["image"].iloc[row])
        curve = curves[curves["image"] == image].iloc[0]
        if "edit_order" in tensors:
            order = tensors["edit_order"][row][0]
            total = int(order.max())
        else:
            mask = tensors["mask"][row] if "mask" in tensors else np.abs(counterfactual - query)
            flat = torch.from_numpy(mask).float().mean(0).reshape(1, -1)
            inserted, total, _ = insertion_steps(flat, int(asked[0]))
            order = inserted.numpy().reshape(query.shape[1:])
        moments = np.unique(np.linspace(0, total, CURVE_IMAGES).round().astype(int))
        above, below = part.subfigures(2, 1, height_ratios=[1, 1.5])
        for axes, moment in zip(above.subplots(1, len(moments)), moments, strict=True):
            show(axes, np.where(order[None] <= moment, counterfactual, query))
            axes.set_title(f"t = {moment}", fontsize=9, color=INK)
        axes = below.subplots()
        for role, label, color in (
            ("target", direction[1], TARGET),
            ("source", direction[0], SOURCE),
        ):
            values = np.asarray(curve[f"curve_{role}"], dtype=np.float64)[: total + 1]
            area = float(curve[f"aupc_{role}"])
            axes.plot(values, color=color, lw=2, label=f"class {names[label]}: area {area:.3f}")
            axes.fill_between(np.arange(len(values)), values, color=color, alpha=0.12, lw=0)
        axes.set(xlim=(0, max(total, 1)), ylim=(0, 1.02), xlabel="step t", ylabel="probability")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center right")
        where = aggregate.direction_name(experiment, direction)
        axes.set_title(
            f"{experiment.label(method)}, {where}, test image {image}: COUT {curve['cout']:.3f}",
            fontsize=10,
        )
    return drawing


def draw_latent_change(figure: Figure, experiment: Experiment) -> Canvas:
    """How far each latent dimension moves, mean over test images; one violin per pair."""
    method = figure.methods[0]
    changes: dict[str, list[np.ndarray]] = {}
    for direction in figure.directions:
        tensors, _ = load_set(experiment, method, direction)
        before = tensor_of(tensors, "latent", figure, method)
        after = tensor_of(tensors, "latent_counterfactual", figure, method)
        pair = pair_name(experiment.pair_of(*direction))
        changes.setdefault(pair, []).append(np.abs(after - before))
    values = [np.concatenate(parts).mean(0) for parts in changes.values()]
    drawing = canvas(1.6 + 1.5 * len(values), 3.6)
    axes = drawing.subplots()
    drawn: Any = axes.violinplot(values, showmeans=True, showextrema=False, widths=0.75)
    for body in drawn["bodies"]:
        body.set(facecolor="#4338ca", alpha=0.35, edgecolor="#4338ca")
    drawn["cmeans"].set(color=INK, linewidth=1.5)
    for place, value in enumerate(values, start=1):
        axes.text(place, value.max(), f"mean {value.mean():.3f}", ha="center", va="bottom", size=8)
    classes = experiment.classes
    pairs = [tuple(int(index) for index in pair.split("-")) for pair in changes]
    axes.set_xticks(
        np.arange(1, len(values) + 1), [f"{classes[a]}, {classes[b]}" for a, b in pairs]
    )
    axes.set_ylabel("mean |change| per latent dimension")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def draw_traversal(figure: Figure, experiment: Experiment) -> Canvas:
    """Query and decoded codes z^0 … z^n, one row per image."""
    method = figure.methods[0]
    strips: list[tuple[str, np.ndarray, list[float]]] = []
    for direction in figure.directions:
        tensors, table = load_set(experiment, method, direction)
        path = tensor_of(tensors, "path", figure, method)
        for row in _pick(table.iloc[: len(path)], direction[1], figure.images):
            shown = np.concatenate([tensors["query"][row][None], path[row]])
            found = [float(value) for value in table["path_target_probability"].iloc[row]]
            strips.append((aggregate.direction_name(experiment, direction), shown, found))
    columns = max(len(shown) for _, shown, _ in strips)
    drawing = canvas(1.25 * columns, 1.45 * len(strips))
    grid = drawing.subplots(len(strips), columns, squeeze=False)
    for axes_row, (name, shown, found) in zip(grid, strips, strict=True):
        for step, axes in enumerate(axes_row):
            show(axes, shown[step])
            if step:
                axes.set_xlabel(f"{found[step - 1]:.2f}", fontsize=8, color=TARGET)
        axes_row[0].set_ylabel(name, fontsize=9)
    grid[0][0].set_title("query", fontsize=9)
    for step in range(columns - 1):
        grid[0][step + 1].set_title(f"$z^{{{step}}}$", fontsize=9)
    return drawing


def draw_gallery(figure: Figure, experiment: Experiment) -> Canvas:
    """Queries and every method's counterfactual: a column per query, a row per method."""
    columns: list[tuple[str, list[np.ndarray], list[str]]] = []
    classes = experiment.classes
    for direction in figure.directions:
        sets = {method: load_set(experiment, method, direction) for method in figure.methods}
        shared = set.intersection(*(set(table["image"].tolist()) for _, table in sets.values()))
        for image in sorted(shared)[: figure.images]:
            shown, said = [], []
            for tensors, table in sets.values():
                row = int(np.flatnonzero(table["image"].to_numpy() == image)[0])
                if not shown:
                    shown.append(tensors["query"][row])
                    said.append(classes[int(table["predicted_query"].iloc[row])])
                shown.append(tensors["counterfactual"][row])
                said.append(classes[int(table["predicted_counterfactual"].iloc[row])])
            columns.append((aggregate.direction_name(experiment, direction), shown, said))
    if not columns:
        raise UserError(
            f"figure {figure.name}: the methods explain no image in common; name fewer methods"
        )
    rows = 1 + len(figure.methods)
    drawing = canvas(1.3 * len(columns) + 0.4, 1.4 * rows + 0.2)
    grid = drawing.subplots(rows, len(columns), squeeze=False)
    for axes_column, (name, shown, said) in zip(grid.T, columns, strict=True):
        for axes, image, answer in zip(axes_column, shown, said, strict=True):
            show(axes, image)
            axes.set_xlabel(caption(answer), fontsize=8)
        axes_column[0].set_title(caption(name), fontsize=9)
    names = ("query", *map(experiment.label, figure.methods))
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(caption(name), fontsize=9)
    return drawing


def draw_path(figure: Figure, experiment: Experiment) -> Canvas:
    """Queries on their way to the reflection: k = 0 ... 1, the first flip, and the change there."""
    method = figure.methods[0]
    rows: list[tuple[str, list[np.ndarray], list[str]]] = []
    for direction in figure.directions:
        tensors, table = load_set(experiment, method, direction)
        path = tensor_of(tensors, "path", figure, method)
        positions = tensor_of(tensors, "position", figure, method)
        correct = np.flatnonzero((table["label"] == direction[0]).to_numpy()[: len(path)])
        for row in correct[: figure.images]:
            grid = tensors["path_position"][row]
            steps = [int(np.abs(grid - k).argmin()) for k in PATH_STOPS]
            steps.insert(3, int(np.abs(grid - positions[row]).argmin()))
            said = table["path_target_probability"].iloc[row]
            query = tensors["query"][row]
            change = 1 - np.abs(path[row][steps[3]] - query).clip(0, 1)
            rows.append(
                (
                    aggregate.direction_name(experiment, direction),
                    [query, *path[row][steps], change],
                    ["", *(f"{said[step]:.2f}" for step in steps), f"k = {grid[steps[3]]:.2f}"],
                )
            )
    titles = ["query", *(f"k = {k:g}" for k in PATH_STOPS), "|change|"]
    titles.insert(4, "first CFE")
    drawing = canvas(1.25 * len(titles), 1.45 * len(rows))
    axes_of = drawing.subplots(len(rows), len(titles), squeeze=False)
    for axes_row, (name, shown, said) in zip(axes_of, rows, strict=True):
        for axes, image, text in zip(axes_row, shown, said, strict=True):
            show(axes, image)
            axes.set_xlabel(text, fontsize=8, color=TARGET)
        axes_row[0].set_ylabel(caption(name), fontsize=9)
    for axes, title in zip(axes_of[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    return drawing


def draw_tsne(figure: Figure, experiment: Experiment) -> Canvas:
    """Features of test images and reflections in one t-SNE; an arrow from class to class.

    The title tells how many reflections have mostly images of the target class among their
    10 nearest, in the features themselves.
    """
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    method = figure.methods[0]
    stored = files.load_tensors(inputs.embeddings(experiment))
    random = np.random.default_rng(experiment.seed)
    chosen = random.permutation(len(stored["labels"]))[:TSNE_IMAGES]
    real, labels = stored["features"][chosen], stored["labels"][chosen]
    stars: list[np.ndarray] = []
    targets: list[int] = []
    sources: list[int] = []
    for source, target in figure.directions:
        tensors, table = load_set(experiment, method, (source, target))
        kept = np.flatnonzero((table["label"] == source).to_numpy())[: figure.images]
        stars.append(tensor_of(tensors, "latent_counterfactual", figure, method)[kept])
        targets += [target] * len(kept)
        sources += [source] * len(kept)
    reflected = np.concatenate(stars)
    nearest = NearestNeighbors(n_neighbors=10).fit(real).kneighbors(reflected)[1]
    share = float(np.mean((labels[nearest] == np.array(targets)[:, None]).mean(axis=1) > 0.5))
    placed = TSNE(
        perplexity=30, init="pca", learning_rate="auto", random_state=experiment.seed % 2**32
    ).fit_transform(np.concatenate([real, reflected]))
    points, ends = placed[: len(real)], placed[len(real) :]
    drawing = canvas(6.4, 5.6)
    axes = drawing.subplots()
    import matplotlib

    colors = matplotlib.colormaps["tab10"]
    classes = experiment.classes
    for label, name in enumerate(classes):
        mine = labels == label
        axes.scatter(*points[mine].T, s=5, color=colors(label % 10), alpha=0.35, label=name, lw=0)
    for target in dict.fromkeys(targets):
        mine = np.array(targets) == target
        axes.scatter(
            *ends[mine].T, s=70, marker="*", color=colors(target % 10), edgecolor=INK, lw=0.5
        )
    for source, target in figure.directions:
        mine = (np.array(sources) == source) & (np.array(targets) == target)
        if mine.any() and (labels == source).any():
            start, end = np.median(points[labels == source], axis=0), np.median(ends[mine], axis=0)
            style = {"arrowstyle": "->", "linestyle": "--", "color": INK, "lw": 1.2}
            axes.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=style)
    axes.set(xticks=[], yticks=[])
    axes.legend(
        frameon=False, markerscale=3, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axes.set_title(f"{share * 100:.0f} % of the reflections lie among their target class", size=10)
    return drawing


def draw_stages(figure: Figure, experiment: Experiment) -> Canvas:
    """What a method makes on its way to a counterfactual, a row per query.

    Below the counterfactual: what the classifier answers and how sure of the target class it is.
    """
    classes = experiment.classes
    rows: list[list[tuple[str, str, np.ndarray]]] = []
    for direction in figure.directions:
        sets = {method: load_set(experiment, method, direction) for method in figure.methods}
        shared = set.intersection(
            *(set(table["image"][table["label"] == direction[0]]) for _, table in sets.values())
        )
        for image in sorted(shared)[: figure.images]:
            shown: list[tuple[str, str, np.ndarray]] = []
            for method, (tensors, table) in sets.items():
                name = experiment.label(method)
                row = int(np.flatnonzero(table["image"].to_numpy() == image)[0])
                query, made = tensors["query"][row], tensors["counterfactual"][row]
                if not shown:
                    shown.append(("query", classes[direction[0]], query))
                shown += [
                    (f"{name}: {title}", "", tensors[key][row])
                    for key, title in STAGES.items()
                    if key in tensors
                ]
                said = classes[int(table["predicted_counterfactual"].iloc[row])]
                sure = float(table["target_probability_counterfactual"].iloc[row])
                shown.append((name, f"{said}, {sure:.2f}", made))
                shown.append(("change", "", 1 - np.abs(made - query).clip(0, 1)))
            rows.append(shown)
    if not rows:
        raise UserError(
            f"figure {figure.name}: the methods explain no image in common; name fewer methods"
        )
    drawing = canvas(1.25 * len(rows[0]), 1.45 * len(rows))
    for axes_row, shown in zip(
        drawing.subplots(len(rows), len(rows[0]), squeeze=False), rows, strict=True
    ):
        for axes, (title, text, image) in zip(axes_row, shown, strict=True):
            show(axes, image)
            axes.set_xlabel(caption(text), fontsize=8)
            if shown is rows[0]:
                axes.set_title(title.replace(": ", "\n"), fontsize=8)
    return drawing


def draw_parameter(figure: Figure, experiment: Experiment) -> Canvas:
    """Metric columns against one option of the methods, with 95 % bootstrap intervals.

    What is measured per image is of the images that all of the methods explain.
    """
    results = aggregate.Results(experiment)
    only = results.common(figure.methods, figure.directions)
    points = sorted(
        (float(getattr(experiment.methods[method], figure.parameter)), method)
        for method in figure.methods
    )
    known = experiment.columns()
    drawing = canvas(3.6 * len(figure.columns), 3)
    places = np.arange(len(points))
    for axes, name in zip(
        drawing.subplots(1, len(figure.columns), squeeze=False)[0], figure.columns, strict=True
    ):
        cells = [results.cell(method, name, figure.directions, only=only) for _, method in points]
        missing = [cell.reason or cell.status for cell in cells if cell.value is None]
        if missing:
            raise UserError(f"figure {figure.name}: {name}: {missing[0]}")
        values = np.array([cell.value for cell in cells], dtype=np.float64)
        bounds = np.array(
            [
                (value if cell.low is None else cell.low, value if cell.high is None else cell.high)
                for cell, value in zip(cells, values, strict=True)
            ]
        )
        axes.errorbar(
            places,
            values,
            yerr=np.abs(bounds.T - values),
            color=TARGET,
            marker="o",
            capsize=3,
            lw=1.5,
        )
        axes.set_xticks(places, [f"{value:g}" for value, _ in points])
        axes.set(xlabel=figure.parameter, ylabel=aggregate.header(known[name]))
        axes.spines[["top", "right"]].set_visible(False)
    return drawing


DRAW: dict[str, Callable[[Figure, Experiment], Canvas]] = {
    "cout": draw_cout,
    "latent-change": draw_latent_change,
    "traversal": draw_traversal,
    "gallery": draw_gallery,
    "path": draw_path,
    "tsne": draw_tsne,
    "stages": draw_stages,
    "parameter": draw_parameter,
    "pareto": pareto.draw,
    "strip": strip.draw,
}


def png(figure: Figure, experiment: Experiment) -> bytes:
    """A figure as a PNG.

    Raises:
        UserError: the experiment does not run what the figure shows, or a file is missing.
    """
    inputs.figure_inputs(figure, experiment)
    import matplotlib

    from counterlens.reports import latent_figures  # it uses what stands above

    draw = {**DRAW, **latent_figures.DRAW}[figure.kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9}):
        draw(figure, experiment).savefig(
            buffer,
            format="png",
            bbox_inches="tight",
            pad_inches=0.12,
            metadata={"Software": None},
        )
    return buffer.getvalue()


def write(figure: Figure, experiment: Experiment) -> None:
    """Draw a figure to `results/figures/<name>.png`."""
    content = png(figure, experiment)
    with files.atomic_path(layout.FIGURES / f"{figure.name}.png") as temporary:
        temporary.write_bytes(content)


def run(name: str, scale: Scale) -> None:
    """The stage `figure`."""
    figure = load_figure(name)
    write(figure, load_experiment(figure.experiment, scale))
