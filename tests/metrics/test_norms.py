"""L1 and L2 norms."""

from __future__ import annotations

import pytest
import torch

from counterlens.metrics.base import MetricContext
from counterlens.metrics.norms import Norms, Options

OPTIONS = Options(kind="norms")


def test_by_hand(bright, make_set) -> None:
    query = torch.zeros(2, 3, 1, 2)
    made = query.clone()
    made[0, :, 0, 0] = torch.tensor([0.2, 0.4, 0.4])
    made[1, 0] = 1.0
    found = Norms(OPTIONS, MetricContext(bright)).per_image(make_set(made, query))
    assert found["l1_norm"] == pytest.approx([1.0, 2.0])
    assert found["l2_norm"] == pytest.approx([0.6, 2**0.5])


def test_images_are_those_that_are_saved(bright, make_set) -> None:
    query = torch.full((1, 1, 4, 4), 100 / 255)
    made = query + 0.4 / 255
    found = Norms(OPTIONS, MetricContext(bright)).per_image(make_set(made, query))
    assert found["l1_norm"] == 0 and found["l2_norm"] == 0


def test_they_are_sums_over_pixels(bright, random_set) -> None:
    cf = random_set(5, (3, 6, 6))
    found = Norms(OPTIONS, MetricContext(bright)).per_image(cf)
    change = (cf.query - cf.counterfactual).double()
    assert found["l1_norm"] == pytest.approx(change.abs().sum((1, 2, 3)).numpy(), abs=0.2)
    assert found["l2_norm"] == pytest.approx(change.square().sum((1, 2, 3)).sqrt().numpy(), abs=0.1)
    assert (found["l1_norm"] >= found["l2_norm"]).all()
