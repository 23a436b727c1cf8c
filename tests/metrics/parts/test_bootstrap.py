from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterlens.metrics.parts.bootstrap import mean_interval

finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(finite, min_size=1, max_size=60), st.integers(0, 5))
def test_interval_lies_within_the_values_and_is_repeatable(values: list[float], seed: int) -> None:
    low, high = mean_interval(values, resamples=200, seed=seed)
    assert min(values) <= low <= high <= max(values)
    assert (low, high) == mean_interval(values, resamples=200, seed=seed)


def test_one_value_and_equal_values_have_no_width() -> None:
    assert mean_interval([0.1]) == (0.1, 0.1)
    assert mean_interval(np.full(1000, 0.1)) == (0.1, 0.1)


@pytest.mark.parametrize("distinct", [True, False])
def test_normal_theory_agrees_for_a_large_sample(distinct: bool) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(2, 0.5, 4000) if distinct else (rng.random(4000) < 0.9).astype(float)
    low, high = mean_interval(values)
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_more_confidence_is_wider_and_seeds_differ() -> None:
    values = np.random.default_rng(0).random(50)
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0, 2.0]]])
def test_impossible_values_are_refused(values: list) -> None:
    with pytest.raises(ValueError, match=r"finite|non-empty"):
        mean_interval(values)


@pytest.mark.parametrize("keywords", [{"confidence": 1.0}, {"resamples": 0}])
def test_impossible_settings_are_refused(keywords: dict) -> None:
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], **keywords)


def test_no_torch_is_imported() -> None:
    code = "import counterlens.metrics.parts.bootstrap, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
