"""Distance and overlap of several counterfactuals of one query."""

from __future__ import annotations

import pytest
import torch

from counterlens.metrics.base import MetricContext, NotAvailable
from counterlens.metrics.diversity import (
    Diversity,
    Options,
    intersection_over_union,
    valid_pairs,
)

OPTIONS = Options(kind="diversity", extractor="pixels")


@pytest.fixture
def judge(bright, pixel_extractor) -> Diversity:
    return Diversity(OPTIONS, MetricContext(bright, {"pixels": pixel_extractor()}))


def test_by_hand(judge, make_set) -> None:
    query = torch.zeros(2, 1, 2, 2)
    levels = torch.tensor([[1.0, 0.6, 0.2], [0.2, 0.2, 1.0]])  # bright ones are valid
    variants = levels[:, :, None, None, None].expand(2, 3, 1, 2, 2)
    masks = torch.zeros(2, 3, 1, 2, 2)
    masks[0, 0, :, 0] = 1
    masks[0, 1, :, 0, 0] = 1
    cf = make_set(query, query, extras={"variants": variants, "variant_masks": masks})
    found = judge.per_set(cf)
    assert found["diversity_oracle"] == pytest.approx(0.16)
    assert found["diversity_oracle_iou"] == pytest.approx(0.5)
    assert found["diversity_oracle_share"] == pytest.approx(0.5)
    assert set(found) == {column.name for column in OPTIONS.columns()}


def test_pairs_are_of_one_image_and_valid() -> None:
    first, second = valid_pairs(torch.tensor([[True, False, True], [True, True, True]]))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [
        (0, 2), (3, 4), (3, 5), (4, 5),
    ]  # fmt: skip
    assert len(valid_pairs(torch.ones(3, 1, dtype=torch.bool))[0]) == 0


def test_the_same_masks_overlap_wholly_and_empty_ones_too() -> None:
    masks = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[:, None, :, None]
    assert intersection_over_union(masks, masks).tolist() == [1, 1]
    assert intersection_over_union(masks, 1 - masks).tolist() == [0, 0]


def test_what_has_no_variants(judge, make_set) -> None:
    query = torch.zeros(2, 1, 2, 2)
    with pytest.raises(NotAvailable, match="one counterfactual per query"):
        judge.per_set(make_set(query, query))
    dark = torch.zeros(2, 3, 1, 2, 2)
    cf = make_set(query, query, extras={"variants": dark, "variant_masks": dark})
    with pytest.raises(NotAvailable, match="no query has two variants"):
        judge.per_set(cf)
