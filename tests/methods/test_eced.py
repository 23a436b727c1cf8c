"""ECED: its three phases against formulas, independent code and hand-made cases."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from counterlens import plugins
from counterlens.classifiers.base import Classifier
from counterlens.errors import UserError
from counterlens.methods.eced import ECED, Options, degrees_between
from counterlens.methods.parts import eced_options
from counterlens.methods.parts.background import masked_mean
from counterlens.methods.parts.blended_diffusion import BlendedSampler
from counterlens.methods.parts.edit_region import EditRegion
from counterlens.methods.parts.score_cam import BatchedScoreCAM, TappedClassifier
from counterlens.runtime.seeding import generator

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def randomness(count: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(1000 * seed + number) for number in range(count)]


@pytest.fixture
def queries(shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of each class, their classes, and the other class."""
    data = shapes(6, (4, 9), seed=5)
    return data.images, data.labels, 13 - data.labels


# Phase 1


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


def region_of(models, **changes: Any) -> EditRegion:
    options = Options.model_validate({"kind": "eced", **changes})
    return EditRegion(models["latent-diffusion"], models["gap-resnet"], options)


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


# Phase 2


@pytest.mark.parametrize("mode", ["z", "decoder", "both"])
def test_the_background_is_reproduced_better(create, queries, mode: str) -> None:
    """Eq. 12, on noise that was not seen; the networks stay as they are."""
    x = queries[0]
    method: ECED = create("eced", background=mode, background_updates=30, decoder_lr=1e-3)
    before = copy.deepcopy(method.model.state_dict())
    mask = torch.zeros(6, 1, 8, 8)
    mask[:, :, 2:5, 2:5] = 1
    region = method.region.in_pixels(mask)
    background = method.keeper.fit(x, mask, region, randomness(6))
    rows = torch.arange(6)
    losses = []
    for initial, decode in (
        (background.query, lambda z: method.model.decode(z)),
        (background.initial(mask), lambda z: background.decoders(z, rows)),
    ):
        with torch.no_grad():
            seen = method.keeper.seen(initial, randomness(6, seed=1))
            error = (decode(seen) - x).square().mean(dim=1, keepdim=True)
            losses.append(masked_mean(error, 1 - region))
    assert (losses[1] < 0.9 * losses[0]).all()
    for key, value in method.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(background.latent * mask, background.query * mask)
    assert (mode == "decoder") == torch.equal(background.latent, background.query)
    assert (mode == "z") == (background.decoders.copies is None)


def test_copies_decode_as_the_decoder_does(create, queries) -> None:
    method: ECED = create("eced", background_updates=1, decoder_lr=1e-12, latent_lr=1e-12)
    mask = torch.zeros(6, 1, 8, 8)
    background = method.keeper.fit(queries[0], mask, mask.new_zeros(6, 1, 28, 28), randomness(6))
    z = torch.randn(2, 4, 8, 8, generator=generator(4))
    rows = torch.tensor([4, 1])
    found = background.decoders(z, rows)
    torch.testing.assert_close(found, method.model.decode(z), atol=1e-5, rtol=1e-4)
    # each image has a copy of its own
    assert background.decoders.copies is not None
    with torch.no_grad():
        for value in background.decoders.copies.values():
            value[4].zero_()
    changed = background.decoders(z, rows)
    assert (changed[0] - found[0]).abs().max() > 1e-4
    assert torch.equal(changed[1], found[1])


def test_a_masked_mean_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[None, None].repeat(2, 1, 1, 1)
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None].repeat(2, 1, 1, 1)
    mask[1] = 0
    assert masked_mean(values, mask).tolist() == [2.5, 0]


# Phase 3


def test_a_step_is_equation_10(create) -> None:
    method: ECED = create("eced", grid=10, start=300)
    sampler = method.sampler
    assert sampler.steps == [300, 200, 100, 0]
    z, noise = (torch.randn(2, 4, 8, 8, generator=generator(seed)) for seed in (1, 2))
    condition = sampler.conditions(torch.tensor([4, 9]), torch.tensor([9, 4]))
    alphas = method.model.scheduler.alphas_cumprod.double()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(alphas, (1 - betas).cumprod(0), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        for place, step in enumerate(sampler.steps):
            kept = alphas[step]
            below = alphas[sampler.steps[place + 1]] if step else torch.tensor(1.0)
            eps = method.model.eps(z, step, condition).double()
            clean = (z.double() - (1 - kept).sqrt() * eps) / kept.sqrt()
            sigma = ((1 - below) / (1 - kept)).sqrt() * (1 - kept / below).sqrt()
            expected = below.sqrt() * clean + (1 - below - sigma**2).clamp(min=0).sqrt() * eps
            expected = expected + sigma * noise.double()
            found = sampler.denoised(z, step, condition, noise).double()
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            if step == 0:
                torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)


