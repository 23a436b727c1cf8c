"""The report of an experiment: one HTML file that opens offline.

Equal results give equal bytes: the page holds no date, no timing, no commit and no path outside
the project folder.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from counterlens import layout
from counterlens.config import ORIGINAL_DATA, Experiment, Pair, Scale, load_experiment, pair_name
from counterlens.reports import aggregate, inputs, page
from counterlens.reports.aggregate import Results
from counterlens.runtime import files

QUERIES = 12
IMAGE_BUDGET = 6_000_000
SHEET_WIDTH = 640
DIFFERENCE_LIMIT = 0.5
DARKER, BRIGHTER = (33, 102, 172), (200, 50, 40)
CHART = (250, 96)


def png(image: np.ndarray) -> bytes:
    """Encode an image.

    Args:
        image: (C, H, W) float in [0, 1] with 1 or 3 channels, or (H, W, 4) uint8.
    """
    if image.dtype == np.uint8:
        picture = Image.fromarray(image, "RGBA")
    else:
        pixels = np.rint(image.astype(np.float64) * 255).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def difference_map(query: np.ndarray, counterfactual: np.ndarray) -> np.ndarray:
    """What changed: blue where darker, red where brighter, clear where equal.

    Args:
        query, counterfactual: (C, H, W) float in [0, 1]; colour channels are averaged.

    Returns:
        (H, W, 4) uint8 RGBA; opaque from a change of 0.5 on.
    """
    change = (counterfactual.astype(np.float64) - query.astype(np.float64)).mean(0)
    strength = np.clip(np.abs(change) / DIFFERENCE_LIMIT, 0, 1)
    out = np.zeros((*change.shape, 4), dtype=np.uint8)
    out[..., :3] = np.where(change[..., None] < 0, DARKER, BRIGHTER)
    out[..., 3] = np.rint(strength * 255)
    out[out[..., 3] == 0] = 0
    return out


@dataclass
class Pictures:
    """Every distinct image of the page, embedded once.

    The first use of an image carries its bytes, later uses name its id and are filled in by the
    script; frames of a path that stand nowhere else go to the script's own list, after all
    images of the page are known.
    """

    ids: dict[str, str] = field(default_factory=dict)
    frames: list[str] = field(default_factory=list)
    bytes: int = 0

    def inline(self, content: bytes) -> dict[str, str | None]:
        """`id` and `src` of a first use, or `same_as` of a later one."""
        key = hashlib.sha256(content).hexdigest()
        if key in self.ids:
            return {"id": None, "src": None, "same_as": self.ids[key]}
        self.ids[key] = f"i{len(self.ids)}"
        self.bytes += len(content) * 4 // 3
        return {"id": self.ids[key], "src": data_uri(content), "same_as": None}

    def frame(self, content: bytes) -> str:
        """A reference the script understands: `i…` an image of the page, `f…` a frame."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self.ids:
            self.ids[key] = f"f{len(self.frames)}"
            self.frames.append(base64.b64encode(content).decode())
            self.bytes += len(content) * 4 // 3
        return self.ids[key]


