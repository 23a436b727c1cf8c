"""Which test images are explained."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.classifiers import train as classifiers_train
from counterlens.config import Experiment
from counterlens.data.base import ImageSet, load_split
from counterlens.errors import UserError
from counterlens.methods import base, explain, fit
from counterlens.runtime import files

from .stages import CPU, QUERIES, evaluated, whole_set

TINY_CYCLEGAN = {
    "width": 4,
    "blocks": 1,
    "discriminator_width": 4,
    "discriminator_layers": 2,
    "epochs": 1,
    "decay_epochs": 1,
    "batch_size": 40,
}


def test_queries_are_limited_and_cut_into_shards(experiment: Experiment) -> None:
    sharded = evaluated(experiment, images=25, shard_size=10)
    whole = explain.queries(sharded, 4, 9)
    assert len(whole) == 25
    parts = [explain.queries(sharded, 4, 9, number, 3) for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [10, 10, 5]
    assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_a_method_may_explain_fewer(experiment: Experiment) -> None:
    whole = explain.queries(experiment, 4, 9)
    few = explain.queries(experiment, 4, 9, most=7)
    assert torch.equal(few.index, whole.index[:7]) and torch.equal(few.images, whole.images[:7])
    sharded = evaluated(experiment, images=25, shard_size=10)
    parts = [explain.queries(sharded, 4, 9, number, 3, most=12) for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [10, 2, 0]


def test_a_method_gets_what_the_one_before_it_made(experiment: Experiment) -> None:
    data = explain.queries(experiment, 4, 9)
    place = layout.counterfactuals("tiny", "earlier", 4, 9)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    made = {
        "counterfactual": 1 - data.images[order].numpy(),
        "pre_explanation": data.images[order].numpy() / 2,
        "path": np.zeros((3, 2), np.float32),
    }
    files.save_tensors(place.with_suffix(".safetensors"), made)
    table = pd.DataFrame({"image": data.index[order].numpy()})
    files.write_parquet(place.with_suffix(".parquet"), table)
    assert explain.earlier_explanation(experiment, None, 4, 9, data) is None
    few = data.select(torch.tensor([5, 0, 2]))
    found = explain.earlier_explanation(experiment, "earlier", 4, 9, few)
    assert found is not None and set(found) == {"counterfactual", "pre_explanation"}
    assert torch.equal(found["counterfactual"], 1 - few.images)
    assert torch.equal(found["pre_explanation"], few.images / 2)
    files.write_parquet(place.with_suffix(".parquet"), table.assign(image=table["image"] + 10_000))
    with pytest.raises(UserError, match=r"4_to_9\.safetensors: lacks 3 of the queries"):
        explain.earlier_explanation(experiment, "earlier", 4, 9, few)


def test_queries_are_of_what_the_classifier_tells(make_experiment, squares) -> None:
    """Two classifiers of one dataset have other classes, each an attribute of the same images."""
    pgd = {"kind": "pgd", "epsilon": 0.2, "steps": 1}
    classifiers = {
        name: {"kind": "lenet", "attribute": name, "epochs": 1} for name in ("left", "bright")
    }
    known = load_split(layout.prepared("squares", "test")).attributes
    assert known is not None
    for name, column in (("left", 1), ("bright", 2)):
        e = make_experiment(
            dataset=squares,
            pairs=[(0, 1)],
            classifiers=classifiers,
            classifier=name,
            methods={"pgd": pgd},
        )
        classifiers_train.run(e.models, name, CPU)
        for label in (0, 1):
            places = torch.nonzero(known[:, column] == label).flatten()
            assert torch.equal(explain.queries(e, label, 1 - label).index, places)
        chosen = evaluated(e, queries="predicted", errors=5)
        answers = pd.read_parquet(layout.classifier("tiny", name) / "predictions.parquet")
        labels, predicted = known[:, column].numpy(), answers["predicted"].to_numpy()
        wrong = np.flatnonzero((labels == 1) & (predicted == 0))[:5]
        right = np.flatnonzero((labels == 0) & (predicted == 0))
        assert explain.queries(chosen, 0, 1).index.tolist() == [*wrong, *right]
        explain.run(e, "pgd", 0, 1, CPU)
        assert set(whole_set("pgd", 0, 1).table["label"]) == {0}
        explain.original_data(e, 0, 1, CPU)
        shown = whole_set("original-data", 0, 1).table
        assert shown["image"].tolist() == np.flatnonzero(labels == 1).tolist()


def test_a_method_is_trained_on_what_the_classifier_tells(
    make_experiment, squares, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = make_experiment(
        dataset=squares,
        pairs=[(0, 1)],
        classifier={"kind": "lenet", "attribute": "bright", "epochs": 1},
        methods={"cyclegan": {"kind": "cyclegan", **TINY_CYCLEGAN}},
    )
    classifiers_train.run(e.models, e.classifier, CPU)
    given: list[ImageSet] = []
    kind = type(base.create(e, "cyclegan", "0-1", CPU))
    original = kind.fit
    monkeypatch.setattr(
        kind, "fit", lambda self, data, *a: (given.append(data), original(self, data, *a))[1]
    )
    fit.run(e, "cyclegan", "0-1", CPU)
    (data,) = given
    assert data.attributes is not None and len(data) == 120
    assert torch.equal(data.labels, data.attributes[:, 2].long())
    assert (layout.method("tiny", "cyclegan", "0-1") / "card.json").is_file()


@pytest.fixture
def said(experiment: Experiment) -> np.ndarray:
    """Answers of the classifier that are written for it: every fifth of a class is of the other."""
    path = layout.classifier("tiny", "lenet") / "predictions.parquet"
    table = pd.read_parquet(path)
    labels = table["label"].to_numpy()
    answers = labels.copy()
    for label in (4, 9):
        answers[np.flatnonzero(labels == label)[::5]] = 13 - label
    answers[np.flatnonzero(labels == 4)[1]] = 3  # outside the pair
    files.write_parquet(path, table.assign(predicted=answers))
    return answers


def labels() -> np.ndarray:
    return load_split(layout.prepared("mnist", "test")).labels.numpy()


def test_only_correctly_predicted_queries(experiment: Experiment, said: np.ndarray) -> None:
    chosen = evaluated(experiment, queries="predicted")
    for source, target in ((4, 9), (9, 4)):
        right = np.flatnonzero((labels() == source) & (said == source))
        found = explain.queries(chosen, source, target)
        assert found.index.tolist() == right.tolist()
        test = load_split(layout.prepared("mnist", "test"))
        assert torch.equal(found.images, test.images[found.index])
        few = explain.queries(evaluated(chosen, images=7), source, target)
        assert few.index.tolist() == right[:7].tolist()
    # the control is of real images of the class, whatever the classifier says of them
    assert explain.test_images(chosen, 4).index.tolist() == np.flatnonzero(labels() == 4).tolist()


@pytest.mark.parametrize("queries", ["label", "predicted"])
@pytest.mark.parametrize("errors", [3, 100])
def test_the_errors_of_a_direction_come_first(
    experiment: Experiment, said: np.ndarray, queries: str, errors: int
) -> None:
    chosen = evaluated(experiment, queries=queries, errors=errors, images=12)
    for source, target in ((4, 9), (9, 4)):
        wrong = np.flatnonzero((labels() == target) & (said == source))[:errors]
        assert len(wrong) == min(errors, QUERIES[target] / 5)
        own = labels() == source
        right = np.flatnonzero(own & (said == source) if queries == "predicted" else own)[:12]
        found = explain.queries(chosen, source, target)
        assert found.index.tolist() == [*wrong, *right]
        assert found.labels.tolist() == [target] * len(wrong) + [source] * len(right)


@pytest.mark.parametrize(
    ("source", "images", "sizes"), [(4, 30, [8, 8, 8, 3]), (9, 30, [8, 8, 5, 0]), (4, 8, [12])]
)
def test_shards_with_errors_cover_everything_once(
    experiment: Experiment, said: np.ndarray, source: int, images: int, sizes: list[int]
) -> None:
    sharded = evaluated(
        experiment, queries="predicted", errors=5, images=images, shard_size=8, paths=10
    )
    of = sharded.evaluation.shards
    assert of == len(sizes)
    target = 13 - source
    parts = [explain.queries(sharded, source, target, number, of) for number in range(1, of + 1)]
    assert [len(part) for part in parts] == sizes
    whole = explain.queries(sharded, source, target)
    assert torch.equal(torch.cat([part.index for part in parts]), whole.index)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert len(set(whole.index.tolist())) == len(whole) == sum(sizes)


def test_errors_are_explained_from_the_predicted_to_the_true_class(
    experiment: Experiment, said: np.ndarray
) -> None:
    chosen = evaluated(experiment, queries="predicted", errors=2, images=6, paths=5, shard_size=4)
    for number in (1, 2):
        explain.run(chosen, "c3lt", 4, 9, CPU, number=number, of=2)
    explain.gather(chosen, "c3lt", 4, 9, 2)
    cf = whole_set("c3lt", 4, 9)
    assert cf.table["label"].tolist() == [9, 9, *[4] * 6]
    assert cf.errors().tolist() == [True, True, *[False] * 6]
    assert set(cf.table["source"]) == {4} and set(cf.table["target"]) == {9}
    assert cf.extras["path"].shape[:2] == (5, 3)  # the errors are among the kept
    assert sum(steps is not None for steps in cf.table["path_predicted"]) == 5


def test_no_paths_are_kept_where_none_are_asked_for(experiment: Experiment) -> None:
    explain.run(evaluated(experiment, paths=0), "c3lt", 4, 9, CPU)
    cf = whole_set("c3lt", 4, 9)
    assert set(cf.extras) == {"latent", "latent_counterfactual"}
    assert not [name for name in cf.table if str(name).startswith("path")]
