"""A built table as CSV, JSON, Markdown, LaTeX and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from counterlens.reports import aggregate, page
from counterlens.reports.entries import Built, Entry

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
)


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
        )
        for e in built.entries
    ]
    frame = pd.DataFrame(rows, columns=pd.Index(CSV_COLUMNS))
    if built.table.ranked:
        frame["rank"] = [e.rank for e in built.entries]
    if built.table.filter != "none":
        frame["all_images"] = [e.all_images for e in built.entries]
    return frame


def to_json(built: Built) -> dict[str, int]:
    """A table in five numbers, for `dvc metrics`: cells, claims by verdict, failed gates."""
    count = built.verdicts.count
    return {
        "numbers": sum(e.cell.value is not None for e in built.entries),
        "held": count("held"),
        "not held": count("not held"),
        "not checked": count("not checked"),
        "failed gates": built.failed_gates,
    }


SYMBOLS = {"better": "▲", "worse": "▼", "equal": "="}


def _text(entry: Entry) -> tuple[str, str | None, str | None]:
    """What a cell shows: the value, the interval, the comparison or rank."""
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
    versus = None if entry.rank is None else f"rank {entry.rank:g}"
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


def shown(built: Built, experiment: str) -> list[dict[str, Any]]:
    """The rows of one experiment as a page shows them."""
    rows: list[dict[str, Any]] = []
    for row in built.table.rows:
        cells = []
        for column in built.columns:
            entry = built.entry(experiment, row.method, column.name)
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
    return rows


def to_html(built: Built, provenance: Sequence[str]) -> str:
    """A page of its own, without external resources."""
    groups = [{"experiment": name, "rows": shown(built, name)} for name in built.table.experiments]
    return page.render(
        "table.html.j2",
        title=built.table.title,
        headers=[aggregate.header(column) for column in built.columns],
        groups=groups,
        footer=[*built.footer, *provenance],
    )
