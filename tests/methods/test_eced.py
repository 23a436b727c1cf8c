"""ECED, phase 3: the edit itself; its propositions and options."""

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
from counterlens.errors import UserError
from counterlens.methods.eced import ECED, Options, degrees_between
from counterlens.methods.parts import eced_options
from counterlens.methods.parts.blended_diffusion import BlendedSampler
from counterlens.runtime.seeding import generator

from .eced_setup import THRESHOLDS, randomness, region_of

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
