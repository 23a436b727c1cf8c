"""The stage `generator`: its four files, for all classes and for a pair."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from counterlens import layout
from counterlens.classifiers import train as classifiers_train
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.generators import base, train
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def experiment(make_experiment, prepared):
    tiny = {"width": 4, "latent_dim": 8, "epochs": 2, "batch_size": 16}
    prepared(90, 30, (0, 4, 9))
    e = make_experiment(
        generators={
            "dcgan": {"kind": "dcgan", **tiny},
            "encoder": {"kind": "dcgan-encoder", "generator": "dcgan", **tiny},
        }
    )
    classifiers_train.run(e.models, e.classifier, CPU)
    return e


def test_the_stage(experiment, digests, kill, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"dcgan/all-classes/model\.safetensors: no such file"):
        train.run(experiment.models, "encoder", "4-9", CPU)
    train.run(experiment.models, "dcgan", "all-classes", CPU)
    train.run(experiment.models, "encoder", "4-9", CPU)
    written = digests()
    for name, scope in (("dcgan", "all-classes"), ("encoder", "4-9")):
        folder = layout.generator("tiny", name, scope)
        assert {path.name for path in folder.iterdir()} == {
            "model.safetensors",
            "card.json",
            "training.csv",
            "samples.png",
        }
        card = files.read_json(folder / "card.json")
        options = experiment.generators[name]
        assert (card["kind"], card["scope"], card["epochs"]) == (options.kind, scope, 2)
        assert card["options"] == options.model_dump(mode="json")
        assert set(card["gates"]) == set(card["quality"])
        assert pd.read_csv(folder / "training.csv")["epoch"].tolist() == [1, 2]
        assert Image.open(folder / "samples.png").size[0] == 2 * (8 * 30 - 2)
        model = base.load(experiment.models, name, scope, CPU)
        assert not model.training and not any(p.requires_grad for p in model.parameters())
        fresh = base.create(experiment.models, name)
        assert card["parameters"] == sum(p.numel() for p in fresh.parameters())

    # the encoder saw its pair only: the card's numbers are those of the pair's test images
    encoder = base.load(experiment.models, "encoder", "4-9", CPU)
    decoder = base.load(experiment.models, "dcgan", "all-classes", CPU)
    x = load_split(layout.prepared("mnist", "test"), (4, 9)).images
    error = (x - base.reconstructions(encoder, decoder, x)).abs().mean()
    card = files.read_json(layout.generator("tiny", "encoder", "4-9") / "card.json")
    assert card["quality"]["reconstruction_l1"] == pytest.approx(float(error), rel=1e-5)

    # killed and started again: the same bytes
    for path in layout.generator("tiny", "encoder", "4-9").iterdir():
        path.unlink()
    monkeypatch.setattr(train, "Checkpoint", lambda *a: Checkpoint(*a, seconds=0))
    module = importlib.import_module(type(encoder).__module__)
    with pytest.raises(kill(module, 2)):
        train.run(experiment.models, "encoder", "4-9", CPU)
    assert not list(layout.generator("tiny", "encoder", "4-9").iterdir())
    train.run(experiment.models, "encoder", "4-9", CPU)
    assert digests() == written


def test_a_generator_is_given_the_images_of_its_scope(
    experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(experiment.models, "dcgan", "all-classes", CPU)
    given: list[base.Training] = []
    encoder = type(base.create(experiment.models, "encoder"))
    original = encoder.fit
    monkeypatch.setattr(encoder, "fit", lambda self, t: (given.append(t), original(self, t))[1])
    train.run(experiment.models, "encoder", "4-9", CPU)
    for split, images in (("train", given[0].images), ("test", given[0].test_images)):
        everything = load_split(layout.prepared("mnist", split))
        pair = everything.images[everything.labels != 0]
        assert 0 < len(pair) < len(everything) and torch.equal(images, pair)
    decoder = base.load(experiment.models, "dcgan", "all-classes", CPU)
    assert given[0].generators.keys() == {"dcgan"} and given[0].classifier is not None
    for name, value in given[0].generators["dcgan"].state_dict().items():
        assert torch.equal(value, decoder.state_dict()[name])


def test_which_training_serves_a_pair(experiment) -> None:
    assert base.scope(experiment, "dcgan", (4, 9)) == "all-classes"
    assert base.scope(experiment, "encoder", (4, 9)) == "4-9"
    assert base.model_file(experiment, "encoder", "4-9") == Path(
        "results/tiny/generators/encoder/4-9/model.safetensors"
    )
