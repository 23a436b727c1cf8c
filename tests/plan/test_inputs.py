"""A table as one experiment fills it."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterlens.config import Experiment, Table, load_table
from counterlens.experiments import load_experiment
from counterlens.plan.inputs import TableView

NINE = ((4, 9), (9, 4))
RUN = ("explaingan", "cem", "cve", "c3lt", "pgd")


@pytest.fixture
def digits(root: Path) -> Experiment:
    """At small scale most methods explain 4 and 9 alone, C3LT and PGD also 3 and 8."""
    return load_experiment("digits", "small")


@pytest.fixture
def table(root: Path) -> Table:
    """Its row `cem-targeted` is not run on the digits."""
    return load_table("c3lt-table1-digits")


def test_rows_share_the_directions_of_the_methods_that_are_run(
    digits: Experiment, table: Table
) -> None:
    view = TableView(table, digits)
    assert view.methods == RUN
    assert [view.directions(method) for method in RUN] == [NINE] * 5
    assert view.directions("cem-targeted") == ()


def test_rows_about_their_own_directions(digits: Experiment, table: Table) -> None:
    view = TableView(table.model_copy(update={"directions": "own"}), digits)
    assert view.directions("c3lt") == ((3, 8), (8, 3), *NINE)
    assert view.directions("cve") == NINE
    assert view.directions("cem-targeted") == ()


def test_which_rows_a_filter_asks(digits: Experiment, table: Table) -> None:
    assert TableView(table, digits).filtered == RUN
    rows = [row.model_copy(update={"in_filter": row.method != "cem"}) for row in table.rows]
    rows.append(rows[0].model_copy(update={"method": "original-data"}))
    view = TableView(table.model_copy(update={"rows": tuple(rows)}), digits)
    assert view.methods == (*RUN, "original-data")
    assert view.filtered == ("explaingan", "cve", "c3lt", "pgd")
    for other in ("none", "common-images"):
        assert TableView(table.model_copy(update={"filter": other}), digits).filtered == ()


@pytest.mark.parametrize(
    ("columns", "judged"), [(("milliseconds",), False), (("milliseconds", "cout"), True)]
)
def test_a_table_of_times_alone_is_not_judged(
    digits: Experiment, table: Table, columns: tuple[str, ...], judged: bool
) -> None:
    assert TableView(table.model_copy(update={"columns": columns}), digits).judged is judged
