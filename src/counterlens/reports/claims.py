"""What is said of a table, checked with our numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from counterlens.config import Claim
from counterlens.reports import aggregate
from counterlens.reports.entries import Entry


class Checked(NamedTuple):
    """A claim with its verdict, and both in words for the footer."""

    verdict: Literal["held", "not held", "not checked"]
    text: str


def check(claim: Claim, experiment: str, entries: Sequence[Entry]) -> Checked:
    """Whether our numbers bear a claim out, with these numbers."""
    own = {(e.method, e.column.name): e for e in entries if e.experiment == experiment}
    methods = (claim.method, *claim.against)
    whose = "Claim of the paper" if claim.whose == "paper" else "Our expectation"
    start = f"{whose}, {experiment}: {claim.text}"
    cells: list[Entry] = []
    for column in claim.columns:
        cells = [own[method, column] for method in methods]
        if all(entry.cell.value is not None for entry in cells):
            break
    else:
        missing = [f"{e.label} {e.cell.status}" for e in cells if e.cell.value is None]
        return Checked("not checked", f"{start}: not checked: {', '.join(missing)}.")
    those = aggregate.comparable({e.method: e.cell for e in cells}, cells[0].column)
    left_out = [f"{e.label} ({e.cell.images} images)" for e in cells if e.method not in those]
    aside = f"; not compared: {', '.join(left_out)}" if left_out else ""
    if claim.method not in those or (claim.against and len(those) < 2):
        return Checked("not checked", f"{start}: not checked{aside}.")
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
    verdict = "held" if held else "not held"
    return Checked(verdict, f"{start}: {verdict} ({told}).")
