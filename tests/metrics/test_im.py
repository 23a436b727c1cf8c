from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, MetricContext
from counterlens.metrics.im import InterpretabilityMetrics, Options

OPTIONS = Options(kind="im")


class Shrinks:
    """Auto-encoders that multiply the [-1, 1] image by a number of their class."""

    def __init__(self, factors: dict[int | None, float]) -> None:
        self.factors = factors

    def reconstruct(self, images: Tensor, label: int | None) -> Tensor:
        return self.factors[label] * (2 * images - 1)


def measure(cf: CounterfactualSet, oracle: object, options: Options = OPTIONS) -> dict:
    context = MetricContext(torch.nn.Identity(), {options.autoencoders: oracle})
    return InterpretabilityMetrics(options, context).per_image(cf)


def test_by_hand(make_set) -> None:
    # in [-1, 1]: (1, -1, 0.5, 0); ‖x‖² = 2.25, ‖x‖₁ = 2.5
    cf = make_set(torch.tensor([1.0, 0.0, 0.75, 0.5]).reshape(1, 1, 2, 2), source=0, target=1)
    found = measure(cf, Shrinks({1: 0.5, 0: 0.25, None: 0.75}))
    assert found["im1"] == pytest.approx([0.25 / 0.5625])
    assert found["im2"] == pytest.approx([0.0625 * 2.25 / 2.5])


def test_direction_matters(make_set) -> None:
    images = torch.rand(3, 1, 4, 4)
    oracle = Shrinks({1: 0.9, 0: 0.1, None: 0.5})
    there = measure(make_set(images, source=0, target=1), oracle)["im1"]
    back = measure(make_set(images, source=1, target=0), oracle)["im1"]
    assert (there < 1).all()
    np.testing.assert_allclose(there * back, 1)


def test_a_perfect_source_autoencoder_is_finite(make_set) -> None:
    cf = make_set(torch.rand(2, 1, 4, 4))
    found = measure(cf, Shrinks({1: 0.5, 0: 1.0, None: 1.0}))
    assert np.isfinite(found["im1"]).all() and (found["im1"] > 1e6).all()


def test_a_grey_image_is_finite(make_set) -> None:
    found = measure(make_set(torch.full((1, 1, 4, 4), 0.5)), Shrinks({1: 0.5, 0: 0.2, None: 1.0}))
    assert found["im1"] == [0] and found["im2"] == [0]


@given(st.integers(0, 2**31))
def test_never_negative(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(3, generator=generator).tolist()
    images = torch.rand(4, 1, 3, 3, generator=generator)
    cf = CounterfactualSet("e", "m", 0, 1, counterfactual=images)
    before = images.clone()
    found = measure(cf, Shrinks(dict(zip([0, 1, None], factors, strict=True))))
    assert all((values >= 0).all() and len(values) == 4 for values in found.values())
    assert torch.equal(images, before)


def test_another_family_has_columns_of_its_own(make_set) -> None:
    options = Options(kind="im", autoencoders="vl")
    names = [column.name for column in options.columns()]
    assert names == ["im1_vl", "im2_vl"]
    found = measure(make_set(torch.rand(2, 1, 4, 4)), Shrinks({1: 1, 0: 0, None: 1}), options)
    assert list(found) == names
    assert options.oracles() == ("vl",)
    assert [column.name for column in OPTIONS.columns()] == ["im1", "im2"]
    assert OPTIONS.columns()[1].scale == 10


def test_a_missing_oracle_is_a_user_error(make_set) -> None:
    metric = InterpretabilityMetrics(OPTIONS, MetricContext(torch.nn.Identity()))
    with pytest.raises(UserError, match="autoencoders"):
        metric.per_image(make_set(torch.rand(2, 1, 4, 4)))