def test_noising_is_equation_9(create) -> None:
    model = create("eced").model
    z, noise = (torch.randn(2, 4, 8, 8, generator=generator(seed)) for seed in (1, 2))
    kept = float(model.scheduler.alphas_cumprod[360])
    expected = math.sqrt(kept) * z + math.sqrt(1 - kept) * noise
    torch.testing.assert_close(model.noised(z, noise, 360), expected)
    assert math.sqrt(1 - float(model.scheduler.alphas_cumprod[0])) == pytest.approx(
        0.0292, abs=1e-4
    )


def test_without_foreground_the_background_comes_back(create, queries) -> None:
    """With the noise of level 0; that of its last step, whatever was the start."""
    method: ECED = create("eced")
    z = method.model.encode(queries[0])
    background = z + 1
    noise = method.sampler.noise(randomness(6), z)
    condition = method.sampler.conditions(queries[1], queries[2])
    with torch.no_grad():
        found = method.sampler.render(z, background, torch.zeros(6, 1, 8, 8), condition, noise)
    torch.testing.assert_close(found, method.model.noised(background, noise[:, -1], 0))
    aligned: ECED = create("eced", background_level="t_prev")
    with torch.no_grad():
        found = aligned.sampler.render(z, background, torch.zeros(6, 1, 8, 8), condition, noise)
    assert torch.equal(found, background)
    assert torch.equal(aligned.keeper.seen(z, randomness(6)), z)


def chain(create, **changes: Any) -> Any:
    """A two-step chain in float64: its classifier loss of z^init, and a z^init."""
    method: ECED = create("eced", grid=10, start=100, **changes)
    model = copy.deepcopy(method.model).double()
    classifier = copy.deepcopy(method.task.classifier).double()
    sampler = BlendedSampler(model, method.options)
    assert len(sampler.steps) == 2
    random = generator(7)
    z, background, *_ = torch.randn(3, 2, 4, 8, 8, generator=random, dtype=torch.float64)
    noise = torch.randn(2, 5, 4, 8, 8, generator=random, dtype=torch.float64)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[:, :, 2:6, 2:6] = 1
    target = torch.tensor([4, 9])
    condition = sampler.conditions(13 - target, target)

    def loss(initial: Tensor) -> Tensor:
        rendered = sampler.render(initial, background, mask, condition, noise)
        return nn.functional.cross_entropy(
            classifier(model.decode(rendered)), target, reduction="sum"
        )

    return loss, z


def test_recomputing_gives_the_same_gradient_to_the_bit(create) -> None:
    gradients = []
    for recompute in (False, True):
        loss, z = chain(create, checkpoint=recompute, guidance=2.0)
        z.requires_grad_(True)
        gradients.append(torch.autograd.grad(loss(z), z)[0])
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_the_gradient_is_that_of_finite_differences(create) -> None:
    loss, z = chain(create)
    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    for seed in range(3):
        direction = torch.randn(z.shape, generator=generator(seed), dtype=torch.float64)
        with torch.no_grad():
            ends = [loss(z + sign * 1e-5 * direction) for sign in (1, -1)]
        slope = float((ends[0] - ends[1]) / 2e-5)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_guidance_is_the_line_through_both_predictions(create) -> None:
    model = create("eced").model
    z = torch.randn(2, 4, 8, 8, generator=generator(1))
    condition = model.condition(torch.tensor([4, 9]))
    with torch.no_grad():
        told = model.eps(z, 80, condition)
        free = model.eps(z, 80, model.condition(torch.tensor([-1, -1])))
        assert (told - free).abs().max() > 1e-4
        torch.testing.assert_close(model.guided(z, 80, condition, 3.0), free + 3 * (told - free))
        assert torch.equal(model.guided(z, 80, condition, 1.0), told)


