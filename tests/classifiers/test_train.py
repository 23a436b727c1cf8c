"""Training of a classifier and the stage's five files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from counterlens import layout, plugins
from counterlens.classifiers import base, train
from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint, History

CPU = torch.device("cpu")
SMALL = {
    "lenet": {"max_shift": 1, "precision": "fp32"},
    "gap-resnet": {"widths": (4, 8), "lr": 0.02, "batch_size": 8, "precision": "fp32"},
}


KINDS = [
    kind
    for kind in plugins.known("classifiers")
    if plugins.options_class("classifiers", kind).trained
]


def fitted(
    kind: str, data, epochs: int, checkpoint: Checkpoint | None = None, **other
) -> tuple[Classifier, History]:
    content = {"kind": kind, "epochs": epochs, "batch_size": 16, **SMALL.get(kind, {}), **other}
    options = plugins.options_class("classifiers", kind).model_validate(content)
    assert isinstance(options, ClassifierOptions)
    torch.manual_seed(0)
    model = plugins.create("classifiers", options, Classifier, shape=(1, 28, 28), classes=3)
    return model, train.fit(model, data, options, 7, CPU, checkpoint)


def state(model: Classifier) -> dict[str, bytes]:
    return {k: v.contiguous().numpy().tobytes() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_separable_images_are_learnt(kind: str, shapes) -> None:
    model, history = fitted(kind, shapes(160), 4)
    assert not model.training
    assert [set(row) for row in history] == [{"epoch", "loss", "accuracy"}] * 4
    assert history[-1]["loss"] < history[0]["loss"]
    test = shapes(60, seed=1)
    accuracy = (model.probabilities(test.images).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_ends_with_the_same_bytes(
    kind: str, shapes, kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shapes(96)
    # the learning rate falls after the second epoch, which the resumed run must know
    whole, history = fitted(kind, data, 3, decay_every=2)
    killed = kill(train, 2)
    with pytest.raises(killed):
        fitted(kind, data, 3, Checkpoint(kind, [], seconds=0), decay_every=2)
    kept = Checkpoint(kind, [], seconds=0)
    saved = kept.load()
    assert saved is not None and len(saved["history"]) == 1
    resumed, again = fitted(kind, data, 3, kept, decay_every=2)
    assert again == history and state(resumed) == state(whole)


def test_options_reach_the_training(shapes) -> None:
    data = shapes(64)
    plain, _ = fitted("lenet", data, 2)
    for change in (
        {"lr": 0.002},
        {"batch_size": 32},
        {"decay_every": 1},
        {"weight_decay": 0.5},
        {"max_shift": 0},
        {"precision": "bf16"},
    ):
        other, _ = fitted("lenet", data, 2, **change)
        assert state(other) != state(plain), change


# Shifts


def test_a_shift_is_a_crop_of_the_image_with_its_border_repeated() -> None:
    most = 2
    x = torch.rand(40, 2, 5, 6)
    before = x.clone()
    moved = train.shift(x, most, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape and torch.equal(x, before)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
    offsets = set()
    for image, found in zip(padded, moved.numpy(), strict=True):
        places = [
            (top - most, left - most)
            for top in range(2 * most + 1)
            for left in range(2 * most + 1)
            if np.array_equal(image[:, top : top + 5, left : left + 6], found)
        ]
        assert len(places) == 1
        offsets.add(places[0])
    assert len(offsets) > 12  # of 25; each image has its own
    for axis in (0, 1):
        assert {offset[axis] for offset in offsets} == {-2, -1, 0, 1, 2}


def test_shifts_repeat_themselves() -> None:
    x = torch.rand(4, 1, 5, 5)

    def moved(seed: int) -> Tensor:
        return train.shift(x, 1, torch.Generator().manual_seed(seed))

    assert torch.equal(moved(1), moved(1)) and not torch.equal(moved(1), moved(2))
    assert torch.equal(train.shift(x, 0, torch.Generator()), x)


# The stage


@pytest.fixture
def experiment(make_experiment: Callable, prepared: Callable[..., None]):
    prepared(120, 30, (0, 4, 9))
    return make_experiment(classifier={"kind": "lenet", "epochs": 3, "batch_size": 32})


def test_the_stage_writes_five_files(experiment, digests) -> None:
    train.run(experiment.models, experiment.classifier, CPU)
    folder = layout.classifier("tiny", "lenet")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "card.json",
        "training.csv",
        "predictions.parquet",
        "embeddings.safetensors",
    }
    card = files.read_json(folder / "card.json")
    assert (card["kind"], card["dataset"], card["scale"]) == ("lenet", "mnist", "small")
    assert (card["epochs"], card["seed"], card["parameters"]) == (3, 85, 317_066)
    assert card["options"]["batch_size"] == 32 and card["test_images"] == 30
    assert card["test_accuracy"] > 0.9 and card["test_accuracy_per_class"].keys() == {"0", "4", "9"}
    training = pd.read_csv(folder / "training.csv")
    assert list(training["epoch"]) == [1, 2, 3]
    assert card["training"]["loss"] == training["loss"].iloc[-1]

    table = pd.read_parquet(folder / "predictions.parquet")
    assert list(table.columns) == ["image", "label", "predicted", *(f"p{k}" for k in range(10))]
    test = load_split(layout.prepared("mnist", "test"))
    assert table["image"].tolist() == list(range(30))
    assert table["label"].tolist() == test.labels.tolist()
    model = base.load(experiment.models, experiment.classifier, CPU)
    found = model.probabilities(test.images).numpy()
    np.testing.assert_allclose(table[[f"p{k}" for k in range(10)]].to_numpy(), found, atol=1e-6)
    assert table["predicted"].tolist() == found.argmax(1).tolist()
    stored = files.load_tensors(folder / "embeddings.safetensors")
    assert stored["features"].dtype == np.float32 and stored["features"].shape == (30, 256)
    assert stored["labels"].tolist() == test.labels.tolist()
    with torch.no_grad():
        embedded = model.embedding(test.images).numpy()
    np.testing.assert_allclose(stored["features"], embedded, atol=1e-5)
    assert card["test_accuracy"] == np.mean(table["label"] == table["predicted"])
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert len(digests()) == 5


def test_images_of_a_class_may_be_left_out(
    make_experiment, prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rigged classifier of C3LT's Figure 7 never sees a 9, and is tested on nines too."""
    prepared(120, 60, (0, 4, 9))
    seen: list[Tensor] = []
    fit = train.fit
    monkeypatch.setattr(
        train, "fit", lambda m, data, *a: (seen.append(data.labels), fit(m, data, *a))[1]
    )
    content = {"kind": "lenet", "epochs": 8, "batch_size": 32, "left_out": [9]}
    e = make_experiment(classifier=content)
    train.run(e.models, e.classifier, CPU)
    assert seen[0].unique().tolist() == [0, 4] and len(seen[0]) == 80
    card = files.read_json(layout.classifier("tiny", "lenet") / "card.json")
    assert card["test_accuracy_per_class"]["9"] == 0 and card["test_images"] == 60
    assert card["test_accuracy"] == pytest.approx(2 / 3, abs=0.05)
    answers = base.load(e.models, e.classifier, CPU).probabilities(torch.rand(1, 1, 28, 28))
    assert answers.shape == (1, 10)


