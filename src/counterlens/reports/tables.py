"""A table of a paper, rebuilt: ours, the paper's, the difference, and how it was made.

One table becomes five files. CSV (long format, full precision), LaTeX and JSON (how many numbers,
claims held and gates failed, for `dvc metrics show`) hold numbers only; Markdown and HTML also name
the commit, the hardware and the command.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    Column,
    Experiment,
    Pair,
    Scale,
    Table,
    load_table,
)
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.plan.inputs import TableView
from counterlens.reports import aggregate, board, claims, found
from counterlens.reports.aggregate import Cell, Results
from counterlens.reports.entries import Built, Entry
from counterlens.reports.printing import to_frame, to_html, to_json, to_latex, to_markdown
from counterlens.runtime import files

SUFFIXES = (".csv", ".md", ".tex", ".html", ".json")


def build(table: Table, experiments: Mapping[str, Experiment]) -> Built:
    """Compute a table from the metrics files of its experiments.

    Args:
        table: rows, columns and published numbers.
        experiments: by name; at least those of the table.

    Raises:
        UserError: a file is missing, or the rows have no direction in common.
    """
    inputs.table_inputs(table, experiments)
    declared = _columns(table, experiments)
    entries: list[Entry] = []
    footer = [f"Paper: {table.paper}."] if table.paper else []
    for name in table.experiments:
        of_experiment, lines = _of_experiment(TableView(table, experiments[name]), declared)
        entries += of_experiment
        footer += lines
    checked = [
        claims.check(claim, name, entries) for name in table.experiments for claim in table.claims
    ]
    footer += [each.text for each in checked]
    footer += _reasons(entries)
    footer.append(
        "In brackets: 95 % percentile bootstrap interval over images (2000 resamples). "
        + (
            "Rank 1 is best; equal printed values share the mean of their ranks; a column in which "
            "a method has no number does not count in the mean rank. "
            if table.ranked
            else "▲ better, ▼ worse than the paper, = equal as printed. "
        )
        + "Bold: best of the methods run. Not run: the experiment does not define the method."
    )
    footer += table.notes
    columns = (board.MEAN_RANK, *declared) if table.ranked else declared
    gates = sum(len(_failed_gates(TableView(table, experiments[n]))) for n in table.experiments)
    verdicts = tuple(each.verdict for each in checked)
    return Built(table, tuple(entries), columns, tuple(footer), verdicts, gates)


def _of_experiment(view: TableView, declared: Sequence[Column]) -> tuple[list[Entry], list[str]]:
    """The cells that one experiment fills, and its lines of the footer."""
    table, results = view.table, Results(view.experiment)
    whole = {
        column.name: {
            row.method: results.cell(row.method, column.name, view.directions(row.method))
            for row in table.rows
        }
        for column in declared
    }
    only = _counted(view, results)
    cells = dict(whole) if only is None else _filtered(view, results, whole, declared, only)
    columns = declared
    if table.ranked:
        columns = (board.MEAN_RANK, *declared)
        cells[board.MEAN_RANK.name] = board.mean_ranks(cells, declared)
    beside = {} if only is None else whole
    entries = [
        entry
        for column in columns
        for entry in _entries(view, column, cells[column.name], beside.get(column.name, {}))
    ]
    return entries, _footer(view, results, declared, cells, only)


def _counted(view: TableView, results: Results) -> Mapping[Pair, Sequence[int]] | None:
    """The images of each direction that the table's filter counts; None: all of them."""
    if view.table.filter == "common-images":
        shared = inputs.shared_directions(view.experiment, view.methods)
        return results.common(view.methods, shared)
    return found.counted(view)


def _filtered(
    view: TableView,
    results: Results,
    whole: Mapping[str, Mapping[str, Cell]],
    columns: Iterable[Column],
    only: Mapping[Pair, Sequence[int]],
) -> dict[str, dict[str, Cell]]:
    """The cells of a table by column and row, what is measured per image of some images only."""
    cells = {name: dict(of_rows) for name, of_rows in whole.items()}
    for column in columns:
        for method in view.methods if column.per == "image" else ():
            if method != ORIGINAL_DATA:
                cell = results.cell(method, column.name, view.directions(method), only=only)
                cells[column.name][method] = cell
    return cells


