"""ACE, CECAS and DiME on a tiny classifier and a tiny diffusion model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from counterlens.classifiers.gap_resnet import GapResNet
from counterlens.classifiers.gap_resnet import Options as GapResNetOptions
from counterlens.data.base import ImageSet
from counterlens.generators.ddpm import DDPM
from counterlens.generators.ddpm import Options as DDPMOptions
from counterlens.methods import ace, cecas, dime
from counterlens.methods.base import Method, Task
from counterlens.methods.parts.filtered_attack import FilteredAttack, children, edit_mask
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator

SIDE = 12
STEPS = {"schedule": 20, "steps": 2, "iterations": 4, "dilation": 3}


def randomness(count: int) -> list[torch.Generator]:
    return [generator(n) for n in range(count)]


@pytest.fixture(scope="module")
def task() -> Task:
    torch.manual_seed(3)
    device = torch.device("cpu")
    classifier = GapResNet(GapResNetOptions(kind="gap-resnet", widths=(8, 16)), (1, SIDE, SIDE), 4)
    network = DDPM(DDPMOptions(kind="ddpm", channels=(8, 16), steps=100), (1, SIDE, SIDE))
    for model in (classifier, network):
        freeze(model, device)
    return Task(classifier, {"ddpm": network}, (1, SIDE, SIDE), ((0, 1), (2, 3)), device, seed=7)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, SIDE, SIDE, generator=generator(1))


def labels(count: int, target: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, dtype=torch.long), torch.full((count,), target)


def attack(task: Task, **options: Any) -> FilteredAttack:
    return FilteredAttack(ace.Options.model_validate({"kind": "ace", **STEPS, **options}), task)


def explain(method: Method, x: Tensor, seeds: list[torch.Generator] | None = None):
    return method.explain(x, *labels(len(x)), seeds or randomness(len(x)))


# The attack


def test_a_pixel_moves_by_a_step_each_time(task: Task, x: Tensor) -> None:
    target = labels(len(x))[1]
    one = attack(task, iterations=1, step_size=0.01).run(x, target, randomness(len(x)))
    moved = (one.images - x).abs()
    inside = (x > 0.02) & (x < 0.98)
    assert ((moved[inside] - 0.01).abs() < 1e-6).float().mean() > 0.95
    assert moved.max() <= 0.01 + 1e-6


def test_the_target_becomes_more_probable(task: Task, x: Tensor) -> None:
    wanted = labels(len(x))[1]
    found = attack(task, iterations=20, step_size=0.02, stochastic=False)
    probability = found.run(x, wanted, randomness(len(x))).target_probability
    assert probability.shape == (6, 20)
    assert (probability[:, -1] > probability[:, 0]).all()


def test_the_largest_change_is_bounded(task: Task, x: Tensor) -> None:
    found = attack(task, iterations=10, step_size=0.05, epsilon=0.08)
    changed = found.run(x, labels(len(x))[1], randomness(len(x))).images
    assert (changed - x).abs().max() <= 0.08 + 1e-6


@pytest.mark.parametrize(("iterations", "off"), [(6, 0.0), (7, 0.01)])
def test_a_huge_distance_weight_leaves_the_query(
    task: Task, x: Tensor, iterations: int, off: float
) -> None:
    """An even number of iterations ends at the query, an odd number one step beside it."""
    x = x.clamp(0.1, 0.9)
    found = attack(task, iterations=iterations, step_size=0.01)
    changed = found.run(x, labels(len(x))[1], randomness(len(x)), l1=1e6).images
    assert ((changed - x).abs() - off).abs().max() < 1e-5


def test_the_euclidean_distance_pulls_back_too(task: Task, x: Tensor) -> None:
    wanted = labels(len(x))[1]
    found = attack(task, iterations=11, step_size=0.01)
    free = found.run(x, wanted, randomness(len(x))).images
    held = found.run(x, wanted, randomness(len(x)), l2=1e6).images
    assert (held - x).abs().mean() < 0.5 * (free - x).abs().mean()


def test_batches_and_order_change_nothing(task: Task, x: Tensor) -> None:
    """Few steps: a sign turns on the rounding of a sum, which does depend on the batch."""
    found = attack(task, iterations=2, step_size=0.01)
    whole = found.run(x, labels(6)[1], randomness(6)).images
    alone = found.run(x[3:4], labels(1)[1], [generator(3)]).images
    turned = found.run(x.flip(0), labels(6)[1], randomness(6)[::-1]).images.flip(0)
    for other in (alone, turned[3:4]):
        assert ((whole[3:4] - other).abs() < 1e-6).float().mean() > 0.99
    torch.testing.assert_close(
        found.run(x, labels(6)[1], randomness(6)).images, whole, rtol=0, atol=0
    )


def test_recomputing_changes_nothing(task: Task, x: Tensor) -> None:
    results = [
        attack(task, gradient=kind, iterations=2).run(x, labels(6)[1], randomness(6)).images
        for kind in ("full", "checkpoint")
    ]
    assert ((results[0] - results[1]).abs() < 1e-6).float().mean() > 0.99


def test_the_shortcut_is_another_gradient(task: Task, x: Tensor) -> None:
    found = [
        attack(task, gradient=kind, iterations=4).run(x, labels(6)[1], randomness(6)).images
        for kind in ("full", "shortcut")
    ]
    assert (found[0] - found[1]).abs().max() > 0


def test_a_finished_image_leaves_the_batch(task: Task, x: Tensor) -> None:
    wanted = labels(len(x))[1]
    ends = attack(task, iterations=8, step_size=0.02).run(x, wanted, randomness(len(x)))
    reached = ends.target_probability.amax(dim=1)
    limit = float(reached.median())
    found = attack(task, iterations=8, step_size=0.02, stop_at=limit)
    stopped = found.run(x, wanted, randomness(len(x)))
    early = (stopped.target_probability >= limit).any(dim=1)
    assert early.any() and not early.all()
    for row in early.nonzero().flatten().tolist():
        first = int((stopped.target_probability[row] >= limit).nonzero()[0])
        constant = stopped.target_probability[row, first:]
        assert (constant == constant[0]).all()
        # it is where so many iterations bring it
        shorter = attack(task, iterations=first + 1, step_size=0.02)
        expected = shorter.run(x, wanted, randomness(len(x))).images
        # but for signs that turn on the rounding of another batch
        moved = (stopped.images[row] - expected[row]).abs() > 1e-4
        assert moved.float().mean() < 0.05


# The mask


def test_a_mask_by_hand() -> None:
    x = torch.zeros(1, 2, 5, 5)
    changed = x.clone()
    changed[0, :, 2, 2] = 0.5
    changed[0, 0, 0, 4] = 0.2
    expected = torch.zeros(5, 5)
    expected[2, 2] = 1
    assert torch.equal(edit_mask(x, changed, 0.3, 1)[0, 0], expected)
    expected[1:4, 1:4] = 1
    assert torch.equal(edit_mask(x, changed, 0.3, 3)[0, 0], expected)
    expected[0:2, 3:5] = 1
    assert torch.equal(edit_mask(x, changed, 0.15, 3)[0, 0], expected)


def test_an_unchanged_image_has_an_empty_mask(x: Tensor) -> None:
    assert not edit_mask(x, x, 0.0, 15).any()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    low=st.floats(0, 0.5),
    more=st.floats(0, 0.4),
    size=st.sampled_from([1, 3, 5]),
)
def test_a_mask_grows_with_dilation_and_shrinks_with_the_threshold(
    seed: int, low: float, more: float, size: int
) -> None:
    x, y = torch.rand(2, 3, 2, 8, 9, generator=generator(seed))
    mask = edit_mask(x, y, low, size)
    assert mask.shape == (3, 1, 8, 9)
    assert (mask >= edit_mask(x, y, low + more, size)).all()
    assert (mask <= edit_mask(x, y, low, size + 2)).all()


# ACE


def test_ace_keeps_the_query_outside_the_mask(task: Task, x: Tensor) -> None:
    options = ace.Options.model_validate({"kind": "ace", **STEPS, "threshold": 0.9, "dilation": 1})
    found = explain(ace.ACE(options, task), x)
    edit = found.extras["edit_mask"].bool()
    assert edit.any() and not edit.all()
    assert torch.equal(found.counterfactual[~edit], x[~edit])
    assert (found.counterfactual[edit] != x[edit]).any()
    answered = task.classifier(found.counterfactual).argmax(1)
    assert torch.equal(found.found, answered == 1)


def test_ace_without_refinement_is_the_pre_explanation(task: Task, x: Tensor) -> None:
    options = ace.Options.model_validate({"kind": "ace", **STEPS, "refine": False})
    found = explain(ace.ACE(options, task), x)
    assert torch.equal(found.counterfactual, found.extras["pre_explanation"])


def test_stages_have_randomness_of_their_own() -> None:
    first, second = (children(randomness(2), 3) for _ in range(2))
    numbers = [[torch.rand(1, generator=one).item() for one in stage] for stage in first]
    assert len({number for stage in numbers for number in stage}) == 6
    alone = [torch.rand(1, generator=one).item() for one in second[2]]
    assert alone == numbers[2]


# CECAS


def images(count: int = 64) -> ImageSet:
    random = generator(5)
    labels = torch.arange(count) % 4
    made = 0.2 * torch.rand(count, 1, SIDE, SIDE, generator=random)
    for label in range(4):
        row, column = divmod(label, 2)
        made[labels == label, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 0.7
    return ImageSet(made, labels, torch.arange(count))


SPLIT = {
    "causal_dim": 2,
    "spurious_dim": 3,
    "epochs": 3,
    "epoch_steps": 20,
    "auxiliary_epochs": 4,
    "causal_samples": 8,
    "spurious_samples": 8,
}


def steering(task: Task, **options: Any) -> cecas.CECAS:
    given = {"kind": "cecas", **STEPS, **SPLIT, **options}
    return cecas.CECAS(cecas.Options.model_validate(given), task)


@pytest.fixture(scope="module")
def fitted(task: Task) -> cecas.CECAS:
    method = steering(task)
    history = method.fit(images())
    assert history[2]["reconstruction"] < history[0]["reconstruction"]
    assert len(history) == 3
    losses = method.fit_auxiliary(method.embeddings(images().images), images().labels)
    assert losses[-1]["auxiliary"] < losses[0]["auxiliary"]
    freeze(method.trained(), task.device)
    return method


def test_alpha_of_zero_is_the_attack_alone(task: Task, fitted: cecas.CECAS, x: Tensor) -> None:
    method = steering(task, alpha=0)
    seeds = children(randomness(len(x)), 3)[0]
    assert torch.equal(
        method.steer(x, labels(len(x))[1], seeds).images,
        attack(task).run(x, labels(len(x))[1], children(randomness(len(x)), 3)[0]).images,
    )


def test_a_huge_alpha_holds_what_is_read_off_the_spurious_factors(
    task: Task, fitted: cecas.CECAS, x: Tensor
) -> None:
    def divergence(alpha: float) -> float:
        method = steering(task, alpha=alpha, iterations=20, step_size=0.02, stochastic=False)
        method.factors = fitted.factors
        end = method.steer(x, labels(len(x))[1], randomness(len(x)))
        before = fitted.auxiliary(task.classifier.embedding(x)).softmax(1)
        filtered = method.attack.filter(end.images, torch.zeros(len(x), 2, 1, SIDE, SIDE))
        after = fitted.auxiliary(task.classifier.embedding(filtered)).log_softmax(1)
        return float((before * (before.log() - after)).sum(1).mean())

    assert divergence(1e6) < divergence(1e-9)


def test_cecas_goes_on_from_a_pre_explanation(task: Task, fitted: cecas.CECAS, x: Tensor) -> None:
    source, target = labels(len(x))
    own = fitted.explain(x, source, target, randomness(len(x)))
    given = {"pre_explanation": own.extras["pre_explanation"]}
    further = fitted.explain_further(x, source, target, randomness(len(x)), given)
    assert torch.equal(own.counterfactual, further.counterfactual)
    other = fitted.explain_further(x, source, target, randomness(len(x)), {"pre_explanation": x})
    assert torch.equal(other.counterfactual, x)  # nothing may be edited


def test_cecas_stages_as_ablations(task: Task, fitted: cecas.CECAS, x: Tensor) -> None:
    def found(**options: Any):
        method = steering(task, **options)
        method.factors = fitted.factors
        return explain(method, x)

    whole = found()
    assert torch.equal(found(refine="none").counterfactual, whole.extras["causal_explanation"])
    by_itself = found(mask_of="causal-explanation").extras["edit_mask"]
    expected = edit_mask(x, whole.extras["causal_explanation"], 0.1, 3)
    assert torch.equal(by_itself, expected)
    assert whole.extras["spurious_loss"].shape == (6, 4)


@pytest.mark.parametrize("kind", ["vae", "vae-decorrelated", "nullspace"])
def test_every_kind_of_spurious_factors_trains(task: Task, x: Tensor, kind: str) -> None:
    method = steering(task, spurious=kind)
    method.fit(images())
    features = method.embeddings(images().images)
    with torch.no_grad():
        spurious = method.factors.spurious(features)
    if kind == "nullspace":
        head = task.classifier.head
        assert isinstance(head, nn.Linear)
        moved = spurious * method.factors.deviation
        logits = moved @ head.weight.T
        assert (logits - logits.mean(1, keepdim=True)).abs().max() < 1e-3
    if kind == "vae-decorrelated":
        causal = method.factors.encode(features)[0][:, :2]
        assert (causal.T @ spurious).abs().max() < 1e-2
    assert explain(method, x).counterfactual.isfinite().all()


class Copying(nn.Module):
    """Decodes to the part of the latent that the test chooses, as logits of a known classifier."""

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, latent: Tensor) -> Tensor:
        sign = torch.sign(latent[:, self.columns].sum(1, keepdim=True))
        return 50 * torch.cat([sign, -sign], dim=1)


@pytest.mark.parametrize(("columns", "of_causal"), [(slice(0, 1), True), (slice(2, 3), False)])
def test_influence_is_all_or_nothing(task: Task, columns: slice, of_causal: bool) -> None:
    """Of the block that decides, the answer's entropy; of the other block, nothing."""
    method = steering(task)
    method.factors.decoder = Copying(columns)  # type: ignore[assignment]
    method.factors.mean, method.factors.deviation = torch.zeros(2), torch.ones(2)
    method.probabilities = lambda features: features.softmax(1)  # type: ignore[method-assign]
    with torch.no_grad():
        decides = float(method.influence(of_causal, 400, 50, generator(1)))
        other = float(method.influence(not of_causal, 400, 50, generator(2)))
    assert decides == pytest.approx(torch.tensor(2.0).log().item(), abs=0.01)
    assert other == pytest.approx(0, abs=0.02)


