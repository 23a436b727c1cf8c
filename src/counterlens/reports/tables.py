"""A table of a paper, rebuilt: ours, the paper's, the difference, and how it was made.

One table becomes five files. CSV (long format, full precision), JSON (for `dvc metrics show`) and
LaTeX hold numbers only; Markdown and HTML also name the commit, the hardware and the command.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    Claim,
    Column,
    Experiment,
    Scale,
    Table,
    load_experiment,
    load_table,
)
from counterlens.reports import aggregate, found, inputs, page
from counterlens.reports.aggregate import Cell, Results
from counterlens.runtime import files

SUFFIXES = (".csv", ".md", ".tex", ".html", ".json")
CSV_COLUMNS = (
    "table",
    "experiment",
    "method",
    "label",
    "column",
    "value",
    "low",
    "high",
    "paper",
    "difference",
    "images",
    "status",
    "all_images",
)


@dataclass(frozen=True)
class Entry:
    """One cell of a table: ours and the paper's, both in printed units.

    `all_images` is the mean over all images beside a cell that counts only some of them.
    """

    experiment: str
    method: str
    label: str
    column: Column
    cell: Cell
    paper: float | None
    best: bool
    all_images: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        if self.cell.value is None or self.paper is None:
            return None
        return self.cell.value - self.paper

    @property
    def versus(self) -> str | None:
        """Ours against the paper's as printed: "better", "worse" or "equal"."""
        if self.difference is None or self.column.direction == "none":
            return None
        rounded = round(self.difference, self.column.decimals)
        if rounded == 0:
            return "equal"
        return "better" if (rounded > 0) == (self.column.direction == "up") else "worse"


@dataclass(frozen=True)
class Built:
    """A table with all its numbers.

    `footer` is what the numbers depend on and is the same at every rebuild; the commit and the
    hardware are not part of it.
    """

    table: Table
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    footer: tuple[str, ...]

    def entry(self, experiment: str, method: str, column: str) -> Entry:
        """One cell."""
        return next(
            e
            for e in self.entries
            if (e.experiment, e.method, e.column.name) == (experiment, method, column)
        )


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
    footer = [f"Paper: {table.paper}."]
    reasons: dict[str, list[str]] = {}
    for name in table.experiments:
        experiment = experiments[name]
        methods = inputs.table_methods(table, experiment)
        directions = {m: inputs.table_directions(table, experiment, m) for m in methods}
        results = Results(experiment)
        images = {method: results.images(method, directions[method]) for method in methods}
        only = found.counted(table, experiment)
        for column in declared:
            cells: dict[str, Cell] = {}
            beside: dict[str, float | None] = {}
            for row in table.rows:
                asked = (row.method, column.name, directions.get(row.method, ()))
                cells[row.method] = results.cell(*asked)
                if only is not None and column.per == "image" and row.method != ORIGINAL_DATA:
                    beside[row.method] = cells[row.method].value
                    cells[row.method] = results.cell(*asked, only=only)
            winners = aggregate.best(cells, column) if table.directions == "shared" else ()
            for row in table.rows:
                method, cell = row.method, cells[row.method]
                paper = table.paper_values.get(name, {}).get(method, {}).get(column.name)
                entry = (name, method, row.label, column, cell, paper, method in winners)
                entries.append(Entry(*entry, beside.get(method)))
                if cell.reason is not None:
                    where = f"{column.label}{f' {column.unit}' if column.unit else ''}"
                    reasons.setdefault(cell.reason, [])
                    if where not in reasons[cell.reason]:
                        reasons[cell.reason].append(where)
        named = tuple(dict.fromkeys(d for each in directions.values() for d in each))
        footer.append(_how_made(table, experiment, images, named))
        if only is not None:
            footer.append(found.in_words(table, experiment, declared, only))
        footer += _failed_gates(experiment)
        sets = [(method, d) for d in named for method in methods if d in directions[method]]
        footer += [f"{name}: {note}." for note in results.notes(sets)]
    footer += [
        claim_in_words(claim, name, entries) for name in table.experiments for claim in table.claims
    ]
    footer += [f"Not available: {', '.join(w)}: {reason}." for reason, w in reasons.items()]
    footer.append(
        "In brackets: 95 % percentile bootstrap interval over images (2000 resamples). "
        "▲ better, ▼ worse than the paper, = equal as printed. Bold: best of the methods run. "
        "Not run: the experiment does not define the method."
    )
    footer += table.notes
    return Built(table, tuple(entries), declared, tuple(footer))


