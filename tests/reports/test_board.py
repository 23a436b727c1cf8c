"""Ranks, Pareto fronts, costs and skipped methods, and the pages that show them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from counterlens import layout
from counterlens.config import ORIGINAL_DATA, Column, Figure, MethodOptions, Row, Table
from counterlens.errors import UserError
from counterlens.plan import inputs
from counterlens.reports import board, figures, html, pareto, tables
from counterlens.reports.aggregate import Cell
from counterlens.runtime import files

Make = Callable[..., Any]
UP = Column(name="up", label="Up", direction="up", decimals=2)
DOWN = Column(name="down", label="Down", direction="down", decimals=2)
NONE = Column(name="none", label="None", direction="none")


def cells(*values: float | str | None) -> dict[str, Cell]:
    found = {}
    for name, value in zip("abcdefgh", values, strict=False):
        if isinstance(value, str):
            found[name] = Cell(value, reason="why")  # type: ignore[arg-type]
        else:
            found[name] = Cell("ok" if value is not None else "not available", value)
    return found


# Ranks


def test_ranks_follow_the_direction_and_share_places() -> None:
    found = cells(0.5, 0.9, 0.5, 0.1)
    assert board.ranks(found, UP) == {"a": 2.5, "b": 1, "c": 2.5, "d": 4}
    assert board.ranks(found, DOWN) == {"a": 2.5, "b": 4, "c": 2.5, "d": 1}
    assert board.ranks(found, NONE) == {}


def test_values_that_print_the_same_are_equal() -> None:
    assert board.ranks(cells(0.901, 0.899, 0.894), UP) == {"a": 1.5, "b": 1.5, "c": 3}


def test_only_numbers_of_methods_are_ranked() -> None:
    found = {**cells(0.2, None, float("nan"), "not run", "skipped"), ORIGINAL_DATA: Cell("ok", 0.9)}
    assert board.ranks(found, UP) == {"a": 1}
    assert board.ranks(cells(None, "not run"), UP) == {}


def test_the_mean_is_over_columns_that_rank_every_method_run() -> None:
    third = Column(name="third", label="T", direction="down", decimals=2)
    found = {
        "up": cells(0.9, 0.5, 0.7, "not run", "skipped"),
        "down": cells(0.1, 0.3, 0.3, "not run", "skipped"),
        "third": cells(0.1, None, 0.3, "not run", "skipped"),
    }
    for column in found.values():
        column[ORIGINAL_DATA] = Cell("ok", 0.0)
    assert board.complete(found, [UP, DOWN, third]) == [UP, DOWN]
    means = board.mean_ranks(found, [UP, DOWN, third])
    assert {m: c.value for m, c in means.items() if c.value is not None} == {
        "a": 1,
        "b": (3 + 2.5) / 2,
        "c": (2 + 2.5) / 2,
    }
    assert means["d"].status == "not run" and means["e"].status == "skipped"
    assert means[ORIGINAL_DATA].status == "not defined"


def test_no_column_ranks_every_method() -> None:
    found = board.mean_ranks({"up": cells(0.9, None)}, [UP])
    assert {cell.status for cell in found.values()} == {"not available"}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_ranks_sum_to_the_same_whatever_the_ties(values: list[int]) -> None:
    found = board.ranks(cells(*map(float, values)), UP)
    assert sum(found.values()) == pytest.approx(len(values) * (len(values) + 1) / 2)


# The front


def front(points: list[tuple[float, float]], x: Column = DOWN, y: Column = UP) -> list[bool]:
    return pareto.front(np.array(points, dtype=float), (x, y)).tolist()


def test_the_front_of_three() -> None:
    assert front([(1, 1), (2, 2), (3, 1.5)]) == [True, True, False]
    assert front([(1, 1), (2, 2), (3, 1.5)], UP, UP) == [False, True, True]


def test_equal_points_are_on_the_front_together() -> None:
    assert front([(1, 1), (1, 1), (2, 1)]) == [True, True, False]
    assert front([(1, 1), (1, 1), (0, 1)]) == [False, False, True]


def test_a_tie_in_one_column_is_decided_by_the_other() -> None:
    assert front([(1, 1), (1, 2), (1, 2)]) == [False, True, True]
    assert front([(1, 2), (3, 2), (2, 2)]) == [True, False, False]


def test_one_point_is_its_own_front() -> None:
    assert front([(5, 5)]) == [True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    expected = []
    for x, y in points:
        beaten = any((a <= x and b >= y) and (a < x or b > y) for a, b in points)
        expected.append(not beaten)
    assert front(points) == expected  # type: ignore[arg-type]


# The table


def ranked(**changes: Any) -> Table:
    content: dict[str, Any] = {
        "name": "toy-board",
        "title": "The board",
        "ranked": True,
        "rows": [
            Row(method="pgd", label="PGD"),
            Row(method="c3lt", label="C3LT"),
            Row(method="cem", label="CEM"),
            Row(method="cve", label="CVE"),
            Row(method="original-data", label="Real"),
        ],
        "columns": ["validity", "cout", "im2", "fid", "kid_oracle"],
        "experiments": ["toy"],
    }
    return Table.model_validate({**content, **changes})


@pytest.fixture
def experiment(make: Make) -> Any:
    """The toy experiment without the method that runs on some pairs only, with one skipped."""
    made = make(pairs=((4, 9),)).experiment
    return made.model_copy(update={"skipped": {"cve": "has <no> maps"}})


def test_a_ranked_table(experiment: Any) -> None:
    built = tables.build(ranked(), {"toy": experiment})
    assert built.columns[0] is board.MEAN_RANK
    ranks: dict[str, list[float]] = {"pgd": [], "c3lt": []}
    for column in ("validity", "cout", "im2", "kid_oracle"):
        both = {m: built.entry("toy", m, column) for m in ranks}
        assert sorted(e.rank for e in both.values()) in ([1, 2], [1.5, 1.5])
        for method, entry in both.items():
            assert entry.rank is not None
            ranks[method].append(entry.rank)
            assert entry.best == (entry.rank < 2)
    for method, found in ranks.items():
        mean = built.entry("toy", method, "mean_rank")
        assert mean.cell.value == pytest.approx(np.mean(found)) and mean.rank is None
    assert built.entry("toy", "cem", "validity").cell.status == "not run"
    assert built.entry("toy", "cve", "mean_rank").cell.status == "skipped"
    assert built.entry("toy", "original-data", "im2").rank is None
    footer = "\n".join(built.footer)
    assert "Skipped: CVE: has <no> maps." in footer
    assert "toy: mean rank over Val, COUT, IM2, KID." in footer
    assert "Not available: FID: weight inception" in footer and "Paper" not in footer


def test_the_files_of_a_ranked_table(experiment: Any, tmp_path: Path) -> None:
    built = tables.build(ranked(), {"toy": experiment})
    tables.write(built, {"toy": experiment}, ["Commit abc."], tmp_path)
    csv = (tmp_path / "toy-board.csv").read_text(encoding="utf-8")
    assert csv.splitlines()[0].endswith(",status,rank")
    for suffix in (".csv", ".tex", ".json"):
        text = (tmp_path / f"toy-board{suffix}").read_text(encoding="utf-8")
        assert "per image)" not in text and "seconds_per_image" not in text
    markdown = (tmp_path / "toy-board.md").read_text(encoding="utf-8")
    assert "time (s per image) ↓ | training (s) | generators (s)" in markdown
    row = next(line for line in markdown.splitlines() if line.startswith("| C3LT"))
    assert "rank 1" in row and row.endswith("| 0.5000 | 2.0 | 6.0 |")
    assert (
        next(line for line in markdown.splitlines() if line.startswith("| CVE")).count("skip") == 9
    )
    page = (tmp_path / "toy-board.html").read_text(encoding="utf-8")
    assert "has &lt;no&gt; maps" in page and "rank 2" in page
    assert r"{\scriptsize rank 1}" in (tmp_path / "toy-board.tex").read_text(encoding="utf-8")


def test_costs_are_left_out_while_any_is_missing(experiment: Any, tmp_path: Path) -> None:
    built = tables.build(ranked(), {"toy": experiment})
    layout.generator_time("toy", "dcgan", "all-classes").unlink()
    assert tables.with_costs(built, {"toy": experiment}) is built


def test_costs_are_those_of_the_directions_that_the_board_is_about(make: Make) -> None:
    experiment = make(pairs=((4, 9), (3, 8))).experiment
    whole, part = (
        board.costs(experiment, {"c3lt": directions})["c3lt"]
        for directions in (experiment.directions("c3lt"), ((4, 9), (9, 4)))
    )
    assert part["training_seconds"] == whole["training_seconds"] / 2
    assert part["generator_seconds"] < whole["generator_seconds"]
    assert board.costs(experiment, {"original-data": ((4, 9),)}) == {}


def test_a_ranked_table_reads_nothing_but_its_declared_inputs(experiment: Any) -> None:
    before = tables.build(ranked(), {"toy": experiment})
    declared = set(inputs.table_inputs(ranked(), {"toy": experiment}))
    for path in Path("results").rglob("*"):
        if path.is_file() and path not in declared:
            path.unlink()
    assert tables.build(ranked(), {"toy": experiment}) == before


# The figure and the page


def plot(**changes: Any) -> Figure:
    content: dict[str, Any] = {
        "name": "toy-plot",
        "title": "Validity against <COUT>",
        "kind": "pareto",
        "experiment": "toy",
        "methods": ["c3lt", "cem", "pgd"],
        "directions": [(4, 9), (9, 4)],
        "columns": ["cout", "validity"],
    }
    return Figure.model_validate({**content, **changes})


def test_methods_that_are_not_run_are_left_out(experiment: Any) -> None:
    assert inputs.figure_methods(plot(), experiment) == ("c3lt", "pgd")
    assert not [p for p in inputs.figure_inputs(plot(), experiment) if "cem" in p.parts]


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_names_stand_apart(experiment: Any, seed: int) -> None:
    """Thirteen methods in nearly the same place, some of them on the front.

    No name covers another, leaves the axes or stands on the front's line.
    """
    names = ["c3lt", "explaingan", "cem", "cve", "pgd", "cyclegan", "mirror-cfe", "ace", "cecas"]
    names += ["dime", "dive", "steex", "eced"]
    methods = {name: experiment.methods["pgd"] for name in names}
    crowded = experiment.model_copy(update={"methods": methods, "skipped": {}})
    rng = np.random.default_rng(seed)
    for name in names:
        for direction in ((4, 9), (9, 4)):
            source = layout.metrics("toy", "pgd", *direction)
            place = layout.metrics("toy", name, *direction)
            if name not in ("pgd", "c3lt"):
                files.write_json(
                    place.with_suffix(".json"), files.read_json(source.with_suffix(".json"))
                )
            table = pd.read_parquet(source.with_suffix(".parquet"))
            table["cout"] = 0.5 + 0.02 * (share := rng.random())
            table["validity"] = 1 - 0.1 * share**2 if name < "d" else 0.8 + 0.1 * rng.random()
            files.write_parquet(place.with_suffix(".parquet"), table)
    drawing = figures.DRAW["pareto"](plot(methods=names), crowded)
    drawing.draw_without_rendering()
    (axes,) = drawing.axes
    corners = axes.transData.transform(np.asarray(axes.lines[0].get_xydata()))
    assert len(corners) >= 4
    steps = np.arange(len(corners) - 1, step=1e-3)  # along the line, by corner
    line = [np.interp(steps, np.arange(len(corners)), values) for values in corners.T]
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the leading lines
    assert sorted(text.get_text() for text in axes.texts) == sorted(names)
    frame = axes.get_window_extent().padded(1)
    for number, box in enumerate(boxes):
        sides = zip(line, box.get_points().T, strict=True)
        across, up = ((low < at) & (at < high) for at, (low, high) in sides)
        assert not (across & up).any(), axes.texts[number].get_text()
        assert frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
        for other in boxes[:number]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width <= 1 or height <= 1


def test_methods_stand_in_the_plot_with_their_names(experiment: Any) -> None:
    class Named(MethodOptions):
        label: ClassVar[str] = "C3LT"

    methods = {**experiment.methods, "c3lt": Named(kind="c3lt"), "c3lt-n3": Named(kind="c3lt")}
    named = experiment.model_copy(update={"methods": methods})
    for direction in ((4, 9), (9, 4)):
        for suffix in (".json", ".parquet"):
            stems = [layout.metrics("toy", name, *direction) for name in ("c3lt", "c3lt-n3")]
            place = stems[1].with_suffix(suffix)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(stems[0].with_suffix(suffix).read_bytes())
    chosen = plot(methods=["c3lt", "c3lt-n3", "pgd"])
    (axes,) = figures.DRAW["pareto"](chosen, named).axes
    assert {text.get_text() for text in axes.texts} == {"C3LT", "C3LT (n3)", "pgd"}
    absent = named.model_copy(update={"methods": {**methods, "c3lt-n3": Named(kind="c3lt")}})
    path = layout.metrics("toy", "c3lt-n3", 4, 9).with_suffix(".parquet")
    pd.read_parquet(path).assign(cout=np.nan).to_parquet(path)
    path = layout.metrics("toy", "c3lt-n3", 9, 4).with_suffix(".parquet")
    pd.read_parquet(path).assign(cout=np.nan).to_parquet(path)
    (axes,) = figures.DRAW["pareto"](chosen, absent).axes
    assert axes.get_title().endswith("; no number: C3LT (n3)")


def test_an_axis_with_an_outlier_is_logarithmic(
    experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("c3lt", "pgd", "ace")
    values = {"cout": dict(zip(names, (2.0, 1.0, 3000.0), strict=True)), "validity": {}}
    methods = {name: experiment.methods["pgd"] for name in names}
    few = experiment.model_copy(update={"methods": methods, "skipped": {}})
    monkeypatch.setattr(
        pareto.aggregate.Results,
        "cell",
        lambda self, method, column, directions: Cell("ok", values[column].get(method, 0.5)),
    )
    (axes,) = figures.DRAW["pareto"](plot(methods=names), few).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "linear")
    assert axes.get_xlabel().endswith(", logarithmic")
    values["cout"]["ace"] = 30.0
    (axes,) = figures.DRAW["pareto"](plot(methods=names), few).axes
    assert axes.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"columns": ["cout"]}, "has two, one for each axis"),
        ({"columns": ["cout", "absent"]}, "'absent' cannot be ranked; allowed: validity, cout"),
        ({"columns": ["fid", "cout"]}, "nothing to draw: weight inception"),
    ],
)
def test_a_plot_that_cannot_be_drawn(experiment: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        figures.png(plot(**changes), experiment)


def test_the_report_shows_the_board(experiment: Any) -> None:
    page = html.render(experiment, [ranked()], [plot()])
    assert 'id="board"' in page and 'href="#board"' in page
    assert "Validity against &lt;COUT&gt;" in page and "<COUT>" not in page
    assert "rank 1" in page and "mean rank" in page
    assert f'href="../tables/{ranked().name}.html"' in page
    assert "cve skipped: has &lt;no&gt; maps" in page
    assert html.render(experiment, [ranked()], [plot()]) == page
    declared = set(inputs.report_inputs(experiment))
    for path in [*Path("results").rglob("*"), *Path("data").rglob("*")]:
        if path.is_file() and path not in declared:
            path.unlink()
    assert html.render(experiment, [ranked()], [plot()]) == page


def test_a_report_without_a_board(experiment: Any) -> None:
    assert 'id="board"' not in html.render(experiment)


def test_every_method_can_be_chosen_in_the_gallery(experiment: Any) -> None:
    page = html.render(experiment)
    for method in experiment.methods:
        assert f'<input type="checkbox" name="method" value="{method}" checked> {method}' in page
    assert page.count('data-valid="yes"') + page.count('data-valid="no"') == page.count(
        'class="tile" data-method='
    )
