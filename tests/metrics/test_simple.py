"""Validity and proximity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterlens.metrics import oracle_validity, proximity, validity
from counterlens.metrics.base import CounterfactualSet, MetricContext

VALIDITY = validity.Options(kind="validity")
PROXIMITY = proximity.Options(kind="proximity")


def test_validity_is_the_classifiers_answer(bright, make_set) -> None:
    cf = make_set(torch.tensor([0.9, 0.1, 0.6, 0.4]).reshape(4, 1, 1, 1).expand(-1, -1, 3, 3))
    metric = validity.Validity(VALIDITY, MetricContext(bright))
    assert metric.per_image(cf)["validity"].tolist() == [1, 0, 1, 0]
    back = make_set(cf.counterfactual, source=1, target=0)
    assert metric.per_image(back)["validity"].tolist() == [0, 1, 0, 1]
    assert metric.per_set(cf) == {}


def test_validity_is_not_quantised(bright, make_set) -> None:
    barely = torch.full((1, 1, 3, 3), 0.5 + 1e-5)
    metric = validity.Validity(VALIDITY, MetricContext(bright))
    assert metric.per_image(make_set(barely))["validity"] == [1]


def test_oracle_validity_is_the_answer_of_another_network(
    bright, make_set, pixel_extractor
) -> None:
    """Bright images with a dark first pixel: the classifier says 1, the oracle says 0."""
    images = torch.full((3, 1, 3, 3), 0.9)
    images[:, 0, 0, 0] = torch.tensor([0.2, 0.8, 0.51])
    metric = oracle_validity.OracleValidity(
        oracle_validity.Options(kind="oracle-validity"),
        MetricContext(bright, {"feature-extractor": pixel_extractor()}),
    )
    there, back = make_set(images), make_set(images, source=1, target=0)
    assert metric.per_image(there)["oracle_validity"].tolist() == [0, 1, 1]
    assert metric.per_image(back)["oracle_validity"].tolist() == [1, 0, 0]
    other = validity.Validity(VALIDITY, MetricContext(bright))
    assert other.per_image(there)["validity"].tolist() == [1, 1, 1]
    assert not metric.options.paired and metric.options.oracles() == ("feature-extractor",)


def test_proximity_by_hand(bright, make_set) -> None:
    query = torch.tensor([0.0, 0.5, 1.0, 0.25]).reshape(1, 1, 2, 2)
    cf = make_set(torch.tensor([1.0, 0.5, 0.5, 0.5]).reshape(1, 1, 2, 2), query)
    found = proximity.Proximity(PROXIMITY, MetricContext(bright)).per_image(cf)
    assert found["proximity"] == pytest.approx([1.75 / 4])
    assert found["proximity_pm1"] == pytest.approx([1.75 / 2])


@given(st.integers(0, 2**31), st.sampled_from([(1, 2, 3), (3, 4, 4)]))
def test_proximity_range_and_symmetry(seed: int, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(5, *shape, generator=generator) for _ in range(2))

    def measure(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
        cf = CounterfactualSet("e", "m", 0, 1, counterfactual=second, query=first)
        metric = proximity.Proximity(PROXIMITY, MetricContext(torch.nn.Identity()))
        return metric.per_image(cf)["proximity"]

    assert ((measure(a, b) >= 0) & (measure(a, b) <= 1)).all()
    np.testing.assert_array_equal(measure(a, b), measure(b, a))
    assert (measure(a, a) == 0).all()


def test_declared_facts() -> None:
    assert [column.name for column in PROXIMITY.columns()] == ["proximity", "proximity_pm1"]
    assert {column.direction for column in PROXIMITY.columns()} == {"down"}
    assert VALIDITY.columns()[0].direction == "up"
    assert PROXIMITY.paired and not VALIDITY.paired