def claim_in_words(claim: Claim, experiment: str, entries: Sequence[Entry]) -> str:
    """Whether our numbers bear a claim out, with these numbers."""
    found = {(e.method, e.column.name): e for e in entries if e.experiment == experiment}
    methods = (claim.method, *claim.against)
    start = f"Claim of the paper, {experiment}: {claim.text}"
    cells: list[Entry] = []
    values: list[float] = []
    for column in claim.columns:
        cells = [found[method, column] for method in methods]
        values = [entry.cell.value for entry in cells if entry.cell.value is not None]
        if len(values) == len(cells):
            break
    else:
        missing = [f"{e.label}: {e.cell.status}" for e in cells if e.cell.value is None]
        return f"{start}: not decided ({', '.join(missing)})."
    held = {
        "highest": lambda: values[0] > max(values[1:]),
        "lowest": lambda: values[0] < min(values[1:]),
        "at-most": lambda: claim.value is not None and values[0] <= claim.value,
        "falls": lambda: all(after <= before for before, after in pairwise(values)),
    }[claim.relation]()
    numbers = ", ".join(
        f"{entry.label} {aggregate.number(value, entry.column.decimals)}"
        for entry, value in zip(cells, values, strict=True)
    )
    return f"{start}: {'held' if held else 'not held'} ({cells[0].column.label}: {numbers})."


def _columns(table: Table, experiments: Mapping[str, Experiment]) -> tuple[Column, ...]:
    known: dict[str, Column] = {}
    for name in table.experiments:
        known = {**experiments[name].columns(), **known}
    unknown = {name: Column(name=name, label=name, direction="none") for name in table.columns}
    return tuple(known.get(name, unknown[name]) for name in table.columns)


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


def _failed_gates(experiment: Experiment) -> list[str]:
    return [
        f"Quality gate failed in {experiment.name}: {gate.model}, {gate.name} is "
        f"{gate.value:.4g}, must be {gate.bound or 'within'} {gate.threshold:.4g}."
        for gate in aggregate.gates(experiment)
        if not gate.passed
    ]


def to_frame(built: Built) -> pd.DataFrame:
    """Long format, one row per cell, numbers in printed units at full precision."""
    rows = [
        (
            built.table.name,
            e.experiment,
            e.method,
            e.label,
            e.column.name,
            e.cell.value,
            e.cell.low,
            e.cell.high,
            e.paper,
            e.difference,
            e.cell.images,
            e.cell.status,
            e.all_images,
        )
        for e in built.entries
    ]
    return pd.DataFrame(rows, columns=pd.Index(CSV_COLUMNS))


def to_json(built: Built) -> dict[str, dict[str, dict[str, float]]]:
    """{experiment: {method: {column: value}}}, only what was measured."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for e in built.entries:
        if e.cell.value is not None:
            methods = tree.setdefault(e.experiment, {})
            methods.setdefault(e.method, {})[e.column.name] = e.cell.value
    return tree


SYMBOLS = {"better": "▲", "worse": "▼", "equal": "="}


def _text(entry: Entry) -> tuple[str, str | None, str | None]:
    """What a cell shows: the value, the interval, the comparison."""
    decimals = entry.column.decimals
    cell = entry.cell
    interval = None
    if cell.value is None:
        value = "–" if cell.status == "not defined" else cell.status  # noqa: RUF001
    else:
        value = aggregate.number(cell.value, decimals)
        if cell.low is not None and cell.high is not None:
            low, high = (aggregate.number(bound, decimals) for bound in (cell.low, cell.high))
            interval = f"[{low}, {high}]"
    if entry.all_images is not None:
        beside = f"all images {aggregate.number(entry.all_images, decimals)}"
        interval = beside if interval is None else f"{interval}, {beside}"
    versus = None
    if entry.paper is not None:
        versus = f"paper {_as_printed(entry.paper, decimals)}"
        if entry.difference is not None:
            symbol = f" {SYMBOLS[entry.versus]}" if entry.versus else ""
            versus += f" ({aggregate.number(entry.difference, decimals, sign=True)}{symbol})"
    return value, interval, versus


def _as_printed(value: float, decimals: int) -> str:
    """The paper's number with at least our decimals, more where the paper has more."""
    own = len(repr(value).partition(".")[2])
    return aggregate.number(value, max(decimals, own))


