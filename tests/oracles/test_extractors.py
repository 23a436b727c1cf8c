"""The in-domain feature extractor and Inception."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.classifiers import train as classifiers_train
from counterlens.classifiers.base import load as load_classifier
from counterlens.classifiers.gap_resnet import GapResNet
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.metrics.base import MetricContext, NotAvailable, quantise
from counterlens.oracles import base, train
from counterlens.oracles.feature_extractor import FeatureExtractor
from counterlens.oracles.inception import WEIGHT, Inception, Options
from counterlens.runtime import files

CPU = torch.device("cpu")


def test_the_feature_extractor_is_another_network_than_the_explained_one(
    experiment, prepared
) -> None:
    e = experiment({"feature-extractor": {"kind": "feature-extractor"}})
    classifiers_train.run(e.models, e.classifier, CPU)
    train.run(e.models, "feature-extractor", CPU)
    card = json.loads((layout.oracle("tiny", "feature-extractor") / "card.json").read_text())
    assert card["test_images"] == 30 and card["test_accuracy"] > 0.9
    oracle = base.load(e.models, "feature-extractor", CPU)
    assert isinstance(oracle, FeatureExtractor) and oracle.model is not None
    explained = load_classifier(e.models, e.classifier, CPU)
    assert not torch.equal(explained.head.weight, oracle.model.head.weight)  # type: ignore[arg-type]

    images = quantise(prepared["test"].images)
    features = oracle.features(images)
    assert features.shape == (30, 256) and features.dtype == torch.float32
    assert (features >= 0).all() and features.std() > 0  # after ReLU
    # no dropout: the same twice, and whatever the batches
    torch.testing.assert_close(oracle.features(images, batch_size=7), features)
    expected = oracle.model.embedding(prepared["test"].images)
    torch.testing.assert_close(features, expected)
    with pytest.raises(ValueError, match="uint8"):
        oracle.features(prepared["test"].images)


def test_networks_with_batch_normalisation_are_saved_as_they_are_loaded(
    experiment, prepared
) -> None:
    """A frozen network has its normalisation folded away and would not fit when it is loaded."""
    e = experiment(
        {"judge": {"kind": "feature-extractor"}},
        classifier={"kind": "gap-resnet", "widths": (4, 8), "epochs": 1},
    )
    classifiers_train.run(e.models, e.classifier, CPU)
    train.run(e.models, "judge", CPU)
    images = prepared["test"].images
    explained, judge = (
        load_classifier(e.models, e.classifier, CPU),
        base.load(e.models, "judge", CPU),
    )
    for model in (explained, judge.model):  # type: ignore[attr-defined]
        assert torch.isfinite(model(images)).all()
    predictions = pd.read_parquet(layout.classifier("tiny", "gap-resnet") / "predictions.parquet")
    found = explained.probabilities(images)
    torch.testing.assert_close(found[:, 0], torch.tensor(predictions["p0"].to_numpy()))


def test_it_follows_the_recipe_of_the_classifier_that_it_names(experiment, squares) -> None:
    """Architecture, epochs and attribute; not the classes that this one was not shown."""
    e = experiment(
        {"judge": {"kind": "feature-extractor", "classifier": "bright"}},
        classifiers={
            "right": {"kind": "lenet", "attribute": "right"},
            "bright": {
                "kind": "gap-resnet",
                "widths": (4, 8),
                "attribute": "bright",
                "epochs": 6,
                "lr": 0.02,
                "left_out": (1,),
            },
        },
        classifier="right",
        dataset=squares,
    )
    train.run(e.models, "judge", CPU)
    card = json.loads((layout.oracle("tiny", "judge") / "card.json").read_text())
    assert card["epochs"] == 6 and card["test_accuracy"] > 0.9
    assert card["options"]["classifier"] == "bright"
    oracle = base.load(e.models, "judge", CPU)
    assert isinstance(oracle, FeatureExtractor) and isinstance(oracle.model, GapResNet)
    test = load_split(layout.prepared("squares", "test"), attribute=2)
    answers = oracle.probabilities(test.images)
    assert answers.shape == (40, 2)
    accuracy = (answers.argmax(1) == test.labels).double().mean().item()
    assert card["test_accuracy"] == accuracy


def test_its_fingerprint_changes_with_its_weights(experiment, prepared) -> None:
    prints = []
    for epochs in (1, 2):
        e = experiment({"judge": {"kind": "feature-extractor", "epochs": epochs}})
        train.run(e.models, "judge", CPU)
        oracle = base.load(e.models, "judge", CPU)
        assert isinstance(oracle, FeatureExtractor)
        prints.append(oracle.fingerprint)
    assert prints[0] != prints[1]


def test_an_untrained_extractor_is_refused(experiment, prepared) -> None:
    e = experiment({"judge": {"kind": "feature-extractor"}})
    with pytest.raises(UserError, match="no such file"):
        base.load(e.models, "judge", CPU)


def write_record(file: Path | None, reason: str | None = None) -> None:
    record = {
        "name": WEIGHT,
        "available": file is not None,
        "file": file.as_posix() if file else None,
        "sha256": files.sha256(file) if file else "0" * 64,
        "reason": reason,
    }
    files.write_json(layout.weight(WEIGHT), record)


def inception(experiment) -> tuple[Inception, MetricContext]:
    oracle = base.load(experiment({"inception": {"kind": "inception"}}).models, "inception", CPU)
    assert isinstance(oracle, Inception)
    return oracle, MetricContext(torch.nn.Identity(), {"inception": oracle})


def test_the_options_name_the_weight() -> None:
    assert Options.weights == (WEIGHT,)


def test_without_its_weight_inception_is_not_available(experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(None, "no network")
    oracle, context = inception(experiment)
    assert oracle.unavailable == f"{WEIGHT}: no network"
    with pytest.raises(NotAvailable, match="no network"):
        context.extractor("inception")


def test_there_is_nothing_to_train(experiment, prepared) -> None:
    e = experiment({"inception": {"kind": "inception"}})
    with pytest.raises(UserError, match="nothing to train"):
        train.run(e.models, "inception", CPU)


def test_inception_gives_torch_fidelitys_features(experiment, tmp_path, monkeypatch) -> None:
    """With random weights: the numbers mean nothing, but they must be torch-fidelity's."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network_class = theirs.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(network_class, "load_state_dict", lambda self, state: None)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: None)
        reference = network_class(WEIGHT, ["2048"])
    for module in reference.modules():  # keeps random activations in a sane range
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    reference.train()
    reference(torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8))
    reference.eval()
    path = Path("data/weights/inception.pth")
    path.parent.mkdir(parents=True)
    torch.save(reference.state_dict(), path)
    write_record(path)
    oracle, context = inception(experiment)
    grey = quantise(torch.rand(3, 1, 28, 28))
    features = context.extractor("inception").features(grey)
    (expected,) = reference(grey.repeat(1, 3, 1, 1))
    assert features.shape == (3, 2048) and features.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert oracle.fingerprint == files.sha256(path)
    assert oracle.standard and oracle.cache_references
    with pytest.raises(ValueError, match="uint8"):
        oracle.features(torch.rand(1, 1, 28, 28))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        oracle.features(grey.repeat(1, 2, 1, 1))


def test_a_weight_that_runs_code_is_not_run(experiment, tmp_path, monkeypatch) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    path = Path("data/weights/inception.pth")
    path.parent.mkdir(parents=True)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("ran"),))

    torch.save({"x": Evil()}, path)
    write_record(path)
    oracle, _ = inception(experiment)
    with pytest.raises(pickle.UnpicklingError):
        oracle.features(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    assert not Path("ran").exists()
