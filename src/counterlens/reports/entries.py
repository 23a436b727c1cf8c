"""The cells of a built table, before anything is printed."""

from __future__ import annotations

from dataclasses import dataclass

from counterlens.config import Column, Table
from counterlens.reports.aggregate import Cell


@dataclass(frozen=True)
class Entry:
    """One cell of a table: ours and the paper's, both in printed units.

    `rank`: its place in the column, in a ranked table. `all_images`: the mean over all images,
    beside a cell that counts only some of them.
    """

    experiment: str
    method: str
    label: str
    column: Column
    cell: Cell
    paper: float | None
    best: bool
    rank: float | None = None
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
    hardware are not part of it. `verdicts` are those of the table's claims: held, not held, not
    checked. `failed_gates`: how many quality gates of the models behind it failed.
    """

    table: Table
    entries: tuple[Entry, ...]
    columns: tuple[Column, ...]
    footer: tuple[str, ...]
    verdicts: tuple[str, ...] = ()
    failed_gates: int = 0

    def entry(self, experiment: str, method: str, column: str) -> Entry:
        """One cell."""
        return next(
            e
            for e in self.entries
            if (e.experiment, e.method, e.column.name) == (experiment, method, column)
        )