def data_uri(content: bytes) -> str:
    """A PNG as a `data:` URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class _Set:
    """A counterfactual set in memory."""

    tensors: dict[str, np.ndarray]
    table: pd.DataFrame

    def images(self) -> set[int]:
        """The images that can be shown, with their path where the method has one."""
        shown = self.table["image"].to_numpy()
        return {int(image) for image in shown[: len(self.tensors.get("path", shown))]}

    def row(self, image: int) -> int:
        """Where an image of the test split stands in the set."""
        return int(np.flatnonzero(self.table["image"].to_numpy() == image)[0])


def _load_set(experiment: str, method: str, direction: Pair) -> _Set:
    stem = layout.counterfactuals(experiment, method, *direction)
    return _Set(
        files.load_tensors(stem.with_suffix(".safetensors")),
        pd.read_parquet(stem.with_suffix(".parquet")),
    )


def choose(sets: Sequence[_Set], count: int) -> list[int]:
    """At most `count` images that every set explains, evenly spread over the test split.

    A set with paths keeps them for its first images only; the choice is among those.
    """
    shared = sorted(set.intersection(*(each.images() for each in sets)))
    if len(shared) <= count:
        return shared
    places = np.linspace(0, len(shared) - 1, count).round().astype(int)
    return [shared[place] for place in places]


def gallery(
    experiment: Experiment, count: int
) -> tuple[list[dict[str, Any]], dict[str, Any], Pictures]:
    """The queries of every direction with every method's counterfactual.

    Args:
        experiment: its counterfactual sets must exist.
        count: queries per direction.

    Returns:
        The directions for the template, the paths for the script, the pictures of both.
    """
    classes = experiment.dataset.classes
    pictures, directions = Pictures(), []
    pending: dict[str, tuple[_Set, int]] = {}
    for direction in experiment.directions(ORIGINAL_DATA):
        methods = [m for m in experiment.methods if direction in experiment.directions(m)]
        if not methods:
            continue
        sets = {m: _load_set(experiment.name, m, direction) for m in methods}
        chosen = choose(list(sets.values()), count)
        source, target = direction
        queries = []
        for image in chosen:
            first = sets[methods[0]]
            row = first.row(image)
            facts = first.table.iloc[row]
            query = first.tensors["query"][row]
            shown = {
                "image": image,
                "label": classes[int(facts["label"])],
                "predicted": classes[int(facts["predicted_query"])],
                "source": float(facts["source_probability_query"]),
                "target": float(facts["target_probability_query"]),
                "picture": pictures.inline(png(query)),
                "answers": [],
            }
            for method in methods:
                answers = sets[method]
                answer = _answer(answers, method, image, direction, classes, pictures)
                if "path" in answers.tensors:
                    key = f"p{len(pending)}"
                    pending[key] = (answers, answers.row(image))
                    answer |= {"path": key, "steps": answers.tensors["path"].shape[1]}
                    answer |= {"step": _step(answers, answers.row(image))}
                shown["answers"].append(answer)
            queries.append(shown)
        directions.append(
            {
                "id": f"{source}_to_{target}",
                "name": aggregate.direction_name(experiment, direction, " → "),
                "source": classes[source],
                "target": classes[target],
                "methods": methods,
                "images": len(sets[methods[0]].table),
                "queries": queries,
            }
        )
    paths = {key: _path(*place, pictures) for key, place in pending.items()}
    return directions, {"frames": pictures.frames, "paths": paths}, pictures


def _answer(
    answers: _Set,
    method: str,
    image: int,
    direction: Pair,
    classes: Sequence[str],
    pictures: Pictures,
) -> dict[str, Any]:
    """One method's counterfactual of one query."""
    row = answers.row(image)
    facts = answers.table.iloc[row]
    query, counterfactual = answers.tensors["query"][row], answers.tensors["counterfactual"][row]
    predicted = int(facts["predicted_counterfactual"])
    return {
        "method": method,
        "found": bool(facts["found"]),
        "valid": predicted == direction[1],
        "predicted": classes[predicted],
        "source": float(facts["source_probability_counterfactual"]),
        "target": float(facts["target_probability_counterfactual"]),
        "picture": pictures.inline(png(counterfactual)),
        "difference": pictures.inline(png(difference_map(query, counterfactual))),
        "change": float(np.abs(counterfactual - query).mean()),
        "path": None,
        "steps": 0,
        "step": 0,
    }


def _step(answers: _Set, row: int) -> int:
    """The step of a path that the counterfactual stands at: the last, if nothing else is said."""
    steps = answers.tensors["path_position"][row]
    if "position" not in answers.tensors:
        return len(steps) - 1
    return int(np.abs(steps - answers.tensors["position"][row]).argmin())


def _path(answers: _Set, row: int, pictures: Pictures) -> dict[str, Any]:
    """A path for the script: pictures, positions, found and, where there are any, intended."""
    facts = answers.table.iloc[row]
    path: dict[str, Any] = {
        "frames": [pictures.frame(png(frame)) for frame in answers.tensors["path"][row]],
        "source": _probabilities(facts["path_source_probability"]),
        "target": _probabilities(facts["path_target_probability"]),
        "at": _step(answers, row),
        "position": None,
        "intended": None,
    }
    if "path_intended" in answers.tensors:
        intended = answers.tensors["path_intended"][row]
        path["position"] = _probabilities(answers.tensors["path_position"][row])
        path["intended"] = {
            role: _probabilities(intended[:, int(facts[role])]) for role in ("source", "target")
        }
    return path


def _probabilities(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


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
    root = layout.RESULTS / experiment.name
    models: dict[str, dict[str, pd.DataFrame]] = {}
    for path in inputs.curve_files(experiment):
        parts = path.parent.relative_to(root).parts
        name, scope = ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else ("/".join(parts), "")
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
    root = layout.RESULTS / experiment.name / "generators"
    for path in inputs.sample_sheets(experiment):
        name, scope = path.parent.relative_to(root).parts
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

    def stage(name: str, *options: str) -> str:
        return " ".join(
            [f"counterlens {name} --experiment {experiment.name} --scale {scale}", *options]
        )

    lines = [
        *(f"counterlens fetch --dataset {dataset} --file {f}" for f in experiment.dataset.files),
        f"counterlens prepare --dataset {dataset}",
        stage("classifier"),
        *(stage("oracle", f"--oracle {oracle}") for oracle in inputs.trained_oracles(experiment)),
        *(
            stage("generator", f"--generator {generator}", f"--scope {scope}")
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


def render(experiment: Experiment) -> str:
    """The page of a finished experiment.

    Raises:
        UserError: a file of the experiment is missing.
    """
    results = Results(experiment)
    count = QUERIES
    directions, data, pictures = gallery(experiment, count)
    if pictures.bytes > IMAGE_BUDGET:
        count = max(1, count * IMAGE_BUDGET // pictures.bytes)
        directions, data, pictures = gallery(experiment, count)
    predictions = pd.read_parquet(layout.classifier(experiment.name) / "predictions.parquet")
    correct = predictions["label"].to_numpy() == predictions["predicted"].to_numpy()
    card = files.read_json(inputs.dataset_card(experiment))
    found = aggregate.gates(experiment)
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
    files.write_text(layout.report(name), render(experiment))