def test_quality_of_the_split(fitted: cecas.CECAS) -> None:
    found = fitted.quality(images())
    assert set(found.gates()) == {"answer_kept", "causal_influence", "spurious_influence"}
    assert found.values["largest_class"] == pytest.approx(0.25)
    assert 0 <= found.values["spurious_accuracy"] <= 1


def test_a_split_that_failed_is_trained_again(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"epochs": 1, "epoch_steps": 2, "auxiliary_epochs": 1, "restarts": 2}

    def fitted_with(*influences: tuple[float, float]) -> cecas.CECAS:
        options = cecas.Options.model_validate({"kind": "cecas", **STEPS, **tiny})
        method = cecas.CECAS(options, task)
        told = iter(influences)
        monkeypatch.setattr(method, "influences", lambda features: next(told))
        method.fit(images())
        return method

    def weights(method: cecas.CECAS) -> Tensor:
        return torch.cat([value.flatten() for value in method.factors.encoder.parameters()])

    first = fitted_with((0.9, 0.0))
    assert first.restart == 0
    failed = fitted_with((0.1, 0.0), (0.0, 0.0), (0.05, 0.0))
    assert failed.restart == 0 and torch.equal(weights(failed), weights(first))
    # S may not tell the label, however large the influence of C
    second = fitted_with((0.95, 0.2), (0.85, 0.0))
    assert second.restart == 1 and not torch.equal(weights(second), weights(first))


