"""The report of an experiment: one HTML file that opens offline.

Equal results give equal bytes: the page holds no date, no timing, no commit and no path outside
the project folder.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from os.path import relpath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    Experiment,
    Figure,
    Pair,
    Scale,
    Table,
    figure_names,
    load_figure,
    load_table,
    pair_name,
    table_names,
)
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.reports import aggregate, figures, page, printing, tables
from counterlens.reports.aggregate import Results
from counterlens.reports.gallery import data_uri, gallery
from counterlens.runtime import files

QUERIES = 12
IMAGE_BUDGET = 6_000_000
SHEET_WIDTH = 640
CHART = (250, 96)


def results_tables(experiment: Experiment, results: Results) -> list[dict[str, Any]]:
    """One table per distinct set of directions, the largest first.

    A table holds every method that covers its directions, so each row of it is the mean over
    the same directions.
    """
    methods = [*experiment.methods, ORIGINAL_DATA]
    groups = sorted({experiment.directions(m) for m in methods}, key=lambda d: (-len(d), d))
    tables = []
    for directions in groups:
        covering = [m for m in methods if set(directions) <= set(experiment.directions(m))]
        if [m for m in covering if m != ORIGINAL_DATA]:
            tables.append(_results_table(experiment, results, covering, directions))
    return tables


def _results_table(
    experiment: Experiment,
    results: Results,
    methods: Sequence[str],
    directions: Sequence[Pair],
    *,
    interval: bool = True,
) -> dict[str, Any]:
    columns = list(results.columns.values())
    cells: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    reasons: list[str] = []
    for column in columns:
        found = {m: results.cell(m, column.name, directions, interval=interval) for m in methods}
        winners = aggregate.best(found, column)
        for method, cell in found.items():
            note = None
            if cell.reason is not None:
                if cell.reason not in reasons:
                    reasons.append(cell.reason)
                note = reasons.index(cell.reason) + 1
            cells[method].append(
                {
                    "value": None
                    if cell.value is None
                    else aggregate.number(cell.value, column.decimals),
                    "status": cell.status,
                    "interval": None
                    if cell.low is None or cell.high is None
                    else f"{aggregate.number(cell.low, column.decimals)} to "
                    f"{aggregate.number(cell.high, column.decimals)}",
                    "note": note,
                    "best": method in winners,
                }
            )
    return {
        "directions": [aggregate.direction_name(experiment, d) for d in directions],
        "columns": [
            {
                "label": column.label,
                "unit": column.unit,
                "direction": column.direction,
            }
            for column in columns
        ],
        "rows": [
            {"method": m, "images": results.images(m, directions), "cells": cells[m]}
            for m in methods
        ],
        "reasons": reasons,
        "notes": results.notes([(m, d) for d in directions for m in methods]),
    }


def curves(experiment: Experiment) -> list[dict[str, Any]]:
    """Training curves: for every model the charts of its `training.csv`, one per column.

    Models of one name that were trained on several pairs share their charts.
    """
    models: dict[str, dict[str, pd.DataFrame]] = {}
    for path in inputs.curve_files(experiment):
        section, kind, *scopes = inputs.model_name(path.parent).split("/")
        name, scope = f"{section}/{kind}", "".join(scopes)
        models.setdefault(name, {})[scope] = pd.read_csv(path)
    shown = []
    for name, scopes in models.items():
        charts = _charts(scopes)
        if charts:
            names = [scope for scope in scopes if scope]
            several = names if len(names) > 1 else []
            shown.append({"model": name, "scopes": several, "charts": charts})
    return shown


def _charts(scopes: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    numeric: dict[str, None] = {}
    for frame in scopes.values():
        for column in frame.select_dtypes("number").columns[1:]:
            numeric[str(column)] = None
    return [chart for column in numeric if (chart := _chart(column, scopes)) is not None]


def _chart(column: str, scopes: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    """One chart of fixed size: a line per scope."""
    lines = []
    for index, frame in enumerate(scopes.values()):
        if column in frame:
            x = np.asarray(frame.iloc[:, 0], dtype=np.float64)
            y = np.asarray(frame[column], dtype=np.float64)
            drawable = np.isfinite(x) & np.isfinite(y)
            if drawable.any():
                lines.append((index, x[drawable], y[drawable]))
    if not lines:
        return None
    low, high = min(y.min() for _, _, y in lines), max(y.max() for _, _, y in lines)
    start, end = min(x.min() for _, x, _ in lines), max(x.max() for _, x, _ in lines)
    width, height = CHART

    def place(values: np.ndarray, least: float, most: float, size: int) -> np.ndarray:
        span = most - least
        return (values - least) / span * size if span else np.full(len(values), size / 2)

    drawn = []
    for index, x, y in lines:
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), 200)).round().astype(int))
        across = place(x[keep], start, end, width)
        down = height - place(y[keep], low, high, height)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
        drawn.append(
            {"color": index % 6, "points": points, "x": f"{across[-1]:.1f}", "y": f"{down[-1]:.1f}"}
        )
    last = ", ".join(f"{y[-1]:.4g}" for _, _, y in lines)
    return {
        "column": column,
        "lines": drawn,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "start": f"{start:g}",
        "end": f"{end:g}",
        "last": last,
    }


def sheets(experiment: Experiment) -> list[dict[str, str]]:
    """The sample sheets of the generators."""
    found = []
    for path in inputs.sample_sheets(experiment):
        _, name, scope = inputs.model_name(path.parent).split("/")
        with Image.open(path) as opened:
            picture = opened.convert("RGB") if opened.mode not in ("L", "RGB") else opened.copy()
        if picture.width > SHEET_WIDTH:
            height = round(picture.height * SHEET_WIDTH / picture.width)
            picture = picture.resize((SHEET_WIDTH, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        found.append({"name": name, "scope": scope, "src": data_uri(buffer.getvalue())})
    return found


def commands(experiment: Experiment) -> list[dict[str, Any]]:
    """How to make this page again: through the workflow, and stage by stage."""
    name, scale = experiment.name, experiment.scale
    dataset = experiment.dataset.arguments()
    asked = (options.classifier for options in experiment.generators.values())
    classifiers = dict.fromkeys([experiment.classifier, *filter(None, asked)])

    def stage(name: str, *options: str) -> str:
        return " ".join(
            [f"counterlens {name} --experiment {experiment.name} --scale {scale}", *options]
        )

    def training(name: str, *options: str) -> str:
        models = experiment.models.name
        return " ".join([f"counterlens {name} --models {models} --scale {scale}", *options])

    lines = [
        *(f"counterlens fetch --dataset {dataset} --file {f}" for f in experiment.dataset.files),
        f"counterlens prepare --dataset {dataset}",
        *(training("classifier", f"--classifier {classifier}") for classifier in classifiers),
        *(training("oracle", f"--oracle {name}") for name in inputs.trained_oracles(experiment)),
        *(
            training("generator", f"--generator {generator}", f"--scope {scope}")
            for generator in experiment.generators
            for scope in experiment.scopes(generator)
        ),
    ]
    shards = experiment.evaluation.shards
    lines += [
        stage("fit", f"--method {method}", f"--scope {scope}")
        for method in experiment.trained_methods()
        for scope in experiment.training_scopes(method)
    ]
    for method in experiment.methods:
        for source, target in experiment.directions(method):
            which = [f"--method {method}", f"--source {source}", f"--target {target}"]
            if shards == 1:
                lines.append(stage("explain", *which))
            else:
                for number in range(1, shards + 1):
                    lines.append(stage("explain", *which, f"--shard {number} --of {shards}"))
                lines.append(stage("gather", *which, f"--of {shards}"))
            lines.append(stage("metrics", *which))
    for source, target in experiment.directions(ORIGINAL_DATA):
        which = [f"--source {source}", f"--target {target}"]
        lines.append(stage("original-data", *which))
        lines.append(stage("metrics", f"--method {ORIGINAL_DATA}", *which))
    if experiment.pooled():
        lines += [
            stage("metrics", f"--method {method}", f"--pair {pair_name(pair)}")
            for method in (*experiment.methods, ORIGINAL_DATA)
            for pair in experiment.method_pairs(method)
        ]
    lines.append(stage("report"))
    workflow = f"snakemake {layout.report(name).as_posix()} --cores 2 --config scale={scale}"
    return [
        {"title": "Everything, through the workflow", "lines": [workflow]},
        {"title": "Stage by stage", "lines": lines},
    ]


def boards(
    experiment: Experiment, ranked: Sequence[Table], pareto: Sequence[Figure]
) -> list[dict[str, Any]]:
    """The ranked tables about the experiment, and its Pareto figures with the first of them."""
    shown = []
    for table in ranked:
        built = tables.build(table, {experiment.name: experiment})
        shown.append(
            {
                "title": table.title,
                "with_costs": relpath(
                    layout.TABLES / f"{table.name}.html", layout.report(experiment.name).parent
                ),
                "headers": [aggregate.header(column) for column in built.columns],
                "rows": printing.shown(built, experiment.name),
                "footer": built.footer,
                "figures": [],
            }
        )
    if shown:
        shown[0]["figures"] = [
            {"title": figure.title, "src": data_uri(figures.png(figure, experiment))}
            for figure in pareto
        ]
    return shown


def render(
    experiment: Experiment, ranked: Sequence[Table] = (), pareto: Sequence[Figure] = ()
) -> str:
    """The page of a finished experiment.

    Args:
        ranked: the ranked tables about this experiment alone.
        pareto: its Pareto figures.

    Raises:
        UserError: a file of the experiment is missing.
    """
    results = Results(experiment)
    count = QUERIES
    directions, data, pictures = gallery(experiment, count)
    if pictures.bytes > IMAGE_BUDGET:
        count = max(1, count * IMAGE_BUDGET // pictures.bytes)
        directions, data, pictures = gallery(experiment, count)
    predictions = pd.read_parquet(inputs.predictions(experiment))
    correct = predictions["label"].to_numpy() == predictions["predicted"].to_numpy()
    card = files.read_json(inputs.dataset_card(experiment))
    found = aggregate.gates(inputs.cards(experiment))
    return page.render(
        "report.html.j2",
        experiment=experiment,
        dataset=card,
        accuracy=f"{correct.mean() * 100:.2f}",
        test_images=len(predictions),
        height=experiment.dataset.shape[1],
        width=experiment.dataset.shape[2],
        tables=results_tables(experiment, results),
        per_direction=[
            _results_table(
                experiment,
                results,
                [*direction["methods"], ORIGINAL_DATA],
                [_pair(direction["id"])],
                interval=False,
            )
            for direction in directions
        ],
        directions=directions,
        heroes=_heroes(directions),
        boards=boards(experiment, ranked, pareto),
        data=data,
        curves=curves(experiment),
        sheets=sheets(experiment),
        gates=found,
        failed=[gate for gate in found if not gate.passed],
        commands=commands(experiment),
    )


def _pair(identifier: str) -> Pair:
    source, target = identifier.split("_to_")
    return int(source), int(target)


def _heroes(directions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One valid counterfactual per direction for the head of the page, at most six."""
    shown = []
    for direction in directions:
        for query in direction["queries"]:
            answer = query["answers"][0]
            if answer["valid"]:
                shown.append(
                    {
                        "direction": direction["name"],
                        "method": answer["method"],
                        "query": _reference(query["picture"]),
                        "counterfactual": _reference(answer["picture"]),
                    }
                )
                break
    return shown[:6]


def _reference(picture: dict[str, str | None]) -> str | None:
    return picture["id"] or picture["same_as"]


def run(name: str, scale: Scale) -> None:
    """The stage `report`: `results/<experiment>/report.html`."""
    experiment = load_experiment(name, scale)
    found = [load_table(table) for table in table_names()]
    ranked = [table for table in found if table.ranked and table.experiments == (name,)]
    drawn = [load_figure(figure) for figure in figure_names()]
    pareto = [f for f in drawn if f.kind == "pareto" and f.experiment == name]
    files.write_text(layout.report(name), render(experiment, ranked, pareto))
