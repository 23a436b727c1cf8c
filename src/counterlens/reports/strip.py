"""One query and every method's counterfactual of it, side by side in one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from counterlens.config import Experiment, Figure
from counterlens.errors import UserError
from counterlens.reports.drawing import INK, SOURCE, TARGET, canvas, caption, load_set, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def choose(tables: Sequence[pd.DataFrame], source: int, target: int) -> int | None:
    """The first image for which most of the methods have a valid counterfactual.

    Args:
        tables: those of the counterfactual sets of one direction, a method each.
        source, target: the classes of the direction.

    Returns:
        Of the images that every method explains and the classifier answers correctly, the first of
        those with the most valid counterfactuals; None if there is no such image.
    """
    rows = [table.set_index("image") for table in tables]
    shared = sorted(set.intersection(*(set(each.index) for each in rows)))
    facts = rows[0].loc[shared]
    right = (facts["label"] == source) & (facts["predicted_query"] == source)
    correct = np.array(shared, dtype=int)[right.to_numpy()]
    if not len(correct):
        return None
    answers = [each.loc[correct, "predicted_counterfactual"].to_numpy() for each in rows]
    return int(correct[(np.stack(answers) == target).sum(axis=0).argmax()])


def draw(figure: Figure, experiment: Experiment) -> Canvas:
    """A query and its counterfactuals, and below each what the classifier answers, and how surely.

    The probability is missing where the answer is neither the source nor the target class, of
    which alone the sets keep it.

    Raises:
        UserError: no image is explained by all of the methods.
    """
    direction = source, target = figure.directions[0]
    sets = {method: load_set(experiment, method, direction) for method in figure.methods}
    image = choose([table for _, table in sets.values()], source, target)
    if image is None:
        raise UserError(
            f"figure {figure.name}: the methods explain no image in common that the classifier "
            "answers correctly; name fewer methods"
        )
    shown: list[tuple[str, np.ndarray, str, dict[str, Any]]] = []
    for method, (tensors, table) in sets.items():
        row = int(np.flatnonzero(table["image"].to_numpy() == image)[0])
        facts: dict[str, Any] = table.iloc[row].to_dict()
        if not shown:
            shown.append(("Query", tensors["query"][row], "query", facts))
        name = experiment.label(method).replace(" (", "\n(")
        shown.append((name, tensors["counterfactual"][row], "counterfactual", facts))
    classes = experiment.classes
    drawing = canvas(0.62 * len(shown), 1.7)
    drawing.suptitle(figure.title, fontsize=9, color=INK)
    for place, (axes, (name, picture, kind, facts)) in enumerate(
        zip(drawing.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)
    ):
        show(axes, picture)
        axes.set_title(name, fontsize=7, color=INK, weight="bold" if place else "normal")
        answer = int(facts[f"predicted_{kind}"])
        role = {source: "source", target: "target"}.get(answer)
        sure = "" if role is None else f"\n{facts[f'{role}_probability_{kind}']:.2f}"
        color = TARGET if answer == target else SOURCE
        axes.set_xlabel(caption(classes[answer]) + sure, fontsize=8, color=color)
    return drawing
