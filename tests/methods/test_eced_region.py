"""ECED, phase 1: where the image is edited."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterlens.classifiers.base import Classifier
from counterlens.methods.parts.score_cam import BatchedScoreCAM, TappedClassifier
from counterlens.runtime.seeding import generator

from .eced_setup import THRESHOLDS, region_of


class Quadrant(Classifier):
    """Class 1 is light in the upper left quarter; three feature maps see one quarter each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.weight.data[1, 0] = 40.0
        self.head.bias.data[1] = -5.0
        self.register_buffer("corners", torch.zeros(3, 16, 16))
        for place, (top, left) in enumerate(((0, 0), (0, 8), (8, 8))):
            self.corners[place, top : top + 8, left : left + 8] = 1.0

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x.mean(dim=1, keepdim=True) * self.corners]

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.mean(dim=(2, 3))


@pytest.mark.parametrize("score", ["prob_increase", "logit"])
def test_the_map_lies_where_the_class_is_seen(score: Any) -> None:
    x = torch.rand(3, 1, 16, 16, generator=generator(1)) * 0.2 + 0.8
    cam = BatchedScoreCAM(TappedClassifier(Quadrant(), -1, 0.0).eval(), score)
    found = torch.from_numpy(cam(x, [1, 1, 1]))
    assert found.shape == (3, 16, 16) and found.min() >= 0 and found.max() <= 1
    share = found[:, :8, :8].sum(dim=(1, 2)) / found.sum(dim=(1, 2))
    # with the probability's increase, the softmax weighs three channels e : 1 : 1 at most
    assert (share > (0.7 if score == "logit" else 0.45)).all()
    assert ((cam.entropy >= 0) & (cam.entropy <= 1)).all()
    region = found > 0.6
    assert region[:, :8, :8].float().mean() > 0.7
    assert not region[:, 8:].any() and not region[:, :, 8:].any()


def test_with_logits_it_is_the_package_s_own(models, queries) -> None:
    """Image by image, with its own target and hook."""
    from pytorch_grad_cam.score_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    x, source, _ = queries
    tapped = TappedClassifier(models["gap-resnet"], -1, 0.5).eval()
    theirs = ScoreCAM(tapped, [tapped.tap])
    with torch.no_grad():
        expected = [
            theirs(x[[n]] - 0.5, [ClassifierOutputTarget(int(source[n]))])[0] for n in range(6)
        ]
        found = BatchedScoreCAM(tapped, "logit")(x - 0.5, source.tolist())
    for ours, other in zip(found, expected, strict=True):
        assert ours == pytest.approx(other, abs=1e-4)


def test_a_constant_channel_weighs_nothing() -> None:
    class Flat(Quadrant):
        def maps(self, x: Tensor) -> list[Tensor]:
            maps = super().maps(x)[0]
            return [torch.stack([maps[:, 0], torch.ones_like(maps[:, 1]), maps[:, 2]], dim=1)]

    x = torch.ones(2, 1, 16, 16)
    tapped = TappedClassifier(Flat(), -1, 0.0).eval()
    cam = BatchedScoreCAM(tapped, "prob_increase")
    maps = tapped.classifier.maps(x)[0].numpy()
    weights = cam.get_cam_weights(x, None, [1, 1], maps, None)
    assert (weights[:, 1] == 0).all() and weights.sum(axis=1) == pytest.approx([1, 1])
    expected = math.exp(1 / (1 + math.exp(-5.0))) / math.exp(1 / (1 + math.exp(5.0)))
    assert weights[0, 0] / weights[0, 2] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("downsample", ["nearest", "maxpool", "area"])
def test_masks_are_nested_and_fit_the_latents(models, downsample: str) -> None:
    u = torch.rand(5, 1, 28, 28, generator=generator(2))
    u = torch.nn.functional.avg_pool2d(u, 7, 1, 3)
    u = (u - u.amin()) / (u.amax() - u.amin())
    chooser = region_of(models, downsample=downsample)
    found = [chooser.choose(u, threshold) for threshold in THRESHOLDS]
    for region in found:
        assert region.latent.shape == (5, 1, 8, 8) and region.image.shape == u.shape
        for mask in (region.latent, region.image):
            assert set(mask.unique().tolist()) <= {0.0, 1.0}
        # a cell is four pixels wide; two pixels of padding around
        inner = region.image.repeat_interleave(1, dim=2)[:, :, 2:-2, 2:-2]
        cells = torch.nn.functional.avg_pool2d(inner, 4)
        assert torch.equal(cells, region.latent[:, :, 1:-1, 1:-1])
    for wide, narrow in pairwise(found):
        kept = narrow.latent.flatten(1).sum(dim=1) > round(0.05 * 64)  # not the fall-back
        assert (narrow.latent[kept] <= wide.latent[kept]).all()
        assert kept.any() or narrow is found[-1]


def test_an_area_chooses_the_threshold(models) -> None:
    bump = torch.hann_window(28, periodic=False)
    u = (bump[:, None] * bump) ** torch.tensor([0.5, 1.0, 2.0, 4.0])[:, None, None, None]
    chooser = region_of(models, area=0.25, downsample="area")
    share = chooser.choose(u).image.mean(dim=(1, 2, 3))
    assert ((share > 0.15) & (share < 0.35)).all()
    # a threshold that is given wins
    assert chooser.choose(u, 0.99).image.mean() < 0.1


def test_an_empty_mask_becomes_the_strongest_cells(models) -> None:
    u = torch.zeros(1, 1, 28, 28)
    u[:, :, 10:14, 10:14] = 0.3  # one cell and parts of none
    region = region_of(models, threshold=0.5).choose(u)
    assert region.latent.sum() == round(0.05 * 64) and region.latent[0, 0, 3, 3] == 1
    grown = region_of(models, threshold=0.5, dilate=1).choose(u)
    assert grown.latent.sum() > region.latent.sum()
    assert (grown.latent >= region.latent).all()


def test_the_whole_image_is_a_region_too(models, queries) -> None:
    chooser = region_of(models, region="all")
    activation, _ = chooser.activation(*queries[:2])
    region = chooser.choose(activation)
    assert region.image.shape == (6, 1, 28, 28) and region.image.min() == 1
    assert region.latent.shape == (6, 1, 8, 8) and region.latent.min() == 1
