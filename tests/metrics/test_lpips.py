"""LPIPS: the in-domain distance by hand, the standard one against the package `lpips`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens import layout, plugins
from counterlens.classifiers.base import Classifier
from counterlens.config import Experiment
from counterlens.errors import UserError
from counterlens.metrics.base import MetricContext, NotAvailable
from counterlens.metrics.lpips import Lpips, Options
from counterlens.oracles import base as oracles
from counterlens.oracles.feature_extractor import FeatureExtractor
from counterlens.oracles.perceptual import WEIGHT, Perceptual
from counterlens.runtime import files

CPU = torch.device("cpu")


@pytest.fixture
def experiment(make_experiment: Callable[..., Experiment]) -> Experiment:
    return make_experiment(
        classifier={"kind": "gap-resnet", "widths": (3, 5)},
        oracles={"judge": {"kind": "feature-extractor"}, "perceptual": {"kind": "perceptual"}},
    )


def pairs(count: int, channels: int = 1, side: int = 28) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(count)
    first, second = (torch.rand(count, channels, side, side, generator=random) for _ in range(2))
    return first, second


def metric(oracle: object, extractor: str) -> Lpips:
    return Lpips(
        Options(kind="lpips", extractor=extractor),
        MetricContext(nn.Identity(), {extractor: oracle}),
    )


# In-domain


@pytest.fixture
def judge(experiment: Experiment, frozen) -> FeatureExtractor:
    """An oracle whose small network is not trained."""
    oracle = oracles.create(experiment.models, "judge")
    assert isinstance(oracle, FeatureExtractor)
    torch.manual_seed(5)
    options = experiment.classifier_options
    model = plugins.create("classifiers", options, Classifier, shape=(1, 28, 28), classes=10)
    oracle.model = frozen(model, lambda: model(pairs(8)[0]))
    return oracle


def test_the_in_domain_distance_by_hand(judge: FeatureExtractor, make_set) -> None:
    query, counterfactual = pairs(7)
    assert judge.model is not None
    with torch.no_grad():
        both = [judge.model.maps(images) for images in (query, counterfactual)]
    expected = np.zeros(7)
    for a, b in zip(*both, strict=True):  # one feature map after another
        for number in range(7):
            first, second = (m[number].double().numpy() for m in (a, b))
            total = 0.0
            for y in range(first.shape[1]):
                for x in range(first.shape[2]):
                    u, v = first[:, y, x], second[:, y, x]
                    u, v = (w / max(np.linalg.norm(w), 1e-12) for w in (u, v))
                    total += ((u - v) ** 2).sum()
            expected[number] += total / (first.shape[1] * first.shape[2])
    assert len(both[0]) == 2 and expected.min() > 0.01
    cf = make_set(counterfactual, query)
    found = metric(judge, "judge").per_image(cf)
    assert list(found) == ["lpips_oracle"] and found["lpips_oracle"].dtype == np.float64
    np.testing.assert_allclose(found["lpips_oracle"], expected, rtol=1e-4)
    parts = judge.perceptual_distance(query, counterfactual, batch_size=3)
    np.testing.assert_allclose(parts, expected, rtol=1e-4)


def test_identical_images_have_no_in_domain_distance(judge: FeatureExtractor, make_set) -> None:
    query, _ = pairs(3)
    found = metric(judge, "judge").per_image(make_set(query.clone(), query))
    assert found["lpips_oracle"].tolist() == [0, 0, 0]


def test_an_untrained_judge_is_refused(experiment: Experiment) -> None:
    oracle = oracles.create(experiment.models, "judge")
    assert isinstance(oracle, FeatureExtractor)
    with pytest.raises(ValueError, match="neither trained nor loaded"):
        oracle.perceptual_distance(*pairs(1))


# With the published weights


def write_record(file: Path | None, reason: str | None = None) -> None:
    record = {
        "name": WEIGHT,
        "available": file is not None,
        "file": file.as_posix() if file else None,
        "sha256": files.sha256(file) if file else "0" * 64,
        "reason": reason,
    }
    files.write_json(layout.weight(WEIGHT), record)


def perceptual(experiment: Experiment) -> Perceptual:
    oracle = oracles.load(experiment.models, "perceptual", CPU)
    assert isinstance(oracle, Perceptual)
    return oracle


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """LPIPS of its package on random SqueezeNet weights, which are also the weight's file."""
    from lpips import LPIPS
    from torchvision.models import squeezenet1_1

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    network = squeezenet1_1(weights=None)
    path = Path("data/weights/squeezenet.pth")
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    write_record(path)
    with warnings.catch_warnings():  # of how the package asks torchvision for no weights
        warnings.simplefilter("ignore")
        reference = LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    ours, theirs = convolutions(network.features), convolutions(reference.net)
    assert len(ours) == len(theirs) == 25
    for one, other in zip(ours, theirs, strict=True):
        other.load_state_dict(one.state_dict())
    return reference


