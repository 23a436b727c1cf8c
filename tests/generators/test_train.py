"""The stage `generator`: its four files, for all classes and for a pair."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from counterlens import layout
from counterlens.classifiers import base as classifiers_base
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
        options = experiment.models.generators[name]
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
    models = experiment.models
    assert models.scope("dcgan", (4, 9)) == "all-classes"
    assert models.scope("encoder", (4, 9)) == "4-9"
    assert base.model_file(models, "encoder", "4-9") == Path(
        "results/models/tiny/generators/encoder/4-9/model.safetensors"
    )
    train.run(models, "dcgan", "all-classes", CPU)
    train.run(models, "encoder", "4-9", CPU)
    loaded = base.load_for_pair(models, ("encoder", "dcgan"), (4, 9), CPU)
    assert list(loaded) == ["encoder", "dcgan"]
    for name, scope in (("encoder", "4-9"), ("dcgan", "all-classes")):
        alone = base.load(models, name, scope, CPU).state_dict()
        assert all(torch.equal(v, alone[k]) for k, v in loaded[name].state_dict().items())


def test_a_scope_that_is_not_the_generators(experiment) -> None:
    with pytest.raises(UserError, match=r"--scope 4-9: generator dcgan is trained on 'all-cla"):
        train.run(experiment.models, "dcgan", "4-9", CPU)
    with pytest.raises(UserError, match=r"--scope all-classes: generator encoder .* a pair such"):
        train.run(experiment.models, "encoder", "all-classes", CPU)


def test_the_labels_are_what_the_classifier_tells(
    make_experiment, squares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two generators of one dataset, each beside the classifier of another attribute."""
    classifiers = {
        name: {"kind": "lenet", "attribute": name, "epochs": 1} for name in ("left", "bright")
    }
    tiny = {"kind": "dcgan", "width": 4, "latent_dim": 8, "epochs": 1}
    models = make_experiment(
        dataset=squares,
        pairs=[(0, 1)],
        classifiers=classifiers,
        classifier="left",
        generators={name: {**tiny, "classifier": name} for name in classifiers},
    ).models
    given: list[base.Training] = []
    kind = type(base.create(models, "left"))
    fit = kind.fit
    monkeypatch.setattr(kind, "fit", lambda self, t: (given.append(t), fit(self, t))[1])
    for name in classifiers:
        classifiers_train.run(models, name, CPU)
        train.run(models, name, "all-classes", CPU)
    known = load_split(layout.prepared("squares", "train")).attributes
    tested = load_split(layout.prepared("squares", "test")).attributes
    assert known is not None and tested is not None
    for training, (name, column) in zip(given, (("left", 1), ("bright", 2)), strict=True):
        assert training.labels is not None and training.test_labels is not None
        assert torch.equal(training.labels, known[:, column].long())
        assert torch.equal(training.test_labels, tested[:, column].long())
        asked = classifiers_base.load(models, name, CPU)
        x = training.test_images[:4]
        assert training.classifier is not None
        torch.testing.assert_close(training.classifier(x), asked(x))
    assert given[0].seed != given[1].seed
