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
from counterlens.plan import inputs
from counterlens.reports import drawing, figures
from counterlens.runtime import files

Make = Callable[..., Any]
KINDS = ["cout", "latent-change", "traversal", "gallery", "path", "tsne", "stages", "parameter"]
KINDS += ["pareto", "strip"]


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
@pytest.mark.parametrize("kind", KINDS)
def test_figure_is_drawn_the_same_twice(make: Make, kind: str, channels: int) -> None:
    made = make(pairs=((4, 9),), channels=channels, mirror=kind in ("path", "tsne"))
    metrics = (*made.experiment.metrics, Cout(kind="cout"))
    experiment = made.experiment.model_copy(update={"metrics": metrics})
    methods = ["mirror-cfe"] if "mirror-cfe" in experiment.methods else ["c3lt"]
    several = ("gallery", "stages", "parameter", "pareto", "strip")
    methods = ["c3lt", "pgd"] if kind in several else methods
    if kind == "parameter":  # a number to draw against, here of two unlike methods
        made.experiment.methods.update(
            {
                name: made.experiment.methods[name].model_copy(update={"images": images})
                for name, images in (("c3lt", 4), ("pgd", 9))
            }
        )
    chosen = figure(kind, methods=methods, parameter="images", columns=["cout", "validity"])
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


def test_stages_are_shown_between_query_and_counterfactual(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(pairs=((4, 9),), errors=2)
    stem = layout.counterfactuals("toy", "pgd", 4, 9)
    tensors = files.load_tensors(stem.with_suffix(".safetensors"))
    tensors["pre_explanation"] = 1 - tensors["query"]
    tensors["edit_mask"] = (tensors["query"] > 0.5).astype(np.float32)
    facts = files.read_metadata(stem.with_suffix(".safetensors"))
    files.save_tensors(stem.with_suffix(".safetensors"), tensors, facts)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(figures, "show", lambda axes, image: seen.append(image))
    chosen = figure("stages", methods=["pgd"], directions=[(4, 9)], images=1)
    canvas = figures.draw_stages(chosen, made.experiment)
    titles = [axes.get_title() for axes in canvas.axes]
    assert titles == ["query", "pgd\npre-explanation", "pgd\nedit mask", "pgd", "change"]
    # the first two queries are errors of the classifier
    names = ("query", "pre_explanation", "edit_mask", "counterfactual")
    for found, name in zip(seen, names, strict=False):  # the last picture is the change
        np.testing.assert_array_equal(found, tensors[name][2])


def test_a_parameter_needs_its_columns(make: Make) -> None:
    made = make()
    chosen = figure("parameter", methods=["pgd"], parameter="images", columns=["fid"])
    made.experiment.methods["pgd"] = made.experiment.methods["pgd"].model_copy(update={"images": 3})
    with pytest.raises(UserError, match="fid: weight inception"):
        figures.write(chosen, made.experiment)


def test_a_method_without_a_path_is_refused(make: Make) -> None:
    made = make()
    with pytest.raises(UserError, match="keeps no 'path'"):
        figures.write(figure("traversal", methods=["pgd"]), made.experiment)


def test_a_path_figure_shows_correct_queries_at_their_first_flip(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(pairs=((4, 9),), steps=9, errors=2, mirror=True)
    shown: list[np.ndarray] = []
    monkeypatch.setattr(figures, "show", lambda axes, image: shown.append(image))
    figures.write(figure("path", methods=["mirror-cfe"], directions=[(4, 9)]), made.experiment)
    tensors, _ = drawing.load_set(made.experiment, "mirror-cfe", (4, 9))
    assert len(shown) == 2 * 8  # two queries, and no error of the classifier among them
    for number, row in enumerate((2, 3)):
        query, *steps, change = shown[8 * number : 8 * number + 8]
        np.testing.assert_array_equal(query, tensors["query"][row])
        np.testing.assert_array_equal(steps[3], tensors["counterfactual"][row])
        for place, step in ((0, 0), (1, 2), (2, 4), (4, 6), (5, 8)):  # k = 0 ... 1
            np.testing.assert_array_equal(steps[place], tensors["path"][row, step])
        np.testing.assert_allclose(change, 1 - np.abs(tensors["counterfactual"][row] - query))


def test_a_path_figure_needs_positions(make: Make) -> None:
    made = make()
    with pytest.raises(UserError, match="keeps no 'position'"):
        figures.write(figure("path"), made.experiment)


def test_the_tsne_title_tells_how_many_reflections_have_arrived(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    made = make(pairs=((4, 9),), errors=1, mirror=True)
    path = layout.counterfactuals("toy", "mirror-cfe", 9, 4).with_suffix(".safetensors")
    tensors = files.load_tensors(path)
    tensors["latent_counterfactual"][1] = tensors["latent"][1]  # one of 2 + 2 stays behind
    files.save_tensors(path, tensors, files.read_metadata(path))
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **_: titles.append(text))
    figures.write(figure("tsne", methods=["mirror-cfe"]), made.experiment)
    assert titles == ["75 % of the reflections lie among their target class"]


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
        tensors, _ = drawing.load_set(made.experiment, "c3lt", direction)
        both.append(np.abs(tensors["latent_counterfactual"] - tensors["latent"]).mean(0))
    assert len(drawn[0]) == 1
    np.testing.assert_allclose(drawn[0][0], np.mean(both, axis=0), rtol=1e-5)


def test_long_captions_are_broken_between_words() -> None:
    assert drawing.caption("4→9") == "4→9"
    lines = drawing.caption("not mouth slightly open→mouth slightly open").splitlines()
    assert " ".join(lines) == "not mouth slightly open → mouth slightly open"
    assert max(map(len, lines)) <= drawing.CAPTION_WIDTH