def test_the_proportions_are_kept(published: nn.Module, experiment: Experiment) -> None:
    pair = [part[:, :, :20] for part in pairs(2, 3, 40)]
    with torch.no_grad():
        shown = [functional.interpolate(2 * x - 1, (64, 128), mode="bilinear") for x in pair]
        expected = published(*shown).flatten().double()
    found = perceptual(experiment).perceptual_distance(*pair)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 28), (3, 70)])
def test_the_standard_distance_is_the_package_s(
    published: nn.Module, experiment: Experiment, make_set, channels: int, side: int
) -> None:
    query, counterfactual = pairs(4, channels, side)
    with torch.no_grad():
        shown = [2 * x.repeat(1, 3 // channels, 1, 1) - 1 for x in (query, counterfactual)]
        if side < 64:  # enlarged; the others stay as they are
            shown = [functional.interpolate(x, (64, 64), mode="bilinear") for x in shown]
        expected = published(*shown).flatten().numpy()
    assert expected.min() > 1e-4 and expected.std() > 0
    oracle = perceptual(experiment)
    found = metric(oracle, "perceptual").per_image(make_set(counterfactual, query))
    assert list(found) == ["lpips"] and found["lpips"].dtype == np.float64
    np.testing.assert_allclose(found["lpips"], expected, rtol=1e-3, atol=1e-6)
    assert oracle.perceptual_distance(query, query).tolist() == [0] * 4


def test_it_is_the_same_in_batches(published: nn.Module, experiment: Experiment) -> None:
    first, second = pairs(5)
    oracle = perceptual(experiment)
    whole = oracle.perceptual_distance(first, second)
    oracle.options = oracle.options.model_copy(update={"batch_size": 2})
    torch.testing.assert_close(oracle.perceptual_distance(first, second), whole)
    assert oracle.network is not None
    assert not oracle.network.training and not any(
        p.requires_grad for p in oracle.network.parameters()
    )


def test_without_its_weight_it_is_not_available(
    experiment: Experiment, make_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(None, "mirror: has no file weights/squeezenet.pth")
    oracle = perceptual(experiment)
    first, second = pairs(2)
    with pytest.raises(NotAvailable) as caught:
        metric(oracle, "perceptual").per_image(make_set(second, first))
    assert caught.value.reason == f"{WEIGHT}: mirror: has no file weights/squeezenet.pth"


def test_only_the_published_network_has_the_standard_name(
    judge: FeatureExtractor, experiment: Experiment, published: nn.Module, make_set
) -> None:
    first, second = pairs(2)
    cf = make_set(second, first)
    for oracle, name in ((judge, "perceptual"), (perceptual(experiment), "judge")):
        with pytest.raises(UserError, match=f"oracle {name}: only an oracle of kind 'perceptual'"):
            metric(oracle, name).per_image(cf)


def test_columns_and_weight() -> None:
    standard, own = Options(kind="lpips"), Options(kind="lpips", extractor="judge")
    for options, column, oracle in (
        (standard, "lpips", "perceptual"),
        (own, "lpips_oracle", "judge"),
    ):
        assert [(c.name, c.direction) for c in options.columns()] == [(column, "down")]
        assert options.oracles() == (oracle,) and options.paired
    assert plugins.options_class("oracles", "perceptual").weights == (WEIGHT,)  # type: ignore[attr-defined]
