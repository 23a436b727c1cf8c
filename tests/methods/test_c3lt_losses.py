"""Each loss of C3LT (spec 1.2) against its formula written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from counterlens.methods.c3lt import C3LT, Objective

from .c3lt_by_hand import ByHand, moved_far


def losses(method: C3LT, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    with torch.no_grad():
        return {name: float(value) for name, value in Objective(method)(*batch).items()}


@pytest.mark.parametrize("steps", [1, 2])
def test_the_losses_against_their_formulas(create, batch, steps: int) -> None:
    method = moved_far(create("c3lt", steps=steps))
    hand = ByHand(method, *batch)
    expected = {
        "classification": hand.classification(),
        "proximity": 0.5 * (hand.proximity(hand.x, hand.x_cf) + hand.proximity(hand.y, hand.y_cf)),
        "cycle": hand.cycle(),
        "adversarial": hand.adversarial(),
    }
    assert losses(method, batch) == pytest.approx(expected, rel=2e-4)
    assert all(value > 0 for value in expected.values())


@pytest.mark.parametrize(
    ("change", "name", "formula"),
    [
        (
            {"proximity": "paper"},
            "proximity",
            lambda b: (b.paper_proximity(b.x, b.x_cf) + b.paper_proximity(b.y, b.y_cf)) / 2,
        ),
        (
            {"smoothness_weight": 2, "entropy_weight": 3},
            "proximity",
            lambda b: (b.proximity(b.x, b.x_cf, 2, 3) + b.proximity(b.y, b.y_cf, 2, 3)) / 2,
        ),
        (
            {"proximity_reference": "reconstruction"},
            "proximity",
            lambda b: (b.proximity(b.x_rec, b.x_cf) + b.proximity(b.y_rec, b.y_cf)) / 2,
        ),
        ({"cycle": "paper"}, "cycle", lambda b: b.paper_cycle()),
        ({"adversarial": "saturating"}, "adversarial", lambda b: b.adversarial(saturating=True)),
        ({"classification": "hinge"}, "classification", lambda b: b.hinge(0.05)),
        (
            {"classification": "hinge", "margin": 0.9},
            "classification",
            lambda b: b.hinge(0.9),
        ),
    ],
)
def test_the_variants_against_their_formulas(
    create, batch, change: dict[str, Any], name: str, formula: Callable[[ByHand], float]
) -> None:
    usual = losses(moved_far(create("c3lt")), batch)
    method = moved_far(create("c3lt", **change))
    found = losses(method, batch)
    assert found[name] == pytest.approx(formula(ByHand(method, *batch)), rel=2e-4)
    assert abs(found[name] - usual[name]) > 1e-3
    assert {k: v for k, v in found.items() if k != name} == pytest.approx(
        {k: v for k, v in usual.items() if k != name}
    )


@pytest.mark.parametrize("change", [{}, {"proximity": "paper"}])
def test_no_change_has_no_proximity_loss(create, batch, change: dict[str, Any]) -> None:
    """The released code divides 0 by 0 here."""
    x = 2 * batch[0] - 1
    counterfactual = x.clone().requires_grad_(True)
    value = Objective(create("c3lt", **change)).proximity(x, counterfactual)
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    value.backward()
    assert counterfactual.grad is not None and counterfactual.grad.isfinite().all()
    one = x.clone()
    one[0, 0, 3, 3] += 0.5
    assert Objective(create("c3lt", **change)).proximity(x, one) > 1e-4


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ((0.0, 0.0, 0.0), {"classification"}),
        ((0.1, 0.0, 0.0), {"classification", "proximity"}),
        ((0.0, 0.1, 0.0), {"classification", "cycle"}),
        ((0.0, 0.0, 0.1), {"classification", "adversarial"}),
        ((0.1, 0.1, 0.0), {"classification", "proximity", "cycle"}),
    ],
)
def test_terms_of_weight_zero_are_absent(
    create, batch, weights: tuple[float, float, float], names: set[str]
) -> None:
    change = dict(zip(("alpha", "beta", "gamma"), weights, strict=True))
    whole = losses(moved_far(create("c3lt")), batch)
    found = losses(moved_far(create("c3lt", **change)), batch)
    assert set(found) == names
    assert found == pytest.approx({name: whole[name] for name in names}, rel=1e-4)


def test_bfloat16_is_close(create, batch) -> None:
    exact = losses(moved_far(create("c3lt")), batch)
    assert losses(moved_far(create("c3lt", precision="bf16")), batch) == pytest.approx(
        exact, rel=0.05
    )