def _entries(
    view: TableView, column: Column, cells: Mapping[str, Cell], beside: Mapping[str, Cell]
) -> Iterable[Entry]:
    """One column of one experiment, row by row; `beside` are the cells of all images."""
    table, experiment = view.table, view.experiment.name
    winners = aggregate.best(cells, column) if table.directions == "shared" else ()
    ranks = board.ranks(cells, column) if table.ranked and column is not board.MEAN_RANK else {}
    for row in table.rows:
        method = row.method
        paper = table.paper_values.get(experiment, {}).get(method, {}).get(column.name)
        cell, best = cells[method], method in winners
        every = None
        if column.per == "image" and method != ORIGINAL_DATA and method in beside:
            every = beside[method].value
        entry = (experiment, method, row.label, column, cell, paper, best)
        yield Entry(*entry, ranks.get(method), every)


def _footer(
    view: TableView,
    results: Results,
    declared: Sequence[Column],
    cells: Mapping[str, Mapping[str, Cell]],
    only: Mapping[Pair, Sequence[int]] | None,
) -> list[str]:
    """What the numbers of one experiment depend on."""
    name = view.experiment.name
    lines = [_how_made(view, results)]
    if only is not None:
        lines.append(found.in_words(view, declared, only))
    if view.table.ranked:
        counted = [column.label for column in board.complete(cells, declared)]
        lines.append(f"{name}: mean rank over {', '.join(counted) or 'no column'}.")
    lines += _too_small(view, cells, declared)
    lines += _failed_gates(view)
    if view.judged:
        sets = [(m, d) for d in _directions(view) for m in view.methods if d in view.directions(m)]
        lines += [f"{name}: {note}." for note in results.notes(sets)]
    return lines


def _directions(view: TableView) -> list[Pair]:
    """The directions that any row is about, each once."""
    return list(dict.fromkeys(d for method in view.methods for d in view.directions(method)))


def _reasons(entries: Iterable[Entry]) -> list[str]:
    """Why cells are empty: each reason once, with the rows or columns that it is about."""
    about: dict[tuple[str, str], dict[str, None]] = {}
    for entry in entries:
        cell, column = entry.cell, entry.column
        if cell.reason is not None and column is not board.MEAN_RANK:
            unit = f" {column.unit}" if column.unit else ""
            where = entry.label if cell.status == "skipped" else f"{column.label}{unit}"
            about.setdefault((cell.status.capitalize(), cell.reason), {})[where] = None
    return [f"{kind}: {', '.join(where)}: {reason}." for (kind, reason), where in about.items()]


def with_costs(built: Built, experiments: Mapping[str, Experiment]) -> Built:
    """A ranked table with what was measured of each method's cost, where all of it was.

    Measured times differ from run to run, and so stand only in Markdown and HTML.
    """
    views = [TableView(built.table, experiments[name]) for name in built.table.experiments]
    costs_of = {
        view.experiment.name: board.costs(
            view.experiment, {method: view.directions(method) for method in view.methods}
        )
        for view in views
    }
    if not built.table.ranked or not any(costs_of.values()):
        return built
    absent = Cell("not available", reason="not measured")
    entries = list(built.entries)
    for name, costs in costs_of.items():
        for column in board.COSTS.values():
            for row in built.table.rows:
                cell = built.entry(name, row.method, board.MEAN_RANK.name).cell
                if row.method in costs:
                    cell = Cell("ok", costs[row.method][column.name])
                elif cell.status not in ("not run", "skipped", "not defined"):
                    cell = absent
                entries.append(Entry(name, row.method, row.label, column, cell, None, False))
    columns = (*built.columns, *board.COSTS.values())
    return replace(built, entries=tuple(entries), columns=columns)


def _columns(table: Table, experiments: Mapping[str, Experiment]) -> tuple[Column, ...]:
    known: dict[str, Column] = {inputs.TIME.name: inputs.TIME}
    for name in table.experiments:
        known = {**experiments[name].columns(), **known}

    def column(name: str) -> Column:
        """As an experiment declares it, or like its stand-in of an in-domain network."""
        if name in known:
            return known[name]
        if stand_in := known.get(f"{name}_oracle"):
            label = stand_in.label.removesuffix("-oracle")
            return stand_in.model_copy(update={"name": name, "label": label})
        return Column(name=name, label=name, direction="none")

    return tuple(column(name) for name in table.columns)