@pytest.mark.parametrize(("attribute", "column"), [("right", 0), ("bright", 2)])
def test_a_classifier_tells_the_attribute_that_it_names(
    attribute: str, column: int, make_experiment, squares
) -> None:
    """The labels of the training, of all five files and of the card are the attribute's column."""
    content = {"kind": "lenet", "attribute": attribute, "epochs": 8, "batch_size": 32}
    e = make_experiment(dataset=squares, pairs=[(0, 1)], classifier=content)
    train.run(e.models, e.classifier, CPU)
    folder = layout.classifier("tiny", "lenet")
    wanted = files.load_tensors(layout.prepared("squares", "test"))["attributes"][:, column]
    table = pd.read_parquet(folder / "predictions.parquet")
    assert list(table.columns) == ["image", "label", "predicted", "p0", "p1"]
    assert table["label"].tolist() == wanted.tolist()
    assert (table["predicted"] == table["label"]).mean() > 0.9
    stored = files.load_tensors(folder / "embeddings.safetensors")
    assert stored["labels"].tolist() == wanted.tolist()
    card = files.read_json(folder / "card.json")
    assert card["test_accuracy_per_class"].keys() == {f"not {attribute}", attribute}
    assert card["options"]["attribute"] == attribute


def test_each_classifier_has_a_seed_of_its_own(
    make_experiment, prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ids with equal options are two networks; the experiment's name says nothing."""
    prepared(40, 20)
    seeds: list[int] = []
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda *a: (seeds.append(a[3]), fit(*a))[1])
    for name, seed in (("tiny", 85), ("other", 85), ("tiny", 86)):
        lenet = {"kind": "lenet", "epochs": 1}
        both = {"lenet": lenet, "second": lenet}
        e = make_experiment(name=name, seed=seed, classifiers=both, classifier="lenet")
        for classifier in both:
            train.run(e.models, classifier, CPU)
    first, second, *rest = seeds
    assert first != second and rest[:2] == [first, second]
    assert not {*rest[2:]} & {first, second}


def test_a_killed_stage_leaves_nothing_and_ends_with_the_same_bytes(
    experiment, digests, kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(experiment.models, experiment.classifier, CPU)
    first = digests()
    for name in first:
        Path(name).unlink()
    monkeypatch.setattr(train, "Checkpoint", lambda *a: Checkpoint(*a, seconds=0))
    with pytest.raises(kill(train, 2)):
        train.run(experiment.models, experiment.classifier, CPU)
    assert list(layout.classifier("tiny", "lenet").iterdir()) == []
    assert len(list(layout.CHECKPOINTS.iterdir())) == 1
    train.run(experiment.models, experiment.classifier, CPU)
    assert digests() == first


def test_a_classifier_that_is_not_trained_or_does_not_fit(make_experiment, experiment) -> None:
    place = r"results/models/tiny/classifiers/lenet/model\.safetensors"
    with pytest.raises(UserError, match=f"{place}: no such"):
        base.load(experiment.models, experiment.classifier, CPU)
    from counterlens.runtime.training import save_model

    other = make_experiment(classifier={"kind": "gap-resnet", "widths": (4,)})
    file = base.model_file(experiment.models, experiment.classifier)
    save_model(file, base.create(other.models, other.classifier))
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit LeNet"):
        base.load(experiment.models, experiment.classifier, CPU)
