"""The attribute model, SimSiam trained in-domain, and the loader of the released SimSiam."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from counterlens import layout, plugins
from counterlens.config import Models
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.metrics.base import quantise
from counterlens.oracles import base, simsiam_resnet50, train
from counterlens.oracles.attributes import Attributes
from counterlens.oracles.simsiam import Options as SimSiamOptions
from counterlens.oracles.simsiam import SimSiam, view
from counterlens.oracles.simsiam_resnet50 import SimSiamResNet50
from counterlens.runtime import files
from counterlens.runtime.seeding import generator

CPU = torch.device("cpu")


@pytest.fixture
def judges(squares, experiment) -> Models:
    """Of pictures with attributes alone; nobody asks the classifier."""
    oracles = {
        "attributes": {
            "kind": "attributes",
            "widths": (8, 16),
            "epochs": 12,
            "lr": 0.01,
            "batch_size": 20,
            "max_shift": 1,
            "flip": False,
        },
        "simsiam": {
            "kind": "simsiam",
            "widths": (8, 16),
            "dim": 16,
            "epochs": 30,
            "batch_size": 30,
            "lr": 0.2,
        },
    }
    return experiment(oracles, classifier={"attribute": "right"}, dataset=squares).models


def test_attributes_are_learned(judges: Models) -> None:
    train.run(judges, "attributes", CPU)
    card = json.loads((layout.oracle("tiny", "attributes") / "card.json").read_text())
    assert card["test_accuracy"] > 0.95
    assert set(card["test_accuracy_per_attribute"]) == {"right", "left", "bright"}
    oracle = base.load(judges, "attributes", CPU)
    assert isinstance(oracle, Attributes)
    data = load_split(layout.prepared("squares", "test"))
    assert data.attributes is not None
    found = oracle.answers(quantise(data.images))
    assert found.dtype == torch.bool and found.shape == (40, 3)
    assert (found == data.attributes.bool()).double().mean().item() == card["test_accuracy"]
    expected = torch.tensor([[1.0, -1, 0], [-1, 1, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(oracle.correlations, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="uint8"):
        oracle.answers(data.images)


def test_attributes_of_data_without_any(experiment) -> None:
    oracle = base.create(experiment({"attributes": {"kind": "attributes"}}).models, "attributes")
    with pytest.raises(UserError, match="'mnist' names no attributes"):
        oracle.load(CPU)


def test_simsiam_learns_without_collapse(judges: Models) -> None:
    train.run(judges, "simsiam", CPU)
    folder = layout.oracle("tiny", "simsiam")
    card = json.loads((folder / "card.json").read_text())
    gate = card["gates"]["output_deviation"]
    assert gate["passed"] and gate["value"] > 0.3
    losses = np.loadtxt(folder / "training.csv", delimiter=",", skiprows=1)[:, 1]
    assert losses[-1] < losses[0] - 0.2
    oracle = base.load(judges, "simsiam", CPU)
    assert isinstance(oracle, SimSiam)
    data = load_split(layout.prepared("squares", "test"), attribute=0)
    features = nn.functional.normalize(oracle.features(quantise(data.images)))
    assert features.shape == (40, 16)
    torch.testing.assert_close(
        nn.functional.normalize(oracle.features(quantise(data.images), batch_size=7)), features
    )
    # two pictures of the same kind are more alike than two of different kinds
    alike = features @ features.T
    kind = 2 * data.labels + torch.arange(40) // 2 % 2
    same = kind[:, None] == kind
    assert alike[same].mean() > alike[~same].mean() + 0.1


def test_views_are_images_of_their_own() -> None:
    options = SimSiamOptions(kind="simsiam", flip=True)
    x = torch.rand(6, 3, 20, 24, generator=generator(1))
    found = view(x, options, generator(2))
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    assert (found - x).abs().mean() > 0.05
    whole = options.model_copy(update={"least_scale": 1.0, "jitter": 0.0, "flip": False})
    torch.testing.assert_close(view(x, whole, generator(2)), x, atol=1e-4, rtol=0)


# The released network


def small_encoder() -> nn.Module:
    """A network with the released one's names, small enough for a test."""
    from torchvision.models.resnet import BasicBlock, ResNet

    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.fc = nn.Sequential(  # type: ignore[assignment]
        nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8, affine=False)
    )
    return network


def released(path: Path, prefix: str = "module.encoder.") -> nn.Module:
    torch.manual_seed(0)
    network = small_encoder().eval()
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    state["module.predictor.0.weight"] = torch.zeros(2, 8)
    torch.save({"epoch": 100, "arch": "resnet50", "state_dict": state}, path)
    return network


def loaded(experiment, **options: object) -> SimSiamResNet50:
    e = experiment({"simsiam-resnet50": {"kind": "simsiam-resnet50", **options}})
    oracle = base.load(e.models, "simsiam-resnet50", CPU)
    assert isinstance(oracle, SimSiamResNet50)
    return oracle


def test_a_released_checkpoint(tmp_path: Path, monkeypatch, experiment) -> None:
    path = tmp_path / "checkpoint_0099.pth.tar"
    network = released(path)
    monkeypatch.setattr(simsiam_resnet50, "encoder", small_encoder)
    oracle = loaded(experiment, file=str(path), sha256=files.sha256(path), batch_size=2)
    assert oracle.unavailable is None and oracle.standard
    images = torch.randint(0, 256, (5, 3, 40, 32), generator=generator(1)).to(torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        expected = network((images.float() / 255 - mean) / deviation)
    torch.testing.assert_close(oracle.features(images), expected, atol=1e-4, rtol=1e-4)
    grey = images[:, :1]
    torch.testing.assert_close(
        oracle.features(grey), oracle.features(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
    )


def test_no_checkpoint_named(experiment) -> None:
    oracle = loaded(experiment)
    assert oracle.unavailable is not None and "set `file` and `sha256`" in oracle.unavailable
    assert not plugins.options_class("oracles", "simsiam-resnet50").trained  # type: ignore[attr-defined]


def test_a_checkpoint_that_is_none(tmp_path: Path, monkeypatch, experiment) -> None:
    monkeypatch.setattr(simsiam_resnet50, "encoder", small_encoder)
    path = tmp_path / "checkpoint.pth.tar"
    with pytest.raises(UserError, match="no such file"):
        loaded(experiment, file=str(path), sha256="a" * 64)
    released(path, prefix="encoder.")
    with pytest.raises(UserError, match="its SHA-256 is"):
        loaded(experiment, file=str(path), sha256="a" * 64)
    with pytest.raises(UserError, match="is no SimSiam encoder"):
        loaded(experiment, file=str(path), sha256=files.sha256(path))
    torch.save({"state_dict": Path("code")}, path)
    with pytest.raises(UserError, match="no checkpoint of tensors alone"):
        loaded(experiment, file=str(path), sha256=files.sha256(path))


def test_the_whole_encoder_has_a_projector_of_2048() -> None:
    network = simsiam_resnet50.encoder().eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2048)
    assert "fc.6.bias" in network.state_dict() and "fc.7.weight" not in network.state_dict()
