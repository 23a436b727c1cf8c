"""CD and MNAC against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from counterlens.errors import UserError
from counterlens.metrics.base import MetricContext, NotAvailable
from counterlens.metrics.cd import Cd, correlation, correlation_difference
from counterlens.metrics.cd import Options as CdOptions
from counterlens.metrics.mnac import Mnac
from counterlens.metrics.mnac import Options as MnacOptions


class Coded:
    """Attributes of an image are the bits of its first pixel."""

    def __init__(self, correlations: Tensor) -> None:
        self.correlations = correlations.double()

    def answers(self, images: Tensor) -> Tensor:
        code = images[:, 0, 0, 0].int()
        return (code[:, None] >> torch.arange(len(self.correlations)) & 1).bool()


def coded(codes: list[int]) -> Tensor:
    """Bright images (2 x 2) with a code in the first pixel."""
    x = torch.ones(len(codes), 1, 2, 2)
    x[:, 0, 0, 0] = torch.tensor(codes) / 255
    return x


@pytest.mark.parametrize("expected", [[0.0, 1.0, 0.5], [-0.3, 1.0, 0.2]])
def test_nothing_that_changes_correlates_with_nothing(expected: list[float]) -> None:
    found = correlation_difference(torch.zeros(8, 3), 1, torch.tensor(expected).double())
    assert found == pytest.approx(sum(map(abs, expected)))


@pytest.mark.parametrize("expected", [[0.0, 1.0, 0.5], [-0.3, 1.0, 0.2]])
def test_attributes_that_all_change_together(expected: list[float]) -> None:
    change = torch.tensor([1, -1, 1, 0, 0])[:, None].expand(-1, 3)
    found = correlation_difference(change, 1, torch.tensor(expected).double())
    assert found == pytest.approx(sum(abs(1 - value) for value in expected))


@given(seed=st.integers(0, 1000))
def test_correlation_is_that_of_numpy(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-1, 2, (20, 4))
    found = correlation(torch.from_numpy(values), torch.from_numpy(values[:, 2]))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(values.T)[2])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_cd_pools_directions_and_counts_only_what_flips(bright, make_set) -> None:
    correlations = torch.tensor([[1, 0.4, 0], [0.4, 1, -0.2], [0, -0.2, 1]])
    context = MetricContext(bright, {"attributes": Coded(correlations)}, attribute=1)
    there = make_set(coded([0b010, 0b011, 0b110]), coded([0, 0, 0b100]))
    back = make_set(
        torch.cat([0 * coded([0, 0]), coded([0b111])]),  # the last stays bright: it does not flip
        coded([0b011, 0b010, 0]),
        source=1,
        target=0,
    )
    change = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 1, 0], [-1, -1, 0], [0, -1, 0]])
    values = []
    for asked in (0, 1):  # which attribute is asked for is the classifier's
        context.attribute = asked
        expected = correlation_difference(change, asked, correlations[asked].double())
        found = Cd(CdOptions(kind="cd"), context).per_pair([there, back])
        assert found == {"cd_oracle": pytest.approx(expected)} and expected > 0.2
        values.append(expected)
    assert abs(values[0] - values[1]) > 0.1


def test_cd_of_nothing(bright, make_set) -> None:
    context = MetricContext(bright, {"attributes": Coded(torch.eye(3))}, attribute=1)
    dark = make_set(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2))
    with pytest.raises(NotAvailable, match="no counterfactual reaches"):
        Cd(CdOptions(kind="cd"), context).per_pair([dark])


def test_cd_of_classes_that_are_no_attribute(bright, make_set) -> None:
    context = MetricContext(bright, {"attributes": Coded(torch.eye(3))})
    cf = make_set(coded([0b010, 0b011]), coded([0, 0]))
    with pytest.raises(UserError, match="metric cd: needs a classifier of one of the dataset's"):
        Cd(CdOptions(kind="cd"), context).per_pair([cf])


def test_mnac_counts_changes(bright, make_set) -> None:
    context = MetricContext(bright, {"attributes": Coded(torch.eye(3))})
    cf = make_set(coded([0b000, 0b111, 0b011]), coded([0b000, 0b000, 0b110]))
    found = Mnac(MnacOptions(kind="mnac"), context).per_image(cf)
    assert found["mnac_oracle"].tolist() == [0, 3, 2]
