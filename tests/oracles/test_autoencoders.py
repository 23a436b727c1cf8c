from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, MetricContext
from counterlens.metrics.im import InterpretabilityMetrics
from counterlens.metrics.im import Options as ImOptions
from counterlens.oracles import base, train
from counterlens.oracles.autoencoders import Autoencoders, fc64, vl_all, vl_class

CPU = torch.device("cpu")
SMALL = {"kind": "autoencoders", "class_epochs": 40, "all_epochs": 20, "batch_size": 16}
SMALL |= {"classes": (0, 1)}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_architectures() -> None:
    torch.manual_seed(1)
    x = torch.rand(2, 1, 28, 28)
    layers = 784 * 128 + 128 + 128 * 64 + 64 + 64 * 128 + 128 + 128 * 784 + 784
    assert parameters(fc64((1, 28, 28))) == layers
    assert parameters(vl_all(1)) == 5250
    for network in (fc64((1, 28, 28)), vl_all(1), vl_class(1)):
        assert network(x).shape == x.shape
        assert network(x - 50).min() < 0  # linear output
    odd = torch.rand(2, 1, 17, 23)
    for network in (vl_all(1), vl_class(1)):
        assert network(odd).shape == odd.shape
    assert torch.nn.Sequential(*[*vl_class(1)][:7])(x).shape == (2, 8, 7, 7)
    assert fc64((1, 28, 28))[:4](x).shape == (2, 64)


def test_the_stage_trains_saves_and_loads(experiment, prepared) -> None:
    e = experiment({"autoencoders": SMALL})
    train.run(e.models, "autoencoders", CPU)
    folder = layout.oracle("tiny", "autoencoders")
    card = json.loads((folder / "card.json").read_text())
    curve = pd.read_csv(folder / "training.csv")
    assert list(curve["epoch"]) == list(range(1, 41))
    assert curve["all"].notna().sum() == 20 and curve["0"].notna().all()
    assert curve["0"].iloc[-1] < 0.2 * curve["0"].iloc[0]
    assert set(card["reconstruction_mse"]) == {"all", "0", "1"}
    assert not layout.CHECKPOINTS.exists() or not list(layout.CHECKPOINTS.iterdir())

    oracle = base.load(e.models, "autoencoders", CPU)
    assert isinstance(oracle, Autoencoders)
    assert not any(parameter.requires_grad for parameter in oracle.networks.parameters())
    test = prepared["test"]
    for label in (0, 1):
        own, other = (test.images[test.labels == k] for k in (label, 1 - label))
        error, foreign = (
            (oracle.reconstruct(x, label) - (2 * x - 1)).square().mean() for x in (own, other)
        )
        assert error == pytest.approx(card["reconstruction_mse"][str(label)], rel=1e-4)
        assert error < 0.3 * foreign
    whole = oracle.reconstruct(test.images, None)
    torch.testing.assert_close(oracle.reconstruct(test.images, None, batch_size=7), whole)

    # a real image of the target class is better explained by the target's auto-encoder
    ones = CounterfactualSet("tiny", "m", 0, 1, counterfactual=test.images[test.labels == 1])
    context = MetricContext(torch.nn.Identity(), {"autoencoders": oracle})
    found = InterpretabilityMetrics(ImOptions(kind="im"), context).per_image(ones)
    assert found["im1"].mean() < 0.5


def test_the_same_seed_gives_the_same_bytes_and_a_class_does_not_depend_on_the_others(
    experiment, prepared
) -> None:
    short = {**SMALL, "class_epochs": 2, "all_epochs": 1}
    path = layout.oracle("tiny", "autoencoders") / "model.safetensors"
    train.run(experiment({"autoencoders": short}).models, "autoencoders", CPU)
    first = path.read_bytes()
    train.run(experiment({"autoencoders": short}).models, "autoencoders", CPU)
    assert path.read_bytes() == first
    images = prepared["test"].images
    both = base.load(experiment({"autoencoders": short}).models, "autoencoders", CPU)
    more = experiment({"autoencoders": {**short, "classes": (2, 0, 1)}}).models
    train.run(more, "autoencoders", CPU)
    three = base.load(more, "autoencoders", CPU)
    assert isinstance(both, Autoencoders) and isinstance(three, Autoencoders)
    for label in (0, 1, None):
        assert torch.equal(both.reconstruct(images, label), three.reconstruct(images, label))
    assert three.reconstruct(images, 2).shape == images.shape


