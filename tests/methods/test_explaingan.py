"""ExplainGAN: its losses by hand, the composition, the routing by the classifier's answer."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from counterlens.config import ClassifierOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.methods import explaingan
from counterlens.methods.explaingan import (
    Discriminators,
    ExplainGAN,
    Heads,
    Objective,
    compose,
    covered,
    indecision,
    squared_error,
    total_variation,
)
from counterlens.metrics.base import CounterfactualSet, MetricContext
from counterlens.metrics.cout import Cout, Options
from counterlens.runtime.training import Checkpoint


def state(method: ExplainGAN) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in method.trained().state_dict().items()}


def objective(method: ExplainGAN) -> Objective:
    torch.manual_seed(4)
    return Objective(method, Discriminators(method.options, method.task.shape))


# Terms by hand


def test_the_composition() -> None:
    x = torch.tensor([[[[-1.0, 0.5]], [[0.0, 1.0]]]])
    t = torch.tensor([[[[1.0, -0.5]], [[0.5, -1.0]]]])
    mask = torch.tensor([[[[0.25, 1.0]]]])
    expected = torch.tensor([[[[-0.5, -0.5]], [[0.125, -1.0]]]])
    torch.testing.assert_close(compose(x, t, mask), expected)
    assert torch.equal(compose(x, t, torch.zeros_like(mask)), x)
    assert torch.equal(compose(x, t, torch.ones_like(mask)), t)


def test_terms_of_the_mask() -> None:
    mask = torch.tensor([[[[0.0, 1.0], [0.5, 0.9]]], [[[0.0, 0.0], [0.0, 0.1]]]])
    torch.testing.assert_close(covered(mask, 0.05), torch.tensor([0.6, 0.05]))
    # |0.5 - 0| + |0.9 - 1| down, |1 - 0| + |0.9 - 0.5| across
    torch.testing.assert_close(total_variation(mask), torch.tensor([2.0, 0.2]))
    torch.testing.assert_close(indecision(mask), torch.tensor([math.sqrt(0.25 + 0.01), 0.1]))
    assert not indecision(torch.eye(4).expand(2, 1, 4, 4)).any()


def test_a_binary_mask_has_a_gradient() -> None:
    """The norm at zero."""
    mask = torch.eye(4)[None, None].requires_grad_(True)
    indecision(mask).sum().backward()
    assert mask.grad is not None and mask.grad.isfinite().all()


def test_squared_errors_are_summed_or_averaged_over_an_image() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.tensor([[[[1.0, 2.0], [0.0, 0.0]]], [[[0.5] * 2] * 2]])
    torch.testing.assert_close(squared_error(a, b, "sum"), torch.tensor([5.0, 1.0]))
    torch.testing.assert_close(squared_error(a, b, "mean"), torch.tensor([1.25, 0.25]))


def made_by_hand(x: Tensor) -> tuple[Heads, Tensor]:
    random = torch.Generator().manual_seed(1)
    r, t = (2 * torch.rand(x.shape, generator=random) - 1 for _ in range(2))
    mask = torch.rand(len(x), 1, *x.shape[2:], generator=random)
    return Heads(r, t, mask), compose(x, t, mask)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_losses_against_their_formulas(create, shapes, models, reduction: str) -> None:
    """Spec 4.1 in numpy, of images x of both classes, four each."""
    method = create("explaingan", reduction=reduction, kappa=0.51)
    loss_of = objective(method)
    loss_of.critics.eval()  # batch statistics depend on which images are shown together
    data = shapes(8, (4, 9), seed=2)
    x = 2 * data.images[data.labels.argsort(stable=True)] - 1
    made, composed = made_by_hand(x)
    with torch.no_grad():
        found = {name: float(value) for name, value in loss_of(x, made, composed).items()}
    images, r, t, m = (
        part.double().numpy() for part in (x, made.reconstruction, made.transformed, made.mask)
    )
    shown = (1 - m) * images + m * t
    np.testing.assert_allclose(composed, shown, atol=1e-6)
    logits = models["lenet"](torch.tensor((shown + 1) / 2).float()).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    over = {"sum": lambda v: v.sum((1, 2, 3)), "mean": lambda v: v.mean((1, 2, 3))}[reduction]

    def p(pictures: Any, side: int) -> Any:
        with torch.no_grad():
            logit = loss_of.critics(torch.tensor(pictures).float(), side).double().numpy()
        return 1 / (1 + np.exp(-logit))

    half = (slice(0, 4), slice(4, 8))
    adversarial, critic = 0.0, 0.0
    for side in (0, 1):
        own, other = half[side], half[1 - side]
        fakes = [p(r[own], side), p(t[other], side), p(shown[other], side)]
        adversarial += 0.5 * sum(-np.log(v).mean() for v in fakes)
        critic -= 0.5 * sum(np.log(1 - v).mean() for v in fakes)
        real = p(images[own], side)
        critic -= 0.5 * (0.9 * np.log(real) + 0.1 * np.log(1 - real)).mean()
    expected = {
        "adversarial": adversarial,
        "classification": -(log_p[:4, 9].sum() + log_p[4:, 4].sum()) / 8,
        "reconstruction": over((images - r) ** 2).mean(),
        "consistency": over(((1 - m) * (images - t)) ** 2).mean(),
        "count": np.maximum(m.mean((1, 2, 3)), 0.51).mean(),
        "smoothness": np.mean(
            [np.abs(np.diff(i, axis=1)).sum() + np.abs(np.diff(i, axis=2)).sum() for i in m]
        ),
        "entropy": np.mean([math.sqrt((np.minimum(i, 1 - i) ** 2).sum()) for i in m]),
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert float(loss_of.critic(x, made, composed).detach()) == pytest.approx(critic, rel=1e-4)


def test_the_classification_loss_is_cut_off(create, shapes) -> None:
    x = 2 * shapes(4, (4, 9)).images - 1
    free = objective(create("explaingan")).classification(x)
    cut = objective(create("explaingan", largest_nll=1.0)).classification(x)
    assert (free > 1).any()
    torch.testing.assert_close(cut, free.clamp(max=1))


def test_terms_of_weight_zero_are_absent(create, shapes) -> None:
    x = 2 * shapes(4, (4, 9)).images - 1
    loss_of = objective(create("explaingan", adversarial=0, smoothness=0, count=0))
    assert set(loss_of(x, *made_by_hand(x))) == {
        "classification",
        "reconstruction",
        "consistency",
        "entropy",
    }


def test_the_paper_s_weights_are_the_defaults(create) -> None:
    weights = objective(create("explaingan")).weights
    assert weights.pop("count") == 1000 and set(weights.values()) == {1}


# Networks


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 21, 38), (1, 8, 9)])
def test_any_size(create, models, shape: tuple[int, int, int]) -> None:
    method = create("explaingan")
    task = SimpleNamespace(**{**vars(method.task), "shape": shape, "pair": (4, 9)})
    method = ExplainGAN(method.options, task)
    method.networks.eval()
    x = torch.rand(3, *shape)
    answer = method.explain(x, torch.full((3,), 4), torch.full((3,), 9))
    assert answer.counterfactual.shape == x.shape
    assert answer.extras["mask"].shape == (3, 1, *shape[1:])
    assert Discriminators(method.options, shape)(x, 1).shape == (3,)


def test_too_small_images_are_refused(create) -> None:
    options, lenet = create("explaingan").options, ClassifierOptions(kind="lenet")
    assert options.unsuited(SimpleNamespace(shape=(1, 8, 9)), lenet) is None
    said = options.unsuited(SimpleNamespace(shape=(1, 28, 7)), lenet)
    assert said == "images of 28x7 are too small, it needs at least 8 pixels a side"


def test_the_last_layer_of_the_discriminators_is_common(create) -> None:
    critics = objective(create("explaingan")).critics
    x = torch.rand(4, 1, 28, 28)
    assert not torch.equal(critics(x, 0), critics(x, 1))
    with torch.no_grad():
        for parameter in critics.last.parameters():
            parameter.zero_()
    assert not critics(x, 0).any() and not critics(x, 1).any()


def test_the_encoder_is_that_of_the_class_which_is_left(create, shapes) -> None:
    method = create("explaingan")
    method.networks.eval()
    x = shapes(3, (4,)).images
    with torch.inference_mode():
        made = method.networks(method.networks.encode(2 * x - 1, 0))
    expected = ((1 - made.mask) * (2 * x - 1) + made.mask * made.transformed + 1) / 2
    answer = method.explain(x, torch.full((3,), 4), torch.full((3,), 9))
    torch.testing.assert_close(answer.counterfactual, expected)
    assert torch.equal(answer.extras["mask"], made.mask)


def test_cout_inserts_the_pixels_of_the_mask_first(create, shapes) -> None:
    method = create("explaingan")
    x = shapes(2, (4,)).images
    answer = method.explain(x, torch.full((2,), 4), torch.full((2,), 9))
    mask = answer.extras["mask"]
    cf = CounterfactualSet("tiny", "explaingan", 4, 9, answer.counterfactual, x, answer.extras)
    context = MetricContext(method.task.classifier)
    inserted, steps = Cout(Options(kind="cout", steps=50), context).insertion(cf)
    # another order than that of the change
    change = CounterfactualSet("tiny", "explaingan", 4, 9, answer.counterfactual, x)
    other, _ = Cout(Options(kind="cout", steps=50), context).insertion(change)
    assert not torch.equal(inserted, other)
    flat = mask.reshape(2, -1)
    for row, order in zip(flat, inserted, strict=True):
        assert row[order == 1].min() >= row[order == steps].max()


# Training


def test_images_go_by_the_classifier_s_answer(create, shapes, monkeypatch) -> None:
    method = create("explaingan")
    data = shapes(4, (4, 9))
    assert data.labels.tolist() == [4, 9, 4, 9]
    answers = torch.nn.functional.one_hot(torch.tensor([9, 9, 7, 7]), 10).float()
    monkeypatch.setattr(method.task.classifier, "probabilities", lambda x: answers, raising=False)
    # a 4 taken for a 9 goes by the 9; where the answer is 7, the label decides
    assert method.sides(data).tolist() == [1, 1, 0, 1]
    answers = torch.nn.functional.one_hot(torch.tensor([9] * 4), 10).float()
    with pytest.raises(UserError, match=r"answers 4 on 0 of the training images"):
        method.fit(data)


def test_only_its_own_networks_are_trained(create, shapes, states) -> None:
    before, method = states(), create("explaingan")
    untouched = state(method)
    history = method.fit(shapes(24, (4, 9)))
    assert states() == before
    counters = {name for name in untouched if name.endswith("num_batches_tracked")}
    moved = {name for name, value in state(method).items() if value != untouched[name]}
    assert moved >= {*untouched} - counters
    assert not any(p.requires_grad for p in method.trained().parameters())
    assert {"discriminator", "mask_area"} < set(history[0])
    assert 0 <= history[0]["mask_area"] <= 1


def test_training_reduces_the_loss(create, shapes) -> None:
    method = create("explaingan", epochs=12, lr=2e-3, width=8)
    history = method.fit(shapes(64, (4, 9)))
    assert history[-1]["reconstruction"] < 0.7 * history[0]["reconstruction"]
    assert history[-1]["consistency"] < 0.7 * history[0]["consistency"]


def test_a_killed_training_ends_with_the_same_bytes(
    create, shapes, kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data: ImageSet = shapes(40, (4, 9))
    # every image on its own side, so that two orders are drawn in each epoch
    monkeypatch.setattr(ExplainGAN, "sides", lambda self, data: (data.labels == 9).long())
    whole = create("explaingan", epochs=4)
    history = whole.fit(data)
    with pytest.raises(kill(explaingan, 3)):
        create("explaingan", epochs=4).fit(data, Checkpoint("explaingan", [], seconds=0))
    kept = Checkpoint("explaingan", [], seconds=0)
    saved = kept.load()
    assert saved is not None and len(saved["history"]) == 1
    resumed = create("explaingan", epochs=4)
    assert resumed.fit(data, kept) == history and state(resumed) == state(whole)


def test_bfloat16_is_close(create, shapes) -> None:
    x = 2 * shapes(8, (4, 9)).images - 1
    found = []
    for precision in ("fp32", "bf16"):
        loss_of = objective(create("explaingan", precision=precision))
        with torch.no_grad():
            found.append({k: float(v) for k, v in loss_of(x, *loss_of.drawn(x)).items()})
    assert found[1] == pytest.approx(found[0], rel=0.05)