def test_the_pre_explanation_must_be_of_the_same_attack() -> None:
    ours = cecas.Options.model_validate({"kind": "cecas", **STEPS, "pre_explanation": "ace"})
    same = ace.Options.model_validate({"kind": "ace", **STEPS, "dilation": 15})
    assert ours.builds_on() == "ace" and ours.cannot_build_on(same) is None
    other = same.model_copy(update={"iterations": 6, "l2": 0.1})
    assert ours.cannot_build_on(other) == "attacks with other values of iterations, l2"


# DiME


def guided(task: Task, **options: Any) -> dime.DiME:
    given = {"kind": "dime", "schedule": 20, "steps": 4, **options}
    return dime.DiME(dime.Options.model_validate(given), task)


def test_dime_without_guidance_is_sampling(task: Task, x: Tensor) -> None:
    free = guided(task, guidance=(0.0,), perceptual=0, l1=0)
    start = torch.randn(x.shape, generator=generator(2))
    random = randomness(len(x))
    found = free.guided(x, labels(len(x))[1], start, 0.0, random)
    # the unguided runs inside draw from the same generators; drawn again, step by step
    again = randomness(len(x))
    v = start
    with torch.inference_mode():
        for place in reversed(range(4)):
            noise = None
            if place:
                noise = torch.stack([torch.randn(x.shape[1:], generator=one) for one in again])
            v = free.network.reverse(v, free.levels[place], noise)
            for _ in range(place - 1):
                for one in again:
                    torch.randn(x.shape[1:], generator=one)
    torch.testing.assert_close(found, ((v + 1) / 2).clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_dime_calls_the_network_a_triangular_number_of_times(task: Task, x: Tensor) -> None:
    method = guided(task, guidance=(1.0,))
    calls = 0
    whole = method.network.statistics

    def counted(v: Tensor, level):
        nonlocal calls
        calls += 1
        return whole(v, level)

    method.network.statistics = counted  # type: ignore[method-assign]
    try:
        explain(method, x)
    finally:
        del method.network.statistics
    assert calls == 4 * 5 // 2


class Brightness(nn.Module):
    """Class 1 if an image is brighter than a half."""

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - brightness, brightness - 0.5], dim=1)


