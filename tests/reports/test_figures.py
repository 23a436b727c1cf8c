"""Each kind of figure is drawn, twice with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from counterlens import layout
from counterlens.config import Figure, MetricOptions
from counterlens.errors import UserError
from counterlens.reports import figures, inputs

Make = Callable[..., Any]


class Cout(MetricOptions):
    """As much of the COUT options as the figure reads."""

    paired: ClassVar[bool] = True
    steps: int = 50

    def columns(self) -> tuple:
        return ()


def figure(kind: str, **changes: object) -> Figure:
    content: dict[str, object] = {
        "name": f"toy-{kind}",
        "title": "t",
        "paper": "p",
        "kind": kind,
        "experiment": "toy",
        "methods": ["c3lt"],
        "directions": [(4, 9), (9, 4)],
        "images": 2,
    }
    return Figure.model_validate({**content, **changes})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["cout", "latent-change", "traversal", "gallery"])
def test_figure_is_drawn_the_same_twice(make: Make, kind: str, channels: int) -> None:
    made = make(pairs=((4, 9),), channels=channels)
    metrics = (*made.experiment.metrics, Cout(kind="cout"))
    experiment = made.experiment.model_copy(update={"metrics": metrics})
    methods = ["c3lt", "pgd"] if kind == "gallery" else ["c3lt"]
    chosen = figure(kind, methods=methods)
    path = layout.FIGURES / f"toy-{kind}.png"
    for stale in Path("results").rglob("*"):
        if stale.is_file() and stale not in inputs.figure_inputs(chosen, experiment):
            stale.unlink()
    figures.write(chosen, experiment)
    first = path.read_bytes()
    figures.write(chosen, experiment)
    assert path.read_bytes() == first
    with Image.open(path) as picture:
        assert min(picture.size) > 150
        assert not {"Software", "Date", "Creation Time"} & set(picture.info)
        assert np.asarray(picture.convert("L")).std() > 5


def test_a_method_without_a_path_is_refused(make: Make) -> None:
    made = make()
    with pytest.raises(UserError, match="keeps no 'path'"):
        figures.write(figure("traversal", methods=["pgd"]), made.experiment)


def test_a_direction_that_is_not_run_is_refused(make: Make) -> None:
    made = make()
    with pytest.raises(UserError, match="does not run c3lt-cls on 4 to 9"):
        inputs.figure_inputs(figure("gallery", methods=["c3lt-cls"]), made.experiment)
    with pytest.raises(UserError, match="does not run cem"):
        inputs.figure_inputs(figure("gallery", methods=["cem"]), made.experiment)


def test_cout_figure_needs_curves(make: Make) -> None:
    made = make()
    with pytest.raises(UserError, match="no COUT curves"):
        figures.write(figure("cout"), made.experiment)


def test_latent_change_is_the_mean_over_both_directions(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(pairs=((4, 9),))
    from matplotlib.axes import Axes

    drawn: list[list[np.ndarray]] = []
    original = Axes.violinplot

    def record(self: Axes, dataset, *arguments, **keywords):
        drawn.append(dataset)
        return original(self, dataset, *arguments, **keywords)

    monkeypatch.setattr(Axes, "violinplot", record)
    figures.write(figure("latent-change"), made.experiment)
    both = []
    for direction in ((4, 9), (9, 4)):
        tensors, _ = figures._load(made.experiment, "c3lt", direction)
        both.append(np.abs(tensors["latent_counterfactual"] - tensors["latent"]).mean(0))
    assert len(drawn[0]) == 1
    np.testing.assert_allclose(drawn[0][0], np.mean(both, axis=0), rtol=1e-5)
