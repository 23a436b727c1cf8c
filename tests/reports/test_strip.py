"""One query and the counterfactuals of every method: which query, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from counterlens import layout
from counterlens.config import Figure, MethodOptions
from counterlens.errors import UserError
from counterlens.reports import drawing, strip

Make = Callable[..., Any]


class Named(MethodOptions):
    """A method with the name of its paper."""

    label: ClassVar[str] = "C3LT (old)"


def figure(**changes: object) -> Figure:
    content: dict[str, object] = {
        "name": "toy-strip",
        "title": "A 4, and how it becomes a 9",
        "kind": "strip",
        "experiment": "toy",
        "methods": ["c3lt", "pgd"],
        "directions": [(4, 9)],
    }
    return Figure.model_validate({**content, **changes})


def answers(images: list[int], said: list[int], query: int = 4, label: int = 4) -> pd.DataFrame:
    """A set's table: what the classifier says of each counterfactual."""
    content = {"image": images, "label": label, "predicted_query": query}
    return pd.DataFrame({**content, "predicted_counterfactual": said})


def test_the_first_image_with_the_most_valid_counterfactuals() -> None:
    first = answers([3, 5, 8, 9], [4, 9, 9, 9])
    second = answers([8, 5, 9], [9, 4, 9])
    assert strip.choose([first, second], 4, 9) == 8
    assert strip.choose([first, second, answers([5, 8, 9], [9, 4, 9])], 4, 9) == 9
    assert strip.choose([first, second, answers([8, 5, 9], [4, 9, 4])], 4, 9) == 5


def test_only_images_that_the_classifier_answers_correctly_and_all_methods_explain() -> None:
    first = answers([3, 5], [9, 9])
    assert strip.choose([first, answers([5, 7], [4, 9])], 4, 9) == 5
    assert strip.choose([first, answers([7], [9])], 4, 9) is None
    assert strip.choose([answers([3], [9], query=7)], 4, 9) is None
    assert strip.choose([answers([3], [9], label=9)], 4, 9) is None


def test_what_is_shown_and_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make(pairs=((4, 9),)).experiment
    methods = {**experiment.methods, "c3lt": Named(kind="c3lt")}
    experiment = experiment.model_copy(update={"methods": methods})
    for method, row, found, said in (("c3lt", 6, True, 9), ("pgd", 6, False, 7)):
        path = layout.counterfactuals("toy", method, 4, 9).with_suffix(".parquet")
        table = pd.read_parquet(path)
        table["predicted_counterfactual"] = 4
        table.loc[row, ["found", "predicted_counterfactual"]] = found, said
        table.loc[row, "target_probability_counterfactual"] = 0.618
        table.to_parquet(path, index=False)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(strip, "show", lambda axes, image: seen.append(image))
    canvas = strip.draw(figure(), experiment)
    assert canvas.get_suptitle() == "A 4, and how it becomes a 9"
    assert [axes.get_title() for axes in canvas.axes] == ["Query", "C3LT\n(old)", "pgd"]
    # a 7, of which the sets keep no probability, from a method that found nothing
    assert [axes.get_xlabel() for axes in canvas.axes] == ["4\n0.97", "9\n0.62", "7"]
    colors = [axes.xaxis.label.get_color() for axes in canvas.axes]
    assert colors == [drawing.SOURCE, drawing.TARGET, drawing.SOURCE]
    sets = [drawing.load_set(experiment, method, (4, 9))[0] for method in ("c3lt", "pgd")]
    expected = [sets[0]["query"], *(each["counterfactual"] for each in sets)]
    for image, of_set in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(image, of_set[6])


def test_no_image_in_common(make: Make) -> None:
    experiment = make(pairs=((4, 9),)).experiment
    path = layout.counterfactuals("toy", "pgd", 4, 9).with_suffix(".parquet")
    pd.read_parquet(path).assign(predicted_query=7).to_parquet(path, index=False)
    path = layout.counterfactuals("toy", "c3lt", 4, 9).with_suffix(".parquet")
    pd.read_parquet(path).assign(predicted_query=7).to_parquet(path, index=False)
    with pytest.raises(UserError, match="figure toy-strip: the methods explain no image in common"):
        strip.draw(figure(), experiment)