def test_a_killed_training_ends_with_the_same_bytes(experiment, prepared, monkeypatch) -> None:
    short = {**SMALL, "class_epochs": 4, "all_epochs": 2}
    e = experiment({"autoencoders": short})
    path = layout.oracle("tiny", "autoencoders") / "model.safetensors"
    train.run(e.models, "autoencoders", CPU)
    expected = path.read_bytes()
    path.unlink()

    from counterlens.oracles import autoencoders

    real, steps = autoencoders.batches, 0

    def dies(*arguments: int):
        nonlocal steps
        steps += 1
        if steps > 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train.Checkpoint, "due", lambda self: True)
    monkeypatch.setattr(autoencoders, "batches", dies)
    with pytest.raises(KeyboardInterrupt):
        train.run(e.models, "autoencoders", CPU)
    assert not path.exists() and list(layout.CHECKPOINTS.iterdir())
    counted = 0

    def counts(*arguments: int):
        nonlocal counted
        counted += 1
        return real(*arguments)

    monkeypatch.setattr(autoencoders, "batches", counts)
    train.run(e.models, "autoencoders", CPU)
    assert path.read_bytes() == expected
    assert counted == 4  # two epochs of two classes were left


def test_a_class_without_an_auto_encoder_is_named(experiment, prepared) -> None:
    oracle = base.create(experiment({"autoencoders": SMALL}).models, "autoencoders")
    assert isinstance(oracle, Autoencoders)
    with pytest.raises(UserError, match="no auto-encoder of class 2, only of 0, 1; name"):
        oracle.reconstruct(prepared["test"].images, 2)


def test_a_class_without_images_is_named(experiment, prepared) -> None:
    with pytest.raises(UserError, match="no training image of class 7"):
        wanted = {**SMALL, "classes": (0, 7)}
        train.run(experiment({"autoencoders": wanted}).models, "autoencoders", CPU)


def test_all_classes_have_an_auto_encoder_by_default(experiment, prepared) -> None:
    everything = {**SMALL, "classes": None}
    oracle = base.create(experiment({"autoencoders": everything}).models, "autoencoders")
    assert isinstance(oracle, Autoencoders) and oracle.classes == tuple(range(10))
    assert list(oracle.networks) == ["all", *map(str, range(10))]


def test_auto_encoders_of_what_a_classifier_tells(experiment, squares) -> None:
    """Without a classifier nothing is known of pictures without classes; with one, its labels."""
    content = {**SMALL, "classes": None, "class_epochs": 8, "all_epochs": 1}
    oracles = {"whole": content, "bright": {**content, "classifier": "lenet"}}
    models = experiment(oracles, classifier={"attribute": "bright"}, dataset=squares).models
    whole = base.create(models, "whole")
    assert isinstance(whole, Autoencoders) and list(whole.networks) == ["all"]
    train.run(models, "bright", CPU)
    oracle = base.load(models, "bright", CPU)
    assert isinstance(oracle, Autoencoders) and oracle.classes == (0, 1)
    test = load_split(layout.prepared("squares", "test"), attribute=2)
    for label in (0, 1):
        x = test.images[test.labels == label]
        own, other = (
            (oracle.reconstruct(x, k) - (2 * x - 1)).square().mean() for k in (label, 1 - label)
        )
        assert own < 0.5 * other


def test_the_vl_family_trains(experiment, prepared) -> None:
    e = experiment({"vl": {**SMALL, "family": "vl", "class_epochs": 3, "all_epochs": None}})
    train.run(e.models, "vl", CPU)
    curve = pd.read_csv(layout.oracle("tiny", "vl") / "training.csv")
    assert curve["all"].notna().sum() == 4  # the family's own default
    assert curve["1"].dropna().is_monotonic_decreasing
