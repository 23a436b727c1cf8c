"""Stage `found`: for which queries of a direction each method found a counterfactual.

C3LT (CVPR 2022, section 4) averages over the images for which all methods found one. "Found" is
what the method says; whether the classifier agrees is the metric validity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from counterlens import layout
from counterlens.config import Column, Experiment, Pair, load_table, table_names
from counterlens.errors import UserError
from counterlens.plan import inputs
from counterlens.plan.inputs import TableView
from counterlens.runtime import files


def found_by(experiment: Experiment, methods: Iterable[str], direction: Pair) -> pd.DataFrame:
    """One row per query that any of the methods explains, by its index in the test split.

    Returns:
        A nullable boolean column per method: whether it found a counterfactual; missing where the
        method was not asked.

    Raises:
        UserError: a counterfactual set is missing.
    """
    columns = {}
    for method in methods:
        stem = layout.counterfactuals(experiment.name, method, *direction)
        path = stem.with_suffix(".parquet")
        if not path.is_file():
            raise UserError(f"{path}: no such file; run the stage that makes it")
        table = pd.read_parquet(path, columns=["image", "found"])
        columns[method] = pd.Series(table["found"].to_numpy(), table["image"], dtype="boolean")
    return pd.DataFrame(columns).sort_index().rename_axis("image")


def found_by_all(table: pd.DataFrame) -> list[int]:
    """The images for which every column says that one was found, in order."""
    return table.index[table.fillna(False).all(axis=1)].tolist()


def counted(view: TableView) -> dict[Pair, list[int]] | None:
    """The images of each direction for which every row found one; None where all images count.

    The stage's files tell it of all methods that the experiment runs. A table reads the
    counterfactual sets of its own rows instead, so that it waits for no other method.
    """
    methods = view.filtered
    if not methods:
        return None
    return {
        direction: found_by_all(found_by(view.experiment, methods, direction))
        for direction in view.directions(methods[0])
    }


def in_words(view: TableView, columns: Sequence[Column], only: Mapping[Pair, Sequence[int]]) -> str:
    """A line for the footer: which images a filtered table counts, and for which columns."""
    table, experiment = view.table, view.experiment
    count = sum(map(len, only.values()))
    if table.filter == "common-images":
        return (
            f"{experiment.name}: counted are the {count} images that every row explains; beside "
            "them the mean over all images of the row."
        )
    asked = view.filtered
    labels = ", ".join(row.label for row in table.rows if row.method in asked)
    others = ", ".join(
        row.label
        for row in table.rows
        if row.method in experiment.methods and row.method not in asked
    )
    text = (
        f"{experiment.name}: counted are the {count} images for which all "
        f"of {labels} found a counterfactual; beside them the mean over all images of the row"
    )
    if others:
        text += f"; of {others}, which need not have found one, those that it was run on"
    whole = ", ".join(dict.fromkeys(c.label for c in columns if c.per != "image"))
    return f"{text}. {whole} are of all images." if whole else f"{text}."


def filtered_tables(experiment: Experiment, direction: Pair) -> list[TableView]:
    """The tables that count only some images of a direction."""
    views = [
        TableView(table, experiment)
        for table in map(load_table, table_names())
        if experiment.name in table.experiments
    ]
    return [v for v in views if v.filtered and direction in v.directions(v.filtered[0])]


def run(experiment: Experiment, source: int, target: int) -> None:
    """Write the table of all methods that are run on a direction, and its counts.

    Its column `all` is of all these methods; a column of each filtered table's name says which
    images that table counts.
    """
    direction = (source, target)
    methods = inputs.methods_on(experiment, direction)
    table = found_by(experiment, methods, direction)
    common = found_by_all(table)
    place = layout.found(experiment.name, source, target)
    rows = table.assign(all=table.index.isin(common))
    sizes: dict[str, int] = {}
    for view in filtered_tables(experiment, direction):
        images = found_by_all(table.filter(items=view.filtered))
        rows[view.table.name] = table.index.isin(images)
        sizes[view.table.name] = len(images)
    rows = rows.reset_index()
    files.write_parquet(place.with_suffix(".parquet"), rows)
    counts = {
        "source": source,
        "target": target,
        "images": len(table),
        "explained": {name: int(count) for name, count in table.count().items()},
        "found": {name: int(count) for name, count in table.sum().items()},
        "found_by_all": len(common),
        "counted_by_tables": sizes,
    }
    files.write_json(place.with_suffix(".json"), counts)