@pytest.mark.parametrize("prune", [True, False])
def test_pruned_updates_leave_the_background_bit_for_bit(create, queries, prune: bool) -> None:
    x, source, target = queries
    method: ECED = create("eced", updates=5, prune=prune)
    mask = torch.zeros(6, 1, 8, 8)
    mask[:, :, 3:6, 2:6] = 1
    background = method.keeper.fit(x, mask, method.region.in_pixels(mask), randomness(6))
    attack = method.attack(background, mask, source, target, randomness(6, seed=1))
    outside = (1 - mask).bool().expand_as(attack.initial)
    assert torch.equal(attack.initial[outside], background.latent[outside]) == prune
    inside = ~outside
    assert (attack.initial[inside] != background.query[inside]).float().mean() > 0.9
    assert attack.updates.tolist() == [5] * 6


def test_attacking_raises_the_target_probability(create, queries) -> None:
    x, source, target = queries
    method: ECED = create("eced", updates=15, region="all", lr=0.5, fixed_noise=True)
    answer = method.explain(x, source, target, randomness(6))
    trace = answer.extras["attack_probability"]
    assert (trace[:, -1] > trace[:, 0]).all() and trace[:, -1].mean() > trace[:, 0].mean() + 0.1


def test_without_updates_it_is_one_rendering(create, queries) -> None:
    x, source, target = queries
    method: ECED = create("eced", updates=0)
    answer = method.explain(x, source, target, randomness(6))
    assert answer.extras["attack_probability"].shape == (6, 1)
    assert answer.extras["angle"].shape == (6, 0)


def test_finished_images_leave_the_batch_and_change_nothing(create, queries) -> None:
    x, source, target = queries
    settings_ = {"updates": 8, "region": "all", "lr": 0.5}
    whole: ECED = create("eced", **settings_)
    trace = whole.explain(x, source, target, randomness(6)).extras["attack_probability"]
    bound = float(trace[:, 1:].sort(dim=1).values[:, 4].median())
    method: ECED = create("eced", stop_at=bound, **settings_)
    answer = method.explain(x, source, target, randomness(6))
    made = answer.extras["updates"].long()
    found = answer.extras["attack_probability"]
    assert made.min() < 8
    for row in range(6):
        last = int(made[row])
        torch.testing.assert_close(
            found[row, : last + 1], trace[row, : last + 1], atol=2e-3, rtol=0
        )
        assert (found[row, last:] == found[row, last]).all()
        if last < 8:
            assert (found[row, last - 1 : last + 1] >= bound).all()
        earlier = found[row, :last] >= bound
        assert not (earlier[1:] & earlier[:-1]).any()


def test_fixed_noise_repeats(create, queries) -> None:
    x, source, target = queries
    for fixed in (True, False):
        # a rate that moves nothing: two renderings differ by their noise alone
        method: ECED = create("eced", fixed_noise=fixed, updates=1, lr=1e-12)
        trace = method.explain(x, source, target, randomness(6)).extras["attack_probability"]
        assert torch.equal(trace[:, 0], trace[:, 1]) == fixed


def test_each_switch_changes_the_answer(create, queries) -> None:
    x, source, target = queries
    plain = create("eced", updates=3, lr=0.5).explain(x, source, target, randomness(6))
    for switch in (
        {"region": "all"},
        {"background": "off"},
        {"updates": 0},
        {"diffusion": False},
        {"condition": "source"},
        {"condition": "null"},
        {"guidance": 3.0},
        {"background_level": "t_prev"},
        {"prune": False},
        {"stop_at": 1e-6},
        {"fixed_noise": True},
        {"foreground_weight": 1.0},
        {"blank": "black"},
        {"layer": -2},
    ):
        method = create("eced", **{"updates": 3, "lr": 0.5, **switch})
        other = method.explain(x, source, target, randomness(6))
        moved = (other.counterfactual - plain.counterfactual).abs().amax((1, 2, 3))
        assert (moved > 1e-6).any(), switch


def test_a_sweep_keeps_a_variant_for_every_threshold(create, queries) -> None:
    x, source, target = queries
    method: ECED = create("eced", updates=1, sweep=(0.2, 0.8, 0.8))
    answer = method.explain(x, source, target, randomness(6))
    variants, masks = answer.extras["variants"], answer.extras["variant_masks"]
    assert variants.shape == (6, 3, 1, 28, 28) and masks.shape == (6, 3, 1, 28, 28)
    assert torch.equal(masks[:, 1], masks[:, 2])
    assert (variants[:, 1] - variants[:, 2]).abs().max() > 0
    assert answer.extras["variant_found"].shape == (6, 3)
    alone = create("eced", updates=1, sweep=(0.6,)).explain(x, source, target, randomness(6))
    assert torch.equal(alone.counterfactual, answer.counterfactual)


