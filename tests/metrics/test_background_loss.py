"""The loss of the background, Eq. 12, and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from counterlens.metrics.background_loss import BackgroundLoss, Options
from counterlens.metrics.base import CounterfactualSet, MetricContext, NotAvailable


@pytest.fixture
def judge(bright):
    return lambda **options: BackgroundLoss(
        Options(kind="background-loss", **options), MetricContext(bright)
    )


def kept(make_set, query: torch.Tensor, noisy: torch.Tensor, mask: torch.Tensor):
    extras = {"reconstruction": noisy, "reconstruction_clean": query, "edit_mask": mask}
    return make_set(torch.zeros_like(query), query, extras=extras)


def test_by_hand(judge, make_set) -> None:
    query = torch.zeros(2, 3, 2, 2)
    noisy = query.clone()
    noisy[0, 0, 0, 0] = 0.6  # outside
    noisy[0, :, 1] = 1.0  # inside the region
    noisy[1] = 0.5
    mask = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(2, 1, 2, 2)
    found = judge().per_image(kept(make_set, query, noisy, mask))
    assert found["background_loss"] == pytest.approx([0.36 / 3 / 2, 0.25])
    assert found["background_loss_clean"].tolist() == [0, 0]


def test_without_background_there_is_no_loss(judge, make_set) -> None:
    query = torch.zeros(2, 1, 2, 2)
    mask = torch.ones(2, 1, 2, 2)
    with pytest.raises(NotAvailable, match="there is no background"):
        judge().per_image(kept(make_set, query, query + 1, mask))
    mask[1, 0, 0, 0] = 0
    found = judge().per_image(kept(make_set, query, query + 1, mask))
    assert found["background_loss"].tolist() == [0, 1]


def test_the_interval_is_the_normal_one(judge, make_set) -> None:
    random = torch.Generator().manual_seed(1)
    query = torch.zeros(30, 1, 3, 3)
    noisy = torch.rand(query.shape, generator=random)
    sets = [
        kept(make_set, query[rows], noisy[rows], torch.zeros(len(query[rows]), 1, 3, 3))
        for rows in (slice(20), slice(20, None))
    ]
    losses = noisy.double().square().mean((1, 2, 3)).numpy()
    found = judge().per_pair(sets)
    assert found["background_loss_sampled"] == pytest.approx(losses.mean())
    wide = 1.96 * losses.std(ddof=1) / np.sqrt(30)
    assert found["background_interval"] == pytest.approx(wide)
    fewer = judge(samples=10).per_pair(sets)
    assert fewer["background_loss_sampled"] != found["background_loss_sampled"]
    assert fewer == judge(samples=10).per_pair(sets)
    assert fewer["background_interval"] > wide


def test_a_method_that_reconstructs_nothing(judge, random_set) -> None:
    cf: CounterfactualSet = random_set()
    for judged in (judge().per_image, lambda one: judge().per_pair([one])):
        with pytest.raises(NotAvailable, match="keeps no reconstruction"):
            judged(cf)
