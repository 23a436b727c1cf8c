"""Figures of latents, variants and angles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from counterlens import layout
from counterlens.config import Figure, MethodOptions
from counterlens.errors import UserError
from counterlens.methods.parts.eced_options import THRESHOLDS
from counterlens.reports import drawing, figures, latent_figures
from counterlens.runtime import files

Make = Callable[..., Any]


class Latent(MethodOptions):
    """As much of ECED's options as the figures read."""

    threshold: float = 0.4
    sweep: tuple[float, ...] = (0.2, 0.8)


@pytest.fixture
def made(make: Make) -> Any:
    """Methods c3lt and pgd, which also keep what ECED keeps."""
    made = make(pairs=((4, 9),))
    thresholds = {"c3lt": 0.2, "pgd": 0.6}
    for method, threshold in thresholds.items():
        made.experiment.methods[method] = Latent(kind=method, threshold=threshold)
        for direction in ((4, 9), (9, 4)):
            path = layout.counterfactuals("toy", method, *direction).with_suffix(".safetensors")
            tensors, facts = files.load_tensors(path), files.read_metadata(path)
            query = tensors["query"]
            count = len(query)
            tensors["query_latent"] = np.random.default_rng(1).normal(size=(count, 4, 7, 7))
            tensors["variants"] = np.stack([query, 1 - query], axis=1)
            tensors["variant_masks"] = (tensors["variants"] > 0.5).astype(np.float32)
            tensors["variant_found"] = np.tile([True, False], (count, 1))
            tensors["angle_by_threshold"] = np.linspace(0, 80, 20) + np.zeros((count, 1))
            tensors["angle"] = np.linspace(10, 80, 5 * count).reshape(count, 5) * threshold
            tensors["attack_probability"] = np.linspace(0, 1, 6 * count).reshape(count, 6)
            files.save_tensors(path, tensors, facts)
    return made


def figure(kind: str, **changes: object) -> Figure:
    content: dict[str, object] = {
        "name": f"toy-{kind}",
        "title": "t",
        "paper": "p",
        "kind": kind,
        "experiment": "toy",
        "methods": ["c3lt", "pgd"] if kind == "angle" else ["c3lt"],
        "directions": [(4, 9), (9, 4)],
        "images": 2,
    }
    return Figure.model_validate({**content, **changes})


@pytest.mark.parametrize("kind", [*latent_figures.DRAW])
def test_it_is_drawn_the_same_twice(made: Any, kind: str) -> None:
    path = layout.FIGURES / f"toy-{kind}.png"
    figures.write(figure(kind), made.experiment)
    first = path.read_bytes()
    figures.write(figure(kind), made.experiment)
    assert path.read_bytes() == first
    with Image.open(path) as picture:
        assert min(picture.size) > 150
        assert np.asarray(picture.convert("L")).std() > 5


def test_latents_are_shown_channel_by_channel(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "show", lambda axes, image: seen.append(image))
    latent_figures.draw_latents(figure("latents", images=1), made.experiment)
    assert len(seen) == 2 * 5
    for channel in seen[1:5]:
        assert channel.shape == (1, 7, 7) and (channel.min(), channel.max()) == (0, 1)


def test_variants_stand_above_their_masks(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "show", lambda axes, image: seen.append(image))
    canvas = latent_figures.draw_diversity(
        figure("diversity", images=1, directions=[(4, 9)]), made.experiment
    )
    told = [axes.get_xlabel() for axes in canvas.axes if axes.get_xlabel()]
    query, first, mask, second, other = seen
    assert told == ["valid", "not valid"]
    assert np.array_equal(first, query) and np.array_equal(second, 1 - query)
    assert np.array_equal(mask, first > 0.5) and np.array_equal(other, second > 0.5)


def test_angles_stand_over_their_thresholds(made: Any) -> None:
    canvas = latent_figures.draw_angle(figure("angle"), made.experiment)
    first, second, third = canvas.axes
    mean = first.lines[-1]
    assert mean.get_xdata().tolist() == list(THRESHOLDS)
    assert mean.get_ydata() == pytest.approx(np.linspace(0, 80, 20))
    assert len(second.lines) == len(third.lines) == 2
    assert len(third.lines[0].get_ydata()) == len(second.lines[0].get_ydata()) + 1


def test_a_method_without_latents_is_named(make: Make, tmp_path: Path) -> None:
    made = make(pairs=((4, 9),))
    with pytest.raises(UserError, match="method pgd keeps no 'query_latent'"):
        figures.write(figure("latents", methods=["pgd"]), made.experiment)