# Propositions 1 and 2


@given(seed=st.integers(0, 2**31), size=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_a_pruned_gradient_still_descends_and_smaller_regions_turn_it_more(
    seed: int, size: int
) -> None:
    random = generator(seed)
    u = torch.randn(3, 4, size, size, generator=random).double()
    activation = torch.rand(3, 1, size, size, generator=random)
    before = torch.zeros(3).double()
    for threshold in (0.0, 0.2, 0.5, 0.8):
        v = u * (activation > threshold)
        kept = v.flatten(1).norm(dim=1) > 0
        angle = degrees_between(u, v)
        inner = (u * v).flatten(1).sum(dim=1)
        assert (inner[kept] > 0).all() and (angle[kept] < 90).all() and (angle >= 0).all()
        cosine = inner / (u.flatten(1).norm(dim=1) * v.flatten(1).norm(dim=1)).clamp(min=1e-12)
        torch.testing.assert_close(torch.cos(torch.deg2rad(angle))[kept], cosine[kept])
        assert (angle >= before - 1e-6).all()
        before = angle


def test_the_propositions_hold_for_a_real_gradient(create, models, queries) -> None:
    loss, z = chain(create)
    z.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(z), z)
    chooser = region_of(models, downsample="maxpool")
    activation, _ = chooser.activation(queries[0][:2], queries[1][:2])
    angles = [
        degrees_between(gradient, gradient * chooser.choose(activation, threshold).latent)
        for threshold in THRESHOLDS
    ]
    for wide, narrow in pairwise(angles):
        assert (narrow >= wide).all() and (narrow < 90).all()
    assert (angles[-1] > angles[0] + 1).any()


def test_the_angle_of_one_gradient_grows_with_the_threshold(create, queries) -> None:
    method: ECED = create("eced", updates=1)
    extras = method.explain(*queries, randomness(6)).extras
    angles = extras["angle_by_threshold"]
    assert angles.shape == (6, len(eced_options.THRESHOLDS))
    assert (angles.diff(dim=1) >= 0).all() and angles.amin() >= 0 and angles.amax() <= 90
    assert (angles[:, -1] > angles[:, 0]).any()
    # at the threshold of the attack it is the attack's own
    place = eced_options.THRESHOLDS.index(method.options.threshold)
    torch.testing.assert_close(angles[:, place], extras["angle"][:, 0])


# Options


def test_what_cannot_work_is_told(models, create, queries) -> None:
    def conflict(generator_name: str = "latent-diffusion", **changes: Any) -> str | None:
        options = Options.model_validate({"kind": "eced", "generator": generator_name, **changes})
        return options.conflict({name: model.options for name, model in models.items() if name in
                                 ("latent-diffusion", "ddpm", "dcgan")})  # fmt: skip

    assert conflict() is None
    models = {**models, "latent-diffusion": copy.copy(models["latent-diffusion"])}
    whole = models["latent-diffusion"].options
    models["latent-diffusion"].options = whole.model_copy(update={"drop": 0.0})
    for changes, name in (({"guidance": 2.0}, "guidance"), ({"condition": "null"}, "condition")):
        assert (reason := conflict(**changes)) and reason.startswith(name)
        assert "trained with drop 0" in reason
    models["latent-diffusion"].options = whole
    assert conflict("dcgan") == "'dcgan' is no latent diffusion model"
    assert conflict("ddpm") == "'ddpm' is no latent diffusion model"
    with pytest.raises(UserError, match="layer: -9, but the classifier has 2 feature maps"):
        create("eced", layer=-9).explain(*queries, randomness(6))
    method: ECED = create("eced", updates=0)
    with pytest.raises(UserError, match="knows no class 3; add it to its `classes`"):
        method.explain(queries[0], queries[1], torch.full((6,), 3), randomness(6))


def test_options_are_read_without_torch() -> None:
    read = plugins.options_class("methods", "eced").model_validate({"kind": "eced"})
    assert read.generators() == ("latent-diffusion",)  # type: ignore[attr-defined]