def _escape_markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}|])|(?<=\])(\()", r"\\\1\2", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(built: Built, provenance: Sequence[str]) -> str:
    """A Markdown section with one table per experiment."""
    lines = [f"# {_escape_markdown(built.table.title)}", ""]
    for name in built.table.experiments:
        lines += [f"## {_escape_markdown(name)}", ""]
        heads = [_escape_markdown(aggregate.header(column)) for column in built.columns]
        lines.append(f"| | {' | '.join(heads)} |")
        lines.append(f"|:---|{'---:|' * len(heads)}")
        for row in built.table.rows:
            cells = []
            for column in built.columns:
                entry = built.entry(name, row.method, column.name)
                value, interval, versus = _text(entry)
                shown = [f"**{value}**" if entry.best else value]
                shown += [_escape_markdown(part) for part in (interval, versus) if part]
                cells.append("<br>".join(shown))
            lines.append(f"| {_escape_markdown(row.label)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"- {_escape_markdown(line)}" for line in (*built.footer, *provenance)]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{UPWARDS ARROW}": r"$\uparrow$",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(LATEX.get(character, character) for character in text)


def to_latex(built: Built) -> str:
    """A `table` environment; needs the packages booktabs and amssymb."""
    width = len(built.columns)
    experiments = built.table.experiments
    spec = "l" + "c" * (width * len(experiments))
    groups, rules = [], []
    for index, name in enumerate(experiments):
        first = 2 + index * width
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
    heads = [escape_latex(aggregate.header(column)) for column in built.columns]
    lines = [
        "% needs \\usepackage{booktabs,amssymb}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(built.table.title)}}}",
        rf"\label{{tab:{built.table.name}}}",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        f" & {' & '.join(groups)} \\\\",
        " ".join(rules),
        f" & {' & '.join(heads * len(experiments))} \\\\",
        r"\midrule",
    ]
    for row in built.table.rows:
        cells = [
            _latex_cell(built.entry(name, row.method, column.name))
            for name in experiments
            for column in built.columns
        ]
        lines.append(f"{escape_latex(row.label)} & {' & '.join(cells)} \\\\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\footnotesize"]
    lines += [f"{escape_latex(line)}\\par" for line in built.footer]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _latex_cell(entry: Entry) -> str:
    value, *small = (None if part is None else escape_latex(part) for part in _text(entry))
    shown = [rf"\textbf{{{value}}}" if entry.best else f"{value}"]
    shown += [rf"{{\scriptsize {part}}}" for part in small if part]
    stacked = r" \\ ".join(shown)
    return stacked if len(shown) == 1 else rf"\shortstack{{{stacked}}}"


def to_html(built: Built, provenance: Sequence[str]) -> str:
    """A page of its own, without external resources."""
    groups = []
    for name in built.table.experiments:
        rows: list[dict[str, Any]] = []
        for row in built.table.rows:
            cells = []
            for column in built.columns:
                entry = built.entry(name, row.method, column.name)
                value, interval, versus = _text(entry)
                cells.append(
                    {
                        "value": value,
                        "interval": interval,
                        "versus": versus,
                        "against": entry.versus,
                        "best": entry.best,
                        "muted": entry.cell.value is None,
                    }
                )
            rows.append({"label": row.label, "cells": cells})
        groups.append({"experiment": name, "rows": rows})
    return page.render(
        "table.html.j2",
        title=built.table.title,
        headers=[aggregate.header(column) for column in built.columns],
        groups=groups,
        footer=[*built.footer, *provenance],
    )


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


def write(built: Built, provenance_lines: Sequence[str], folder: Path) -> None:
    """Write the five files of a table into a folder."""
    stem = folder / built.table.name
    files.write_csv(stem.with_suffix(".csv"), to_frame(built))
    files.write_json(stem.with_suffix(".json"), to_json(built))
    files.write_text(stem.with_suffix(".tex"), to_latex(built))
    files.write_text(stem.with_suffix(".md"), to_markdown(built, provenance_lines))
    files.write_text(stem.with_suffix(".html"), to_html(built, provenance_lines))


def run(name: str, scale: Scale) -> None:
    """The stage `table`: `results/tables/<name>.{csv,md,tex,html,json}`.

    Raises:
        UserError: the table or an experiment is unknown, or its metrics are missing.
    """
    table = load_table(name)
    experiments = {each: load_experiment(each, scale) for each in table.experiments}
    built = build(table, experiments)
    write(built, provenance(table, experiments), layout.TABLES)
