"""Which method found a counterfactual for which query, and the tables that count only some."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from counterlens import layout
from counterlens.config import Pair, Table, load_table
from counterlens.errors import UserError
from counterlens.plan import inputs
from counterlens.plan.inputs import TableView
from counterlens.reports import found, tables
from counterlens.runtime import files

Make = Callable[..., Any]
ROWS = [
    {"method": "c3lt", "label": "C3LT"},
    {"method": "pgd", "label": "PGD"},
    {"method": "original-data", "label": "Original"},
    {"method": "cem", "label": "CEM"},
]


def table(**changes: object) -> Table:
    content = {
        "name": "toy-table",
        "title": "Toy",
        "paper": "A paper, Table 1",
        "rows": ROWS,
        "columns": ["validity", "im2", "kid_oracle"],
        "experiments": ["toy"],
        "filter": "found-by-all",
    }
    return Table.model_validate({**content, **changes})


def says(method: str, direction: Pair, values: list[bool]) -> None:
    """Let a method say what it found; it explains as many images as there are values."""
    path = layout.counterfactuals("toy", method, *direction).with_suffix(".parquet")
    frame = pd.read_parquet(path).head(len(values)).assign(found=values)
    frame.to_parquet(path, index=False)


@pytest.fixture
def made(make: Make) -> Any:
    """4 to 9: images 4, 7 and 10 of c3lt, 4 and 7 of pgd, of which the last is not found."""
    made = make(pairs=((4, 9),), images=3)
    says("c3lt", (4, 9), [True, True, False])
    says("pgd", (4, 9), [True, False])
    says("c3lt-cls", (4, 9), [False, True, True])
    for method in ("c3lt", "pgd", "c3lt-cls"):
        says(method, (9, 4), [True, True, True])
    return made


def test_the_table_of_all_methods(made: Any) -> None:
    found.run(made.experiment, 4, 9)
    stem = layout.found("toy", 4, 9)
    frame = pd.read_parquet(stem.with_suffix(".parquet"))
    assert frame.columns.tolist() == ["image", "c3lt", "pgd", "c3lt-cls", "all"]
    assert frame["image"].tolist() == [4, 7, 10]
    assert frame["c3lt"].tolist() == [True, True, False]
    assert frame["pgd"].tolist()[:2] == [True, False] and frame["pgd"].isna().tolist() == [
        False,
        False,
        True,
    ]
    assert frame["all"].tolist() == [False] * 3  # c3lt-cls did not find the first
    assert files.read_json(stem.with_suffix(".json")) == {
        "source": 4,
        "target": 9,
        "images": 3,
        "explained": {"c3lt": 3, "pgd": 2, "c3lt-cls": 3},
        "found": {"c3lt": 2, "pgd": 1, "c3lt-cls": 2},
        "found_by_all": 0,
        "counted_by_tables": {},
    }
    found.run(made.experiment, 9, 4)
    back = pd.read_parquet(layout.found("toy", 9, 4).with_suffix(".parquet"))
    assert back["all"].all() and len(back) == 3
    assert {*inputs.found_files(made.experiment)} == {
        layout.found("toy", *d).with_suffix(s)
        for d in ((4, 9), (9, 4))
        for s in (".parquet", ".json")
    }


def test_the_images_that_a_table_counts_are_kept(made: Any) -> None:
    rows = [*ROWS[:2], {"method": "c3lt-cls", "label": "L", "in_filter": False}]
    content = table(rows=rows).model_dump(mode="json", exclude={"name"})
    folder = Path("config/tables")
    folder.mkdir(parents=True)
    (folder / "toy-table.yaml").write_text(yaml.safe_dump(content))
    plain = yaml.safe_dump({**content, "filter": "none"})
    (folder / "toy-plain.yaml").write_text(plain)
    found.run(made.experiment, 4, 9)
    frame = pd.read_parquet(layout.found("toy", 4, 9).with_suffix(".parquet"))
    assert frame.columns.tolist() == ["image", "c3lt", "pgd", "c3lt-cls", "all", "toy-table"]
    assert frame.loc[frame["toy-table"], "image"].tolist() == [4]
    counts = files.read_json(layout.found("toy", 4, 9).with_suffix(".json"))
    assert counts["counted_by_tables"] == {"toy-table": 1}
    assert found.counted(TableView(load_table("toy-table"), made.experiment)) == {
        (4, 9): [4],
        (9, 4): [9, 12, 15],
    }


def test_a_table_counts_what_its_rows_found(made: Any) -> None:
    """Image 4 of 4 to 9 and all of 9 to 4; what the ablation found does not matter."""
    built = tables.build(table(), {"toy": made.experiment})
    for method in ("c3lt", "pgd"):
        values = {d: made.values[method, d, "validity"] for d in ((4, 9), (9, 4))}
        entry = built.entry("toy", method, "validity")
        kept = [values[4, 9][0], *values[9, 4]]
        assert entry.cell.value == pytest.approx(np.mean(kept)) and entry.cell.images == 4
        assert entry.all_images == pytest.approx(np.mean([*values[4, 9], *values[9, 4]]))
        assert entry.cell.low is not None
    counts = found.counted(TableView(table(), made.experiment))
    assert counts is not None
    assert {d: list(images) for d, images in counts.items()} == {(4, 9): [4], (9, 4): [9, 12, 15]}


def test_a_row_out_of_the_filter_may_explain_fewer_images(made: Any) -> None:
    """Of the counted images 4 and, of 9 to 4, all three, it was run on 4 and two."""
    short = layout.metrics("toy", "c3lt-cls", 9, 4).with_suffix(".parquet")
    pd.read_parquet(short).head(2).to_parquet(short, index=False)
    rows = [*ROWS[:2], {"method": "c3lt-cls", "label": "L", "in_filter": False}]
    built = tables.build(table(rows=rows), {"toy": made.experiment})
    values = {d: made.values["c3lt-cls", d, "validity"] for d in ((4, 9), (9, 4))}
    cell = built.entry("toy", "c3lt-cls", "validity").cell
    assert cell.value == pytest.approx(np.mean([values[4, 9][0], *values[9, 4][:2]]))
    assert cell.images == 3
    line = "of L, which need not have found one, those that it was run on. KID are of all images."
    assert any(each.endswith(line) for each in built.footer)


def test_a_table_of_common_images(made: Any) -> None:
    rows = [row for row in ROWS if row["method"] != "original-data"]
    short = layout.metrics("toy", "pgd", 4, 9).with_suffix(".parquet")
    pd.read_parquet(short).head(2).to_parquet(short, index=False)
    built = tables.build(table(filter="common-images", rows=rows), {"toy": made.experiment})
    values = {d: made.values["c3lt", d, "validity"] for d in ((4, 9), (9, 4))}
    entry = built.entry("toy", "c3lt", "validity")
    assert entry.cell.value == pytest.approx(np.mean([*values[4, 9][:2], *values[9, 4]]))
    assert entry.cell.images == 5
    assert entry.all_images == pytest.approx(np.mean([*values[4, 9], *values[9, 4]]))
    line = (
        "toy: counted are the 5 images that every row explains; beside them the mean over all "
        "images of the row."
    )
    assert line in built.footer


def test_sets_and_real_images_are_not_filtered(made: Any) -> None:
    plain = tables.build(table(filter="none"), {"toy": made.experiment})
    built = tables.build(table(), {"toy": made.experiment})
    for method, column in (("c3lt", "kid_oracle"), ("original-data", "im2")):
        entry = built.entry("toy", method, column)
        assert entry.cell == plain.entry("toy", method, column).cell and entry.all_images is None
    assert built.entry("toy", "cem", "validity").cell.status == "not run"
    # what can be filtered differs
    assert built.entry("toy", "c3lt", "im2").cell != plain.entry("toy", "c3lt", "im2").cell


def test_both_numbers_are_printed_and_explained(made: Any) -> None:
    built = tables.build(table(), {"toy": made.experiment})
    entry = built.entry("toy", "pgd", "validity")
    assert entry.all_images is not None
    beside = f"all images {entry.all_images:.3f}"
    texts = (tables.to_markdown(built, []), tables.to_latex(built), tables.to_html(built, []))
    assert all(beside in text for text in texts)
    line = (
        "toy: counted are the 4 images for which all of C3LT, PGD found a counterfactual; beside "
        "them the mean over all images of the row. KID are of all images."
    )
    assert line in built.footer
    plain = tables.build(table(filter="none"), {"toy": made.experiment})
    assert "all images" not in tables.to_markdown(plain, [])
    frame = pd.read_csv(io.StringIO(tables.to_frame(built).to_csv(index=False)))
    row = frame[(frame["method"] == "pgd") & (frame["column"] == "validity")].iloc[0]
    assert row["all_images"] == pytest.approx(entry.all_images)


def test_no_image_at_all(made: Any) -> None:
    for direction in ((4, 9), (9, 4)):
        says("pgd", direction, [False, False])
    cell = tables.build(table(), {"toy": made.experiment}).entry("toy", "c3lt", "im2").cell
    assert cell.status == "not available" and cell.reason is not None
    assert "every row found" in cell.reason


def test_a_filtered_table_reads_what_it_declares(made: Any) -> None:
    declared = {*inputs.table_inputs(table(), {"toy": made.experiment})}
    needed = {
        layout.counterfactuals("toy", method, *d).with_suffix(".parquet")
        for method in ("c3lt", "pgd")
        for d in ((4, 9), (9, 4))
    }
    assert needed <= declared
    assert not needed & {*inputs.table_inputs(table(filter="none"), {"toy": made.experiment})}
    for path in needed:
        path.unlink()
    with pytest.raises(UserError, match="no such file; run the stage that makes it"):
        tables.build(table(), {"toy": made.experiment})


def test_rows_may_be_about_their_own_directions(make: Make) -> None:
    made = make(pairs=((3, 8), (4, 9)))
    e = made.experiment
    methods = {
        "c3lt": e.methods["c3lt"].model_copy(update={"pairs": ((3, 8),)}),
        "pgd": e.methods["pgd"].model_copy(update={"pairs": ((4, 9),)}),
    }
    e = e.model_copy(update={"methods": methods})
    with pytest.raises(UserError, match="no direction in common"):
        tables.build(table(filter="none"), {"toy": e})
    built = tables.build(table(filter="none", directions="own", rows=ROWS[:2]), {"toy": e})
    for method, pair in (("c3lt", (3, 8)), ("pgd", (4, 9))):
        values = [made.values[method, d, "validity"] for d in (pair, pair[::-1])]
        entry = built.entry("toy", method, "validity")
        assert entry.cell.value == pytest.approx(np.concatenate(values).mean())
        assert not entry.best  # rows about different images do not compete
    assert any("directions 3→8, 8→3, 4→9, 9→4" in line for line in built.footer)