def _how_made(view: TableView, results: Results) -> str:
    """Scale, images, directions and seed of one experiment."""
    experiment = view.experiment
    labels = {row.method: row.label for row in view.table.rows}
    images = {
        method: results.images(method, view.directions(method))
        if view.judged
        else results.cell(method, inputs.TIME.name, view.directions(method)).images
        for method in view.methods
    }
    counts = sorted(set(images.values()))
    if not counts:
        per_method = "no method of this table is run"
    elif len(counts) == 1:
        per_method = f"{counts[0]} images per method"
    else:
        per_method = "images " + ", ".join(f"{labels[m]} {n}" for m, n in images.items())
    named = ", ".join(aggregate.direction_name(experiment, d) for d in _directions(view))
    return (
        f"{experiment.name}: scale {experiment.scale}; {per_method}; directions {named}; "
        f"seed {experiment.seed}."
    )


def _too_small(
    view: TableView, cells: Mapping[str, Mapping[str, Cell]], columns: Iterable[Column]
) -> list[str]:
    """Which rows are too small to be compared, in which columns."""
    labels = {row.method: row.label for row in view.table.rows}
    told: dict[str, list[str]] = {}
    for column in columns:
        shown = cells[column.name]
        compared = aggregate.comparable(shown, column)
        small = [
            f"{labels[method]} ({cell.images})"
            for method, cell in shown.items()
            if cell.value is not None and method != ORIGINAL_DATA and method not in compared
        ]
        if small:
            told.setdefault(", ".join(small), []).append(column.label)
    return [
        f"{view.experiment.name}: {', '.join(names)}: fewer images make it larger; not compared "
        f"with the other rows, for want of images: {small}."
        for small, names in told.items()
    ]


def _failed_gates(view: TableView) -> list[str]:
    experiment = view.experiment
    return [
        f"Quality gate failed in {experiment.name}: {gate.model}, {gate.name} is "
        f"{gate.value:.4g}, must be {gate.bound or 'within'} {gate.threshold:.4g}."
        for gate in aggregate.gates(inputs.table_cards(view))
        if not gate.passed
    ]


def commit() -> str:
    """The short commit of the project folder, or "none" outside a git repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return answer.stdout.strip()


def hardware() -> str:
    """The processor of this machine in words."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return named.group(1) if named else platform.processor() or platform.machine()


def provenance(table: Table, experiments: Mapping[str, Experiment]) -> list[str]:
    """Commit, hardware and command, the part of a footer that may differ between machines."""
    devices = sorted(
        {
            str(files.read_json(path)["device"])
            for name in table.experiments
            for path in inputs.timing_inputs(experiments[name])
            if path.is_file()
        }
    )
    made = f"counterfactuals made on {', '.join(devices)}; " if devices else ""
    scale = experiments[table.experiments[0]].scale
    target = f"{layout.TABLES.as_posix()}/{table.name}.csv"
    return [
        f"Commit {commit()}; {made}table built on {hardware()}.",
        f"Command: snakemake {target} --cores 1 --config scale={scale} "
        f"(this stage alone: counterlens table --table {table.name} --scale {scale})",
    ]


def write(
    built: Built,
    experiments: Mapping[str, Experiment],
    provenance_lines: Sequence[str],
    folder: Path,
) -> None:
    """Write the five files of a table into a folder."""
    printed = with_costs(built, experiments)
    stem = folder / built.table.name
    files.write_csv(stem.with_suffix(".csv"), to_frame(built))
    files.write_json(stem.with_suffix(".json"), to_json(built))
    files.write_text(stem.with_suffix(".tex"), to_latex(built))
    files.write_text(stem.with_suffix(".md"), to_markdown(printed, provenance_lines))
    files.write_text(stem.with_suffix(".html"), to_html(printed, provenance_lines))


def run(name: str, scale: Scale) -> None:
    """The stage `table`: `results/tables/<name>.{csv,md,tex,html,json}`.

    Raises:
        UserError: the table or an experiment is unknown, or its metrics are missing.
    """
    table = load_table(name)
    experiments = {each: load_experiment(each, scale) for each in table.experiments}
    built = build(table, experiments)
    write(built, experiments, provenance(table, experiments), layout.TABLES)