def test_dime_tries_again_only_what_has_not_flipped(task: Task) -> None:
    method = guided(replace(task, classifier=Brightness()), guidance=(0.1, 0.3, 0.5))
    tried: list[int] = []

    def brighten(x: Tensor, target: Tensor, noised: Tensor, weight: float, random) -> Tensor:
        tried.append(len(x))
        assert len(random) == len(x) == len(noised)
        return x + weight

    method.guided = brighten  # type: ignore[method-assign]
    x = torch.tensor([0.45, 0.3, 0.1, -0.2])[:, None, None, None].expand(-1, 1, SIDE, SIDE)
    found = method.explain(x, *labels(4), randomness(4))
    assert tried == [4, 3, 2]
    assert found.found.tolist() == [True, True, True, False]
    end = found.counterfactual.mean(dim=(1, 2, 3))
    torch.testing.assert_close(end, torch.tensor([0.55, 0.6, 0.6, 0.3]))


def test_dime_moves_towards_the_target(task: Task, x: Tensor) -> None:
    wanted = labels(len(x))[1]
    start = torch.randn(x.shape, generator=generator(2)) * 0.1 + 2 * x - 1
    probability = []
    for weight in (0.0, 200.0):
        method = guided(task, guidance=(weight,), perceptual=0, l1=0)
        found = method.guided(x, wanted, start, weight, randomness(len(x)))
        probability.append(task.classifier(found).softmax(1)[:, 1].mean())
    assert probability[1] > probability[0]
