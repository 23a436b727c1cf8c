"""Tables against hand numbers, and every way a cell can be empty."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from counterlens import layout
from counterlens.config import Claim, Column, MetricOptions, Row, Table, load_table, table_names
from counterlens.errors import UserError
from counterlens.plan import inputs
from counterlens.reports import aggregate, claims, printing, tables, timing
from counterlens.reports.aggregate import Cell
from counterlens.runtime import files

Make = Callable[..., Any]
ROOT = Path(__file__).parents[2]
ALL = ((3, 8), (8, 3), (4, 9), (9, 4), (5, 6), (6, 5))


def table(**changes: object) -> Table:
    content: dict[str, object] = {
        "name": "toy-table",
        "title": "Toy & <b>table</b>",
        "paper": "A paper, Table 1",
        "rows": [
            Row(method="c3lt", label="C3LT_1"),
            Row(method="cem", label="CEM|x"),
            Row(method="pgd", label="PGD 100%"),
            Row(method="original-data", label="Original"),
        ],
        "columns": ["validity", "im2", "fid", "kid_oracle", "unknown"],
        "experiments": ["toy"],
        "paper_values": {
            "toy": {
                "c3lt": {"validity": 0.5, "im2": 0.1},
                "cem": {"validity": 0.469},
                "pgd": {"validity": 2.0},
            }
        },
        "notes": ["A note with 5 % & #1."],
    }
    return Table.model_validate({**content, **changes})


def test_per_image_columns_weigh_images_equally(make: Make) -> None:
    made = make()
    built = tables.build(table(), {"toy": made.experiment})
    values = np.concatenate([made.values["c3lt", d, "im2"] for d in ALL])
    cell = built.entry("toy", "c3lt", "im2").cell
    assert cell.value == pytest.approx(10 * values.mean())
    assert cell.images == 6 * 14
    assert cell.low is not None and cell.high is not None and cell.value is not None
    # the normal approximation of the same interval
    half = 10 * 1.96 * values.std() / np.sqrt(len(values))
    assert cell.low == pytest.approx(cell.value - half, abs=half / 4)
    assert cell.high == pytest.approx(cell.value + half, abs=half / 4)


def test_times_come_from_the_timing_files_alone(make: Make) -> None:
    made = make(pairs=((4, 9),))
    for direction, seconds, images in (((4, 9), 0.002, 10), ((9, 4), 0.005, 5)):
        path = layout.timing("toy", "pgd", *direction)
        content = {**files.read_json(path), "seconds_per_image": seconds, "images": images}
        files.write_json(path, content)
    rows = [Row(method="pgd", label="PGD"), Row(method="c3lt", label="C3LT")]
    rows += [Row(method="cem", label="CEM"), Row(method="original-data", label="Original")]
    timed = table(rows=rows, columns=["milliseconds"], paper_values={"toy": {"pgd": {}}})
    needed = inputs.table_inputs(timed, {"toy": made.experiment})
    assert not any("metrics" in path.parts for path in needed)
    assert layout.timing("toy", "c3lt", 9, 4) in needed
    built = tables.build(timed, {"toy": made.experiment})
    cells = {row.method: built.entry("toy", row.method, "milliseconds").cell for row in rows}
    assert cells["pgd"].value == pytest.approx((10 * 2 + 5 * 5) / 15) and cells["pgd"].images == 15
    assert cells["c3lt"].value == 500
    assert (cells["cem"].status, cells["original-data"].status) == ("not run", "not defined")
    assert built.entry("toy", "pgd", "milliseconds").best
    assert "Time per image (ms) ↓" in tables.to_markdown(built, [])
    both = inputs.table_inputs(
        table(columns=["validity", "milliseconds"]), {"toy": made.experiment}
    )
    assert layout.timing("toy", "pgd", 4, 9) in both
    assert layout.metrics("toy", "pgd", 4, 9).with_suffix(".json") in both
    layout.timing("toy", "pgd", 4, 9).unlink()
    with pytest.raises(UserError, match=r"4_to_9\.json"):
        tables.build(timed, {"toy": made.experiment})


def test_unequal_directions_weigh_by_images_and_sets_by_direction(make: Make) -> None:
    made = make(pairs=((4, 9),))
    few = layout.metrics("toy", "pgd", 9, 4)
    frame = pd.read_parquet(few.with_suffix(".parquet")).head(2).assign(im2=[1.0, 3.0])
    frame.to_parquet(few.with_suffix(".parquet"), index=False)
    many = layout.metrics("toy", "pgd", 4, 9)
    frame = pd.read_parquet(many.with_suffix(".parquet")).assign(im2=0.0)
    frame.to_parquet(many.with_suffix(".parquet"), index=False)
    for stem, kid in ((few, 0.02), (many, 0.04)):
        summary = json.loads(stem.with_suffix(".json").read_text())
        summary["per_set"]["kid_oracle"] = kid
        stem.with_suffix(".json").write_text(json.dumps(summary))
    built = tables.build(table(), {"toy": made.experiment})
    assert built.entry("toy", "pgd", "im2").cell.value == pytest.approx(10 * 4 / 16)
    assert built.entry("toy", "pgd", "kid_oracle").cell.value == pytest.approx(30.0)
    assert built.entry("toy", "pgd", "kid_oracle").cell.low is None


def test_images_that_a_metric_does_not_count_are_left_out(make: Make) -> None:
    made = make(pairs=((4, 9),))
    for direction in ((4, 9), (9, 4)):
        path = layout.metrics("toy", "pgd", *direction).with_suffix(".parquet")
        frame = pd.read_parquet(path)
        frame.loc[:4, "cout"] = np.nan
        frame.to_parquet(path)
    built = tables.build(table(columns=["cout"]), {"toy": made.experiment})
    cell = built.entry("toy", "pgd", "cout").cell
    values = [made.values["pgd", d, "cout"][5:] for d in ((4, 9), (9, 4))]
    assert cell.value == pytest.approx(np.concatenate(values).mean()) and cell.images == 18


def test_a_direction_of_which_no_image_counts_adds_none(make: Make) -> None:
    made = make(pairs=((4, 9),))
    for places, value, status in (
        ([(4, 9)], made.values["pgd", (9, 4), "cout"].mean(), "ok"),
        ([(4, 9), (9, 4)], None, "not available"),
    ):
        for direction in places:
            path = layout.metrics("toy", "pgd", *direction)
            frame = pd.read_parquet(path.with_suffix(".parquet"))
            frame["cout"] = np.nan
            frame.to_parquet(path.with_suffix(".parquet"))
            summary = files.read_json(path.with_suffix(".json"))
            summary["not_available"]["cout"] = "nothing flips"
            files.write_json(path.with_suffix(".json"), summary)
        built = tables.build(table(columns=["cout"]), {"toy": made.experiment})
        cell = built.entry("toy", "pgd", "cout").cell
        assert cell.status == status
        assert cell.value == (None if value is None else pytest.approx(value))
    assert cell.reason == "nothing flips"


class Pooled(MetricOptions):
    """Of all directions of a pair together."""

    def columns(self) -> tuple[Column, ...]:
        return (Column(name="cd", label="CD", direction="down", per="pair"),)


def pooled(make: Make, missing: str | None = None) -> Any:
    """The experiment with a metric of pairs: 1, 2 and 3 for c3lt, ten times as much for pgd."""
    experiment = make().experiment
    experiment = experiment.model_copy(update={"metrics": (*experiment.metrics, Pooled(kind="cd"))})
    for method, factor in (("c3lt", 1), ("pgd", 10)):
        for number, pair in enumerate(("3-8", "4-9", "5-6"), start=1):
            absent = {"cd": missing} if missing and method == "pgd" and number == 2 else {}
            files.write_json(
                layout.pair_metrics("toy", method, pair).with_suffix(".json"),
                {
                    "per_pair": {} if absent else {"cd": factor * number},
                    "images": {} if absent else {"cd": 20},
                    "not_available": absent,
                },
            )
    real = {"per_pair": {}, "images": {}, "not_available": {"cd": "no queries"}}
    for pair in ("3-8", "4-9", "5-6"):
        files.write_json(
            layout.pair_metrics("toy", "original-data", pair).with_suffix(".json"), real
        )
    return experiment


def test_columns_of_pairs_are_means_over_the_pairs(make: Make) -> None:
    built = tables.build(table(columns=["cd"]), {"toy": pooled(make)})
    cell = built.entry("toy", "pgd", "cd").cell
    assert (cell.value, cell.images, cell.low) == (20, 60, None)
    assert built.entry("toy", "c3lt", "cd").best
    assert built.entry("toy", "original-data", "cd").cell.status == "not defined"


def test_a_pair_without_a_number(make: Make) -> None:
    built = tables.build(table(columns=["cd"]), {"toy": pooled(make, "nothing flips")})
    cell = built.entry("toy", "pgd", "cd").cell
    assert (cell.status, cell.reason) == ("not available", "nothing flips")


CLAIM = {"columns": ["cd"], "method": "pgd", "text": "PGD is good"}


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"relation": "highest", "against": ["c3lt"]}, "held (CD: PGD 100% 20.000, C3LT_1 2.000)"),
        ({"relation": "lowest", "against": ["c3lt"]}, "not held (CD: PGD 100% 20.000, C3LT"),
        ({"relation": "at-least", "value": 20}, "held (CD: PGD 100% 20.000)"),
        ({"relation": "at-least", "value": 20.1}, "not held (CD: PGD 100% 20.000)"),
        ({"relation": "at-most", "value": 20}, "held (CD: PGD 100% 20.000)"),
        ({"relation": "at-most", "value": 19.9}, "not held (CD: PGD 100% 20.000)"),
        ({"relation": "falls", "against": ["c3lt"]}, "held (CD: "),
        ({"relation": "falls", "method": "c3lt", "against": ["pgd"]}, "not held (CD: C3LT_1"),
        ({"relation": "lowest", "against": ["cem"]}, "not checked: CEM|x not run"),
        ({"relation": "lowest", "against": ["c3lt"], "columns": ["fid", "cd"]}, "not held (CD: "),
    ],
)
def test_claims_are_checked(make: Make, claim: dict[str, Any], told: str) -> None:
    chosen = table(columns=["cd", "fid"], claims=[{**CLAIM, **claim}])
    built = tables.build(chosen, {"toy": pooled(make)})
    (line,) = [line for line in built.footer if line.startswith("Claim")]
    assert line.startswith(f"Claim of the paper, toy: PGD is good: {told}") and line.endswith(".")
    ours = table(columns=["cd", "fid"], claims=[{**CLAIM, **claim, "whose": "ours"}])
    built = tables.build(ours, {"toy": pooled(make)})
    assert line.replace("Claim of the paper", "Our expectation") in built.footer


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({"relation": "highest", "against": ["absent"]}, "'absent' is no row or column"),
        ({"relation": "highest", "columns": ["absent"]}, "'absent' is no row or column"),
        ({"relation": "at-most"}, "these, have a value"),
        ({"relation": "lowest", "value": 1}, "these, have a value"),
    ],
)
def test_a_claim_that_cannot_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = table(columns=["cd"], claims=[{**CLAIM, **claim}]).model_dump(mode="json")
    content.pop("name")
    files.write_text(Path("config/tables/toy.yaml"), json.dumps(content))
    with pytest.raises(UserError, match=f"toy.yaml: claims.0: .*{told}"):
        load_table("toy")


def test_rows_share_directions(make: Make) -> None:
    made = make()
    rows = [Row(method="c3lt-cls", label="cls"), Row(method="c3lt", label="C3LT")]
    built = tables.build(table(rows=rows), {"toy": made.experiment})
    values = np.concatenate([made.values["c3lt", d, "validity"] for d in ((5, 6), (6, 5))])
    assert built.entry("toy", "c3lt", "validity").cell.value == pytest.approx(values.mean())
    assert any("28 images per method; directions 5→6, 6→5" in line for line in built.footer)


def test_no_direction_in_common_is_an_error(make: Make) -> None:
    made = make()
    methods = dict(made.experiment.methods)
    methods["pgd"] = methods["pgd"].model_copy(update={"pairs": ((3, 8),)})
    experiment = made.experiment.model_copy(update={"methods": methods})
    rows = [Row(method="pgd", label="a"), Row(method="c3lt-cls", label="b")]
    with pytest.raises(UserError, match="no direction in common"):
        tables.build(table(rows=rows), {"toy": experiment})


def test_empty_cells_say_why(make: Make) -> None:
    built = tables.build(table(), {"toy": make().experiment})
    status = {(e.method, e.column.name): e.cell.status for e in built.entries}
    assert status["cem", "validity"] == "not run"
    assert status["c3lt", "fid"] == "not available"
    assert status["original-data", "validity"] == "not defined"
    assert status["original-data", "im2"] == "ok"
    assert status["pgd", "unknown"] == "not available"
    footer = "\n".join(built.footer)
    assert "Not available: FID: weight inception: <no source> answered." in footer
    assert "unknown: experiment toy does not compute it" in footer
    assert "Quality gate failed in toy: generators/dcgan/all-classes, confident_samples" in footer
    assert "class_kept" not in footer
    assert "toy: KID: subset size <13> (18 of 18 sets)." in footer
    assert "scale small" in footer and "seed 85" in footer


def test_a_column_that_only_a_stand_in_computes_looks_like_it(make: Make) -> None:
    built = tables.build(table(columns=["kid", "kid_oracle", "other"]), {"toy": make().experiment})
    standard, stand_in, other = built.columns
    assert (standard.name, standard.label) == ("kid", "KID")
    assert standard.direction == stand_in.direction and other.label == "other"
    assert built.entry("toy", "pgd", "kid").cell.status == "not available"


def test_a_missing_column_of_a_computed_metric_is_an_error(make: Make) -> None:
    made = make()
    path = layout.metrics("toy", "pgd", 3, 8).with_suffix(".parquet")
    pd.read_parquet(path).drop(columns="im2").to_parquet(path, index=False)
    with pytest.raises(UserError, match="lacks the column 'im2'"):
        tables.build(table(), {"toy": made.experiment})


@pytest.mark.parametrize(
    ("direction", "ours", "paper", "versus"),
    [
        ("up", 0.6, 0.5, "better"),
        ("up", 0.4, 0.5, "worse"),
        ("down", 0.6, 0.5, "worse"),
        ("down", 0.4, 0.5, "better"),
        ("down", 0.5004, 0.5, "equal"),
        ("none", 0.6, 0.5, None),
    ],
)
def test_versus_knows_the_direction(
    direction: str, ours: float, paper: float, versus: str | None
) -> None:
    column = Column.model_validate({"name": "a", "label": "A", "direction": direction})
    entry = tables.Entry("toy", "m", "M", column, Cell("ok", ours), paper, False)
    assert entry.versus == versus
    assert entry.difference == pytest.approx(ours - paper)


def test_best_skips_real_images_and_keeps_ties() -> None:
    column = Column(name="a", label="A", direction="down")
    cells = {
        "original-data": Cell("ok", 0.1),
        "c3lt": Cell("ok", 0.2001),
        "pgd": Cell("ok", 0.2),
        "cem": Cell("not run"),
        "cve": Cell("ok", 0.3),
    }
    assert aggregate.best(cells, column) == {"c3lt", "pgd"}
    assert aggregate.best({"c3lt": Cell("ok", 1.0)}, column) == frozenset()


def test_sets_that_are_too_small_do_not_compete_where_size_matters() -> None:
    cells = {
        "c3lt": Cell("ok", 3.0, images=100),
        "pgd": Cell("ok", 4.0, images=80),
        "cem": Cell("ok", 1.0, images=79),
        "original-data": Cell("ok", 0.0, images=500),
    }
    column = Column(name="a", label="A", direction="down", size_biased=True)
    assert aggregate.comparable(cells, column) == {"c3lt": 3.0, "pgd": 4.0}
    assert aggregate.best(cells, column) == {"c3lt"}
    plain = column.model_copy(update={"size_biased": False})
    assert aggregate.best(cells, plain) == {"cem"}


def test_a_claim_leaves_out_sets_that_are_too_small() -> None:
    column = Column(name="fid", label="FID", direction="down", size_biased=True)
    sizes = {"pgd": (5.0, 100), "c3lt": (3.0, 90), "cem": (9.0, 50)}
    entries = [
        tables.Entry("toy", name, name.upper(), column, Cell("ok", v, images=n), None, False)
        for name, (v, n) in sizes.items()
    ]

    def told(**changes: Any) -> str:
        content = {"text": "t", "columns": ["fid"], "relation": "highest", "method": "pgd"}
        claim = Claim.model_validate({**content, "against": ["c3lt", "cem"], **changes})
        return claims.check(claim, "toy", entries).text.removeprefix("Claim of the paper, toy: t: ")

    small = "; not compared: CEM (50 images)"
    assert told() == f"held (FID: PGD 5.000, C3LT 3.000{small})."
    assert told(against=["cem"]) == f"not checked{small}."
    assert told(method="cem", against=["pgd"]) == f"not checked{small}."


def test_numbers_are_printed_with_a_true_minus_and_no_negative_zero() -> None:
    assert aggregate.number(-0.25, 2) == "\N{MINUS SIGN}0.25"
    assert aggregate.number(-0.0001, 2) == "0.00"
    assert aggregate.number(0.01, 2, sign=True) == "+0.01"
    assert aggregate.number(-0.001, 2, sign=True) == "0.00"


def test_five_files(make: Make, tmp_path: Path) -> None:
    made = make()
    built = tables.build(table(), {"toy": made.experiment})
    tables.write(built, {"toy": made.experiment}, ["Commit abc."], tmp_path / "out")
    stem = tmp_path / "out/toy-table"

    frame = pd.read_csv(stem.with_suffix(".csv"))
    assert tuple(frame.columns) == printing.CSV_COLUMNS
    row = frame[(frame.method == "c3lt") & (frame.column == "im2")].iloc[0]
    assert row.value == built.entry("toy", "c3lt", "im2").cell.value  # full precision
    assert row.difference == pytest.approx(row.value - 0.1)
    assert frame[(frame.method == "cem") & (frame.column == "validity")].paper.item() == 0.469

    counts = json.loads(stem.with_suffix(".json").read_text())
    assert counts == {
        "numbers": int(frame.value.notna().sum()),
        "held": 0,
        "not held": 0,
        "not checked": 0,
        "failed gates": 1,
    }

    markdown = stem.with_suffix(".md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 6
    pipes = {line.replace(r"\|", "").count("|") for line in lines}
    assert pipes == {7}
    assert r"CEM\|x" in markdown and "Val ↑" in markdown and "IM2 (a\\|b) ↓" in markdown
    assert "not run<br>paper 0.469" in markdown
    assert "Toy &amp; &lt;b&gt;table&lt;/b&gt;" in markdown and "- Commit abc." in markdown

    latex = stem.with_suffix(".tex").read_text()
    assert r"C3LT\_1" in latex and r"PGD 100\%" in latex and r"Val $\uparrow$" in latex
    assert r"5 \% \& \#1." in latex and r"\textless{}no source\textgreater{}" in latex
    assert r"$\blacktriangle$" in latex
    assert "Commit" not in latex and latex.isascii()

    page = stem.with_suffix(".html").read_text()
    assert "<b>table</b>" not in page and "Toy &amp; &lt;b&gt;table" in page
    assert "&lt;no source&gt;" in page and "Commit abc." in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_latex_escaping_covers_every_special_character() -> None:
    escaped = printing.escape_latex("\\&%$#_{}~^\N{MINUS SIGN}→\N{MULTIPLICATION SIGN}")
    expected = r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}"
    assert escaped == expected + r"$-$$\to$$\times$"


def test_equal_results_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    made = make()
    for folder in ("a", "b"):
        built = tables.build(table(), {"toy": made.experiment})
        tables.write(built, {"toy": made.experiment}, ["Commit abc."], tmp_path / folder)
    for suffix in tables.SUFFIXES:
        first, second = ((tmp_path / f / "toy-table").with_suffix(suffix) for f in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_table_reads_nothing_but_its_declared_inputs(make: Make) -> None:
    made = make()
    declared = set(inputs.table_inputs(table(), {"toy": made.experiment}))
    for path in sorted(Path("results").rglob("*")):
        if path.is_file() and path not in declared:
            path.unlink()
    built = tables.build(table(), {"toy": made.experiment})
    assert built.entry("toy", "pgd", "validity").cell.status == "ok"


def test_provenance_names_device_and_command(make: Make) -> None:
    made = make()
    lines = tables.provenance(table(), {"toy": made.experiment})
    assert "counterfactuals made on A | CPU" in lines[0]
    assert "snakemake results/tables/toy-table.csv" in lines[1] and "scale=small" in lines[1]


def test_published_tables_are_valid_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names = [name for name in table_names() if name.startswith("c3lt-")]
    assert {"c3lt-table1-digits", "c3lt-table2", "c3lt-table3-fashion-mnist"} <= set(names)
    for name in names:
        loaded = load_table(name)
        methods = {row.method for row in loaded.rows}
        for values in loaded.paper_values.values():
            assert set(values) <= methods
            for columns in values.values():
                assert set(columns) <= set(loaded.columns)
    first = load_table("c3lt-table1").paper_values
    for methods in first.values():  # COUT is the difference of its two areas, up to rounding
        for values in methods.values():
            difference = values["aupc_target"] - values["aupc_source"]
            assert values["cout"] == pytest.approx(difference, abs=0.0021)


def test_cost_includes_the_counterfactuals_that_a_method_goes_on_from(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(pairs=((4, 9),))
    earlier = layout.timing("toy", "pgd", 4, 9)
    earlier.write_text(json.dumps({**json.loads(earlier.read_text()), "seconds_per_image": 3.5}))
    options = made.experiment.methods["c3lt"]
    monkeypatch.setattr(type(options), "builds_on", lambda self: "pgd" if self is options else None)
    assert earlier in inputs.cost_inputs(made.experiment, {"c3lt": ((4, 9),)})
    assert timing.per_image(made.experiment, "c3lt", ((4, 9),)) == (0.5 + 3.5, 14)
    assert timing.per_image(made.experiment, "c3lt", ((9, 4),)) == (0.5 + 0.5, 14)


def test_cost_weighs_directions_by_images(make: Make) -> None:
    made = make()
    path = layout.timing("toy", "pgd", 3, 8)
    content = {"seconds_per_image": 7.5, "images": 70, "device": "B", "threads": 2}
    path.write_text(json.dumps(content))
    summary = timing.collect(made.experiment).set_index("method")
    assert summary.loc["pgd", "seconds_per_image"] == pytest.approx((70 * 7.5 + 70 * 0.5) / 140)
    assert summary.loc["pgd", "device"] == "A | CPU; B"
    # c3lt: three fits of 2 s, one DCGAN of 3 s and three encoders of 3 s; pgd trains nothing
    costs = ["training_seconds", "generator_seconds"]
    assert summary.loc["c3lt", costs].tolist() == [6, 12]
    assert summary.loc["c3lt-cls", costs].tolist() == [2, 6]
    assert summary.loc["pgd", costs].tolist() == [0, 0]
    text = timing.to_markdown(made.experiment, summary.reset_index())
    assert "| c3lt | 0.5 | 84 | 6.0 | 12.0 |" in text
    assert "A \\| CPU" in text
    assert pd.read_csv(io.StringIO(summary.to_csv())).shape[0] == 3
