"""Regions, codes and what the decoder may see."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from counterlens.generators import sean
from counterlens.generators.base import Training
from counterlens.generators.sean import SEAN, Options, majority, one_hot
from counterlens.runtime.training import Checkpoint, load_model, save_model

SHAPE = (1, 28, 28)
TINY: dict[str, Any] = {
    "kind": "sean",
    "width": 4,
    "code_dim": 6,
    "regions": 4,
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
}


@pytest.fixture
def make() -> Callable[..., SEAN]:
    """A tiny network, always with the same initial parameters."""

    def create(shape: tuple[int, int, int] = SHAPE, **changes: Any) -> SEAN:
        torch.manual_seed(3)
        return SEAN(Options.model_validate({**TINY, **changes}), shape)

    return create


def state(model: SEAN) -> dict[str, bytes]:
    return {k: v.contiguous().numpy().tobytes() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("segmentation", ["clusters", "strokes"])
@pytest.mark.parametrize("shape", [SHAPE, (3, 64, 64), (3, 24, 36), (1, 27, 30)])
@pytest.mark.parametrize("count", [2, 1, 0])
def test_shapes_and_ranges(segmentation: str, shape: tuple, count: int, make) -> None:
    model = make(shape, segmentation=segmentation).eval()
    x = torch.rand(count, *shape)
    layout = model.layout(x)
    regions = 3 if segmentation == "strokes" else 4
    assert layout.shape == (count, regions, *shape[1:]) and model.regions == regions
    assert ((layout == 0) | (layout == 1)).all() and (layout.sum(dim=1) == 1).all()
    codes = model.codes(x, layout)
    assert codes.shape == (count, regions, 6) and codes.isfinite().all()
    drawn = model.synthesise(layout, codes)
    assert drawn.shape == x.shape and ((drawn >= 0) & (drawn <= 1)).all()


def test_strokes_by_hand(make) -> None:
    x = torch.tensor([[0.0, 0.09, 0.1], [0.59, 0.6, 1.0]])[None, None]
    labels = make((1, 8, 8), segmentation="strokes").layout(x).argmax(dim=1)
    assert labels.tolist() == [[[0, 0, 1], [1, 2, 2]]]


def test_the_majority_of_each_square() -> None:
    labels = torch.zeros(1, 6, 6, dtype=torch.long)
    labels[0, 2, 2] = 1  # a single pixel goes under
    labels[0, :, 4:] = 2  # an edge stays
    found = majority(one_hot(labels, 3)).argmax(dim=1)
    labels[0, 2, 2] = 0
    assert torch.equal(found, labels)
    assert torch.equal(majority(one_hot(labels, 3)).argmax(dim=1), labels)


def test_a_tie_leaves_a_pixel_where_it_is() -> None:
    """Three of each of three regions."""
    labels = torch.tensor([[0, 1, 2]] * 3)[None]
    assert int(majority(one_hot(labels, 3)).argmax(dim=1)[0, 1, 1]) == 1


def test_clusters_are_shared_and_stable(make, training) -> None:
    model = make().eval()
    model.cluster(training().images, seed=1)
    x = training().test_images
    layout = model.layout(x)
    assert layout.sum(dim=(0, 2, 3)).min() > 0
    for part in ([2], [5, 3, 0]):  # an image's regions are its own
        assert torch.equal(model.layout(x[part]), layout[part])
    again = make()
    again.cluster(training().images, seed=1)
    assert torch.equal(again.layout(x), layout)
    # a little light changes few regions
    assert (model.layout(x + 0.01) != layout).float().mean() < 0.05


def test_pixels_go_to_the_nearest_centroid(make) -> None:
    model = make((3, 8, 8), position=0.0).eval()
    model.centroids.zero_()
    model.centroids[:, 0] = torch.tensor([0.0, 0.4, 0.7, 1.0])  # red alone tells
    x = torch.zeros(1, 3, 8, 8)
    x[0, 0, :, 4:] = 0.65
    x[0, 0, :, 2:4] = 0.35
    model.deviation[1:] = 1e6
    assert model.layout(x).argmax(dim=1)[0, 4].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_position_s_weight(make, training) -> None:
    """Without it only colours tell pixels apart."""
    model = make(position=0.0).eval()
    model.cluster(training().images, seed=1)
    assert (model.layout(torch.zeros(1, *SHAPE)).sum(dim=(2, 3)) > 0).sum() == 1
    placed = make(position=5.0).eval()
    placed.cluster(training().images, seed=1)
    assert (placed.layout(torch.zeros(1, *SHAPE)).sum(dim=(2, 3)) > 0).sum() > 1


def test_a_code_is_the_mean_of_its_region(make) -> None:
    model = make(segmentation="strokes").eval()
    x = torch.rand(1, *SHAPE)
    layout = torch.zeros(1, 3, 28, 28)
    layout[:, 0, :, :14] = 1
    layout[:, 1, :, 14:] = 1
    style = model.encoder(2 * x - 1)
    codes = model.codes(x, layout)
    torch.testing.assert_close(codes[0, 0], style[0, :, :, :7].mean(dim=(1, 2)))
    torch.testing.assert_close(codes[0, 1], style[0, :, :, 7:].mean(dim=(1, 2)))
    assert torch.equal(codes[0, 2], torch.zeros(6))  # there is no such region


def test_the_decoder_sees_regions_and_codes_alone(make) -> None:
    model = make(segmentation="strokes").eval()
    x = torch.rand(2, *SHAPE)
    layout = model.layout(x)
    codes = model.codes(x, layout)
    drawn = model.synthesise(layout, codes)
    model.encoder.requires_grad_(False).apply(
        lambda part: part.weight.data.zero_() if hasattr(part, "weight") else None
    )
    assert torch.equal(model.synthesise(layout, codes), drawn)
    moved = codes.clone()
    moved[0, 1] += 1
    other = model.synthesise(layout, moved)
    assert not torch.equal(other[0], drawn[0])
    torch.testing.assert_close(other[1], drawn[1])
    assert not torch.allclose(model.synthesise(layout.flip(3), codes), drawn)


def test_the_code_of_an_absent_region_has_no_effect(make) -> None:
    model = make().eval()
    layout = one_hot(torch.zeros(1, 28, 28, dtype=torch.long), 4)
    codes = torch.randn(1, 4, 6)
    moved = codes.clone()
    moved[:, 1:] += 3
    torch.testing.assert_close(model.synthesise(layout, moved), model.synthesise(layout, codes))


def test_training_is_repeatable_and_resumed(
    make, training, kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"adversarial": 0.1, "flip": True, "epochs": 3}
    first = make(**changes)
    before = state(first)
    history = first.fit(training())
    assert not first.training and [row["epoch"] for row in history] == [1, 2, 3]
    assert set(history[0]) == {"epoch", "pixels", "discriminator", "adversarial"}
    after = state(first)
    assert all(after[name] != before[name] for name in after), "some parameter is not trained"
    assert make(**changes).fit(training()) == history
    with pytest.raises(kill(sean, 2)):
        make(**changes).fit(training(Checkpoint("sean", [], seconds=0)))
    resumed = make(**changes)
    assert resumed.fit(training(Checkpoint("sean", [], seconds=0))) == history
    assert state(resumed) == after
    save_model(tmp_path / "model.safetensors", first)
    loaded = make(**changes)
    load_model(tmp_path / "model.safetensors", loaded)
    assert state(loaded) == after


@pytest.mark.parametrize("segmentation", ["clusters", "strokes"])
def test_it_learns_to_reconstruct(segmentation: str, make, training) -> None:
    given = training()
    given = dataclasses.replace(given, test_images=given.images)
    model = make(segmentation=segmentation, epochs=8, lr=0.01)
    history = model.fit(given)
    assert set(history[0]) == {"epoch", "pixels"}
    assert history[-1]["pixels"] < 0.5 * history[0]["pixels"]
    own = float((model.reconstructions(given.images) - given.images).abs().mean())
    assert model.quality(given).values["reconstruction_l1"] == pytest.approx(own)


def test_quality_and_sheet(make, training) -> None:
    given: Training = training()
    model = make().eval()
    quality = model.quality(given)
    assert set(quality.gates()) == {"class_kept", "reconstruction_l1"}
    sheet = model.sheet(given)
    assert sheet.shape == (48, *SHAPE) and ((sheet >= 0) & (sheet <= 1)).all()
    x = given.test_images[:16]
    assert torch.equal(sheet[:8], x[:8]) and torch.equal(sheet[24:32], x[8:16])
    labels = model.layout(x[:8]).argmax(dim=1, keepdim=True)
    torch.testing.assert_close(sheet[8:16], labels / 3)
