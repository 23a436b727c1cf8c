"""A table of a paper, rebuilt: ours, the paper's, the difference, and how it was made.

One table becomes five files. CSV (long format, full precision), JSON (for `dvc metrics show`) and
LaTeX hold numbers only; Markdown and HTML also name the commit, the hardware and the command.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    Claim,
    Column,
    Experiment,
    Pair,
    Scale,
    Table,
    load_table,
)
from counterlens.experiments import load_experiment
from counterlens.plan import inputs
from counterlens.reports import aggregate, board, found
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
    columns = (board.MEAN_RANK, *declared) if table.ranked else declared
    entries: list[Entry] = []
    footer = [f"Paper: {table.paper}."] if table.paper else []
    reasons: dict[tuple[str, str], list[str]] = {}
    for name in table.experiments:
        experiment = experiments[name]
        methods = inputs.table_methods(table, experiment)
        directions = {m: inputs.table_directions(table, experiment, m) for m in methods}
        results = Results(experiment)
        images = {
            method: results.images(method, directions[method])
            if inputs.judged(table)
            else results.cell(method, inputs.TIME.name, directions[method]).images
            for method in methods
        }
        only: Mapping[Pair, Sequence[int]] | None = found.counted(table, experiment)
        if table.filter == "common-images":
            only = results.common(methods, inputs.shared_directions(experiment, methods))
        whole = {
            column.name: {
                row.method: results.cell(row.method, column.name, directions.get(row.method, ()))
                for row in table.rows
            }
            for column in declared
        }
        cells = whole if only is None else _filtered(results, whole, declared, directions, only)
        if table.ranked:
            cells[board.MEAN_RANK.name] = board.mean_ranks(cells, declared)
        for column in columns:
            shown = cells[column.name]
            beside = {} if only is None else whole[column.name]
            entries += _entries(table, name, column, shown, beside)
            for row in table.rows:
                cell = shown[row.method]
                if cell.reason is not None and column is not board.MEAN_RANK:
                    skipped = cell.status == "skipped"
                    unit = f" {column.unit}" if column.unit else ""
                    where = row.label if skipped else f"{column.label}{unit}"
                    told = reasons.setdefault((cell.status.capitalize(), cell.reason), [])
                    if where not in told:
                        told.append(where)
        named = tuple(dict.fromkeys(d for each in directions.values() for d in each))
        footer.append(_how_made(table, experiment, images, named))
        if only is not None:
            footer.append(found.in_words(table, experiment, declared, only))
        if table.ranked:
            counted = [column.label for column in board.complete(cells, declared)]
            footer.append(f"{name}: mean rank over {', '.join(counted) or 'no column'}.")
        footer += _too_small(table, name, cells, declared)
        footer += _failed_gates(table, experiment)
        if inputs.judged(table):
            sets = [(method, d) for d in named for method in methods if d in directions[method]]
            footer += [f"{name}: {note}." for note in results.notes(sets)]
    footer += [
        claim_in_words(claim, name, entries) for name in table.experiments for claim in table.claims
    ]
    footer += [f"{kind}: {', '.join(w)}: {reason}." for (kind, reason), w in reasons.items()]
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
    return Built(table, tuple(entries), columns, tuple(footer))


def _filtered(
    results: Results,
    whole: Mapping[str, Mapping[str, Cell]],
    columns: Iterable[Column],
    directions: Mapping[str, tuple[Pair, ...]],
    only: Mapping[Pair, Sequence[int]],
) -> dict[str, dict[str, Cell]]:
    """The cells of a table by column and row, what is measured per image of some images only."""
    found = {name: dict(cells) for name, cells in whole.items()}
    for column in columns:
        for method in directions if column.per == "image" else ():
            if method != ORIGINAL_DATA:
                cell = results.cell(method, column.name, directions[method], only=only)
                found[column.name][method] = cell
    return found


def _entries(
    table: Table,
    experiment: str,
    column: Column,
    cells: Mapping[str, Cell],
    beside: Mapping[str, Cell],
) -> Iterable[Entry]:
    """One column of one experiment, row by row; `beside` are the cells of all images."""
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


def with_costs(built: Built, experiments: Mapping[str, Experiment]) -> Built:
    """A ranked table with what was measured of each method's cost, where all of it was.

    Measured times differ from run to run, and so stand only in Markdown and HTML.
    """
    found = {
        name: board.costs(
            experiments[name],
            {
                method: inputs.table_directions(built.table, experiments[name], method)
                for method in inputs.table_methods(built.table, experiments[name])
            },
        )
        for name in built.table.experiments
    }
    if not built.table.ranked or not any(found.values()):
        return built
    absent = Cell("not available", reason="not measured")
    entries = list(built.entries)
    for name, costs in found.items():
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


def claim_in_words(claim: Claim, experiment: str, entries: Sequence[Entry]) -> str:
    """Whether our numbers bear a claim out, with these numbers."""
    found = {(e.method, e.column.name): e for e in entries if e.experiment == experiment}
    methods = (claim.method, *claim.against)
    whose = "Claim of the paper" if claim.whose == "paper" else "Our expectation"
    start = f"{whose}, {experiment}: {claim.text}"
    cells: list[Entry] = []
    for column in claim.columns:
        cells = [found[method, column] for method in methods]
        if all(entry.cell.value is not None for entry in cells):
            break
    else:
        missing = [f"{e.label} {e.cell.status}" for e in cells if e.cell.value is None]
        return f"{start}: not checked: {', '.join(missing)}."
    those = aggregate.comparable({e.method: e.cell for e in cells}, cells[0].column)
    left_out = [f"{e.label} ({e.cell.images} images)" for e in cells if e.method not in those]
    aside = f"; not compared: {', '.join(left_out)}" if left_out else ""
    if claim.method not in those or (claim.against and len(those) < 2):
        return f"{start}: not checked{aside}."
    cells = [entry for entry in cells if entry.method in those]
    values = [entry.cell.value for entry in cells if entry.cell.value is not None]
    held = {
        "highest": lambda: values[0] > max(values[1:]),
        "lowest": lambda: values[0] < min(values[1:]),
        "at-most": lambda: claim.value is not None and values[0] <= claim.value,
        "at-least": lambda: claim.value is not None and values[0] >= claim.value,
        "falls": lambda: all(after <= before for before, after in pairwise(values)),
    }[claim.relation]()
    numbers = ", ".join(
        f"{entry.label} {aggregate.number(value, entry.column.decimals)}"
        for entry, value in zip(cells, values, strict=True)
    )
    told = f"{cells[0].column.label}: {numbers}{aside}"
    return f"{start}: {'held' if held else 'not held'} ({told})."


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


def _how_made(
    table: Table,
    experiment: Experiment,
    images: Mapping[str, int],
    directions: Sequence[tuple[int, int]],
) -> str:
    labels = {row.method: row.label for row in table.rows}
    counts = sorted(set(images.values()))
    if not counts:
        per_method = "no method of this table is run"
    elif len(counts) == 1:
        per_method = f"{counts[0]} images per method"
    else:
        per_method = "images " + ", ".join(f"{labels[m]} {n}" for m, n in images.items())
    named = ", ".join(aggregate.direction_name(experiment, d) for d in directions)
    return (
        f"{experiment.name}: scale {experiment.scale}; {per_method}; directions {named}; "
        f"seed {experiment.seed}."
    )


def _too_small(
    table: Table,
    experiment: str,
    cells: Mapping[str, Mapping[str, Cell]],
    columns: Iterable[Column],
) -> list[str]:
    """Which rows are too small to be compared, in which columns."""
    labels = {row.method: row.label for row in table.rows}
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
        f"{experiment}: {', '.join(names)}: fewer images make it larger; not compared with "
        f"the other rows, for want of images: {small}."
        for small, names in told.items()
    ]


def _failed_gates(table: Table, experiment: Experiment) -> list[str]:
    return [
        f"Quality gate failed in {experiment.name}: {gate.model}, {gate.name} is "
        f"{gate.value:.4g}, must be {gate.bound or 'within'} {gate.threshold:.4g}."
        for gate in aggregate.gates(inputs.table_cards(table, experiment))
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
    found = (
        re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M)
        if (cpuinfo.is_file())
        else None
    )
    return found.group(1) if found else platform.processor() or platform.machine()


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
