"""What a path intends against what the classifier finds, with numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from counterlens.metrics.base import CounterfactualSet, MetricContext, NotAvailable
from counterlens.metrics.faithfulness import Faithfulness, Options

OPTIONS = Options(kind="faithfulness")


class Corner(nn.Module):
    """Features are the first two pixels; the probabilities of three classes follow from them.

    Softmax of (log a, log b, log(1 - a - b)) is (a, b, 1 - a - b).
    """

    def features(self, x: Tensor) -> Tensor:
        return x

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.flatten(1)[:, :2]

    def classify(self, last_map: Tensor) -> Tensor:
        a, b = self.embed(last_map).T
        return torch.stack([a.log(), b.log(), (1 - a - b).log()], dim=1)


def step(a: float, b: float) -> Tensor:
    """An image in which the classifier finds (a, b, 1 - a - b)."""
    image = torch.full((1, 2, 2), 0.5)
    image[0, 0] = torch.tensor([a, b])
    return image


def path_set(make_set, found: list[list[tuple[float, float]]]) -> CounterfactualSet:
    """One path per list; everything is intended as it is found."""
    path = torch.stack([torch.stack([step(*point) for point in points]) for points in found])
    points = torch.tensor(found)
    intended = torch.cat([points, 1 - points.sum(2, keepdim=True)], dim=2)
    images = torch.full((len(found) + 1, 1, 2, 2), 0.5)  # one more, of which no path is kept
    extras = {"path": path, "path_intended": intended, "path_features": points.clone()}
    return make_set(images, images, source=0, target=1, extras=extras)


def measure(cf: CounterfactualSet, batch_size: int = 2048) -> dict[str, float]:
    return Faithfulness(OPTIONS, MetricContext(Corner(), batch_size=batch_size)).per_set(cf)


PATHS = [[(0.7, 0.2), (0.4, 0.4)], [(0.5, 0.25), (0.2, 0.7)]]


def test_a_path_that_does_as_intended_has_no_error(make_set) -> None:
    assert measure(path_set(make_set, PATHS)) == pytest.approx(
        {"feature_error": 0, "confidence_error": 0, "confidence_divergence": 0}, abs=1e-6
    )


@pytest.mark.parametrize("batch_size", [2048, 3])
def test_values_by_hand(make_set, batch_size: int) -> None:
    cf = path_set(make_set, PATHS)
    # one of four steps intends (0.5, 0.25, 0.25) where (0.25, 0.5, 0.25) is found
    cf.extras["path"][1, 0] = step(0.25, 0.5)
    cf.extras["path_features"][1, 0] = torch.tensor([0.25, 0.5])
    cf.extras["path_features"][0, 1, 1] += 0.8
    found = measure(cf, batch_size)
    assert found["feature_error"] == pytest.approx(0.8 / 8)  # of 4 steps with 2 features
    assert found["confidence_error"] == pytest.approx(0.25 / 4)  # of the target class alone
    # KL of what is found from what is intended: 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5)
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.25 * torch.log(torch.tensor(0.5))
    assert found["confidence_divergence"] == pytest.approx(float(expected) / 4, rel=1e-5)


def test_divergence_has_a_direction(make_set) -> None:
    cf = path_set(make_set, [[(0.5, 0.25)]])
    cf.extras["path"][0, 0] = step(0.125, 0.625)
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.125, 0.625, 0.25])
    forward, backward = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    assert abs(float(forward - backward)) > 0.05
    assert measure(cf)["confidence_divergence"] == pytest.approx(float(forward), rel=1e-5)


def test_intended_certainty_is_finite(make_set) -> None:
    cf = path_set(make_set, [[(0.25, 0.5)]])
    cf.extras["path_intended"][0, 0] = torch.tensor([0.0, 1.0, 0.0])
    found = measure(cf)
    assert found["confidence_divergence"] == pytest.approx(float(torch.tensor(2.0).log()))
    assert found["confidence_error"] == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["path", "path_intended", "path_features"])
def test_without_an_intended_path_it_is_not_available(make_set, missing: str) -> None:
    cf = path_set(make_set, PATHS)
    kept = {name: tensor for name, tensor in cf.extras.items() if name != missing}
    with pytest.raises(NotAvailable, match="intends no confidences along a path"):
        measure(replace(cf, extras=kept))
    assert OPTIONS.paired and {column.per for column in OPTIONS.columns()} == {"set"}
