"""Stages `fit`, `explain`, `gather` and `original-data` on a tiny project of their own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.classifiers import train as classifiers_train
from counterlens.config import Evaluation, Experiment
from counterlens.data.base import ImageSet, load_split
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.generators import train as generators_train
from counterlens.methods import base, c3lt, explain, fit
from counterlens.metrics.base import CounterfactualSet
from counterlens.runtime import files
from counterlens.runtime.training import Checkpoint

CPU = torch.device("cpu")
QUERIES = {4: 30, 9: 20}
TINY_CYCLEGAN = {
    "width": 4,
    "blocks": 1,
    "discriminator_width": 4,
    "discriminator_layers": 2,
    "epochs": 1,
    "decay_epochs": 1,
    "batch_size": 40,
}
MEAN_IMAGE = '''
from pydantic import Field

import torch
from counterlens.config import MethodOptions
from counterlens.methods.base import Explanation, Method


class Options(MethodOptions):
    level: float = Field(default=1.0, ge=0, le=1)


class MeanImage(Method):
    """Every pixel becomes its image's mean; found where the first pixel is not dark."""

    def explain(self, x, source, target, randomness):
        mean = x.mean((1, 2, 3), keepdim=True)
        found = x[:, 0, 0, 0] > 0.1
        return Explanation(torch.lerp(x, mean.expand_as(x), self.options.level), found)
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes) -> Path:
    """A project with a trained classifier, both generators and C3LT on (4, 9)."""
    folder = tmp_path_factory.mktemp("project")
    tiny = {"width": 4, "latent_dim": 8, "epochs": 1, "batch_size": 16}
    content = {
        "name": "tiny",
        "dataset": "mnist",
        "seed": 85,
        "pairs": [[4, 9]],
        "classifier": {"kind": "lenet", "epochs": 1, "batch_size": 16},
        "generators": {
            "dcgan": {"kind": "dcgan", **tiny},
            "encoder": {"kind": "dcgan-encoder", "generator": "dcgan", **tiny},
        },
        "methods": {
            "c3lt": {
                "kind": "c3lt",
                "generator": "dcgan",
                "encoder": "encoder",
                "steps": 2,
                "epochs": 3,
                "batch_size": 16,
            },
            "pgd": {"kind": "pgd", "epsilon": "64/255", "step_size": 0.05, "steps": 3},
            "mean": {"kind": "mine/mean_image.py"},
        },
        "evaluation": {"images": 30, "batch_size": 8},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("config/experiments").mkdir(parents=True)
        Path("config/config.yaml").write_text("scale: small\nexperiments: [tiny]\n")
        Path("config/experiments/tiny.yaml").write_text(yaml.safe_dump(content))
        Path("mine").mkdir()
        Path("mine/mean_image.py").write_text(MEAN_IMAGE)
        for split, count in (("train", 60), ("test", 50)):
            data = shapes(count, (4, 9, 4, 9, 4), seed=len(split))
            tensors = {"images": (data.images * 255).round().byte().numpy()}
            files.save_tensors(
                layout.prepared("mnist", split), {**tensors, "labels": data.labels.numpy()}
            )
        e = load_experiment("tiny", "small")
        classifiers_train.run(e.models, e.classifier, CPU)
        generators_train.run(e.models, "dcgan", "all-classes", CPU)
        generators_train.run(e.models, "encoder", "4-9", CPU)
        fit.run(e, "c3lt", "4-9", CPU)
    return folder


@pytest.fixture
def experiment(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The tiny experiment; its project's copy is the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return load_experiment("tiny", "small")


def evaluated(e: Experiment, **changes: int | str) -> Experiment:
    evaluation = Evaluation.model_validate({**e.evaluation.model_dump(), **changes})
    return e.model_copy(update={"evaluation": evaluation})


def whole_set(method: str, source: int, target: int) -> CounterfactualSet:
    """What the metrics read."""
    return CounterfactualSet.load(layout.counterfactuals("tiny", method, source, target))


# fit


def test_fit_writes_the_model_and_its_losses(experiment: Experiment, digests) -> None:
    folder = layout.method("tiny", "c3lt", "4-9")
    names = {"model.safetensors", "card.json", "training.csv"}
    assert {path.name for path in folder.iterdir()} == names
    card = files.read_json(folder / "card.json")
    assert card["kind"] == "c3lt" and card["epochs"] == 3 and card["gates"] == {}
    history = pd.read_csv(folder / "training.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert {"classification", "proximity", "cycle", "adversarial"} <= set(history.columns)
    # the same method without its file has other parameters
    fresh = base.create(experiment, "c3lt", "4-9", CPU).trained().state_dict()
    loaded = base.load(experiment, "c3lt", (4, 9), CPU).trained()
    assert not any(torch.equal(fresh[k], v) for k, v in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())
    before = digests()
    fit.run(experiment, "c3lt", "4-9", CPU)
    assert digests() == before


def test_a_killed_fit_ends_with_the_same_bytes(
    experiment: Experiment, digests, kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests()
    for path in layout.method("tiny", "c3lt", "4-9").iterdir():
        path.unlink()
    monkeypatch.setattr(fit, "Checkpoint", lambda *a: Checkpoint(*a, seconds=0))
    # each epoch draws one order per class
    with pytest.raises(kill(c3lt, 5)):
        fit.run(experiment, "c3lt", "4-9", CPU)
    assert not list(layout.method("tiny", "c3lt", "4-9").iterdir())
    assert len(list(layout.CHECKPOINTS.iterdir())) == 1
    fit.run(experiment, "c3lt", "4-9", CPU)
    assert digests() == before


def test_a_method_that_is_not_trained(experiment: Experiment) -> None:
    (layout.method("tiny", "c3lt", "4-9") / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"methods/c3lt/4-9/model\.safetensors: no such file"):
        explain.run(experiment, "c3lt", 4, 9, CPU)
    for method, scope, known in (
        ("pgd", "4-9", "none"),
        ("c3lt", "3-8", "4-9"),
        ("c3lt", "all-pairs", "4-9"),
    ):
        with pytest.raises(UserError, match=f"not trained on '{scope}'; known: {known}$"):
            fit.run(experiment, method, scope, CPU)


# explain


@pytest.mark.parametrize("method", ["c3lt", "pgd"])
@pytest.mark.parametrize(("source", "target"), [(4, 9), (9, 4)])
def test_what_explain_writes(experiment: Experiment, method: str, source: int, target: int) -> None:
    explain.run(experiment, method, source, target, CPU)
    cf = whole_set(method, source, target)
    assert (cf.experiment, cf.method, cf.source, cf.target) == ("tiny", method, source, target)
    test = load_split(layout.prepared("mnist", "test"), [source])
    count = QUERIES[source]
    assert len(cf) == count == len(test)
    assert cf.query is not None and torch.equal(cf.query, test.images)

    table = cf.table
    expected = ["image", "label", "source", "target"]
    for kind in ("query", "counterfactual"):
        expected += [
            f"{name}_{kind}" for name in ("predicted", "source_probability", "target_probability")
        ]
    expected += ["found"]
    paths = ["path_source_probability", "path_target_probability", "path_predicted"]
    assert list(table.columns) == expected + (paths if method == "c3lt" else [])
    assert table["image"].tolist() == test.index.tolist()
    for column, value in (("label", source), ("source", source), ("target", target)):
        assert set(table[column]) == {value}
    assert table["found"].dtype == bool and table["found"].all()
    model = classifiers.load(experiment.models, experiment.classifier, CPU)
    for kind, images in (("query", cf.query), ("counterfactual", cf.counterfactual)):
        found = model.probabilities(images).numpy()
        assert table[f"predicted_{kind}"].tolist() == found.argmax(1).tolist()
        for name, index in (("source", source), ("target", target)):
            np.testing.assert_allclose(table[f"{name}_probability_{kind}"], found[:, index])
    # a grid of query, counterfactual and difference, twelve to a row, enlarged
    picture = Image.open(layout.counterfactuals("tiny", method, source, target).with_suffix(".png"))
    assert picture.size == (2 * (12 * 30 - 2), 2 * (3 * 30 - 2))
    timing = files.read_json(layout.timing("tiny", method, source, target))
    assert timing["images"] == count and timing["seconds_per_image"] > 0
    assert set(timing) == {"seconds_per_image", "images", "device", "threads"}

    direct = base.load(experiment, method, (4, 9), CPU)
    if method == "c3lt":
        targets = torch.full((count,), target)
        answer = direct.explain(test.images, torch.full((count,), source), targets, ())
        assert set(cf.extras) == {"latent", "latent_counterfactual", "path", "path_position"}
        for name in ("latent", "latent_counterfactual"):
            torch.testing.assert_close(cf.extras[name], answer.extras[name])
        torch.testing.assert_close(cf.counterfactual, answer.counterfactual, atol=1e-5, rtol=0)
        path = cf.extras["path"]
        assert path.shape == (min(count, 24), 3, 1, 28, 28)
        assert cf.extras["path_position"].tolist() == [[0, 0.5, 1]] * len(path)
        torch.testing.assert_close(path[:, -1], cf.counterfactual[:24], atol=1e-5, rtol=0)
        shown = model.probabilities(path.flatten(0, 1)).reshape(len(path), 3, 10).numpy()
        for name, index in (("source", source), ("target", target)):
            column = table[f"path_{name}_probability"].tolist()
            assert all(value is None for value in column[24:])
            np.testing.assert_allclose(np.stack(column[:24]), shown[:, :, index], rtol=1e-5)
        said = table["path_predicted"].tolist()
        assert np.array_equal(np.stack(said[:24]), shown.argmax(2)) and not any(said[24:])
    else:
        assert cf.extras == {}
        assert (cf.counterfactual - cf.query).abs().max() <= 64 / 255 + 1e-6


@pytest.mark.parametrize("method", ["c3lt", "pgd"])
def test_a_second_run_writes_the_same_bytes(experiment: Experiment, method: str, digests) -> None:
    explain.run(experiment, method, 4, 9, CPU)
    first = digests()
    explain.run(experiment, method, 4, 9, CPU)
    assert digests() == first


def test_the_batch_changes_nothing(experiment: Experiment, mismatch) -> None:
    """Nor does the number of images: each has its own randomness."""
    explain.run(experiment, "pgd", 4, 9, CPU)
    expected = whole_set("pgd", 4, 9).counterfactual
    explain.run(evaluated(experiment, batch_size=30), "pgd", 4, 9, CPU)
    assert mismatch(whole_set("pgd", 4, 9).counterfactual, expected) <= 0.02
    explain.run(evaluated(experiment, images=10), "pgd", 4, 9, CPU)
    few = whole_set("pgd", 4, 9)
    assert few.table["image"].tolist() == [0, 2, 4, 5, 7, 9, 10, 12, 14, 15]  # in test-set order
    assert mismatch(few.counterfactual, expected[:10]) <= 0.02


def test_another_seed_or_direction_has_other_randomness(experiment: Experiment) -> None:
    explain.run(experiment, "pgd", 4, 9, CPU)
    first = whole_set("pgd", 4, 9).counterfactual
    other = experiment.models.model_copy(update={"seed": 86})
    explain.run(experiment.model_copy(update={"models": other}), "pgd", 4, 9, CPU)
    assert (whole_set("pgd", 4, 9).counterfactual - first).abs().max() > 0.05


# Shards


@pytest.mark.parametrize("method", ["c3lt", "pgd", "mean"])
@pytest.mark.parametrize(
    ("source", "target", "shard_size", "sizes"),
    [(4, 9, 24, [24, 6]), (9, 4, 24, [20, 0]), (4, 9, 8, [8, 8, 8, 6]), (9, 4, 8, [8, 8, 4, 0])],
)
def test_shards_equal_the_whole(
    experiment: Experiment, method: str, source: int, target: int, shard_size: int, sizes: list[int]
) -> None:
    """30 and 20 images; the last shard of the 20 is empty, paths are of the first 24."""
    explain.run(experiment, method, source, target, CPU)
    place = layout.counterfactuals("tiny", method, source, target)
    outputs = [place.with_suffix(suffix) for suffix in (".safetensors", ".parquet", ".png")]
    tensors = files.load_tensors(outputs[0])
    metadata = files.read_metadata(outputs[0])
    table, preview = pd.read_parquet(outputs[1]), outputs[2].read_bytes()
    for path in outputs:
        path.unlink()
    timing_file = layout.timing("tiny", method, source, target)
    timing_file.unlink()

    sharded, of = evaluated(experiment, shard_size=shard_size), len(sizes)
    assert sharded.evaluation.shards == of
    for number in range(of, 0, -1):  # in any order
        explain.run(sharded, method, source, target, CPU, number=number, of=of)
    assert not any(path.exists() for path in [*outputs, timing_file])
    shards = [layout.shard("tiny", method, source, target, n, of) for n in range(1, of + 1)]
    assert [len(pd.read_parquet(f"{shard}.parquet")) for shard in shards] == sizes
    explain.gather(sharded, method, source, target, of)

    gathered = files.load_tensors(outputs[0])
    assert gathered.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert gathered[name].dtype == expected.dtype
        # paths are decoded a shard at a time; all else in the same batches as unsharded
        atol = 1e-5 if name == "path" else 0
        np.testing.assert_allclose(gathered[name], expected, rtol=0, atol=atol, err_msg=name)
    assert files.read_metadata(outputs[0]) == metadata
    pd.testing.assert_frame_equal(pd.read_parquet(outputs[1]), table, rtol=1e-4, atol=1e-6)
    assert outputs[2].read_bytes() == preview
    timing = files.read_json(timing_file)
    assert timing["images"] == QUERIES[source] and timing["seconds_per_image"] > 0
    assert len(whole_set(method, source, target)) == QUERIES[source]


def test_the_time_of_shards_is_weighed_by_their_images(experiment: Experiment) -> None:
    sharded = evaluated(experiment, shard_size=24)
    for number, seconds in ((1, 1.0), (2, 4.0)):
        explain.run(sharded, "pgd", 4, 9, CPU, number=number, of=2)
        path = layout.timing("tiny", "pgd", 4, 9).with_suffix(f".{number}-of-2.json")
        files.write_json(path, {**files.read_json(path), "seconds_per_image": seconds})
    explain.gather(sharded, "pgd", 4, 9, 2)
    timing = files.read_json(layout.timing("tiny", "pgd", 4, 9))
    assert timing["seconds_per_image"] == pytest.approx((24 * 1 + 6 * 4) / 30)


def test_gather_needs_every_shard(experiment: Experiment) -> None:
    sharded = evaluated(experiment, shard_size=24)
    explain.run(sharded, "pgd", 4, 9, CPU, number=1, of=2)
    with pytest.raises(UserError, match=r"4_to_9\.2-of-2\.safetensors: no such file"):
        explain.gather(sharded, "pgd", 4, 9, 2)
    assert not layout.counterfactuals("tiny", "pgd", 4, 9).with_suffix(".safetensors").exists()


# A user's own method, and the reference row


def test_a_user_s_own_method(experiment: Experiment) -> None:
    explain.run(experiment, "mean", 4, 9, CPU)
    cf = whole_set("mean", 4, 9)
    assert cf.query is not None
    mean = cf.query.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(cf.counterfactual, mean.expand_as(cf.query))
    assert cf.table["found"].tolist() == (cf.query[:, 0, 0, 0] > 0.1).tolist()
    assert 0 < cf.table["found"].mean() < 1


def test_a_method_may_explain_images_of_its_own(experiment: Experiment) -> None:
    """Its own queries are kept and judged in place of those that it was given."""
    plugin = Path("mine/own_queries.py")
    text = MEAN_IMAGE.replace("class MeanImage", "class OwnQueries")
    given = "return Explanation(torch.lerp(x, mean.expand_as(x), self.options.level), found)"
    assert given in text
    plugin.write_text(text.replace(given, "return Explanation(x, found, query=1 - x)"))
    options = plugins.options_class("methods", str(plugin))
    own = options.model_validate({"kind": str(plugin)})
    e = experiment.model_copy(update={"methods": {**experiment.methods, "own": own}})
    explain.run(e, "own", 4, 9, CPU)
    cf = whole_set("own", 4, 9)
    assert cf.query is not None and torch.equal(cf.query, 1 - cf.counterfactual)
    given_images = load_split(layout.prepared("mnist", "test"), [4]).images[:30]
    assert torch.equal(cf.counterfactual, given_images)
    answers = classifiers.load(e.models, e.classifier, CPU).probabilities(1 - given_images)
    np.testing.assert_allclose(
        cf.table["source_probability_query"], answers[:, 4].numpy(), atol=1e-6
    )


def test_original_data_are_test_images_of_the_target(experiment: Experiment) -> None:
    explain.original_data(experiment, 4, 9, CPU)
    cf = whole_set("original-data", 4, 9)
    assert not cf.paired and cf.extras == {}
    test = load_split(layout.prepared("mnist", "test"), [9])
    assert torch.equal(cf.counterfactual, test.images)
    table = cf.table
    assert table["image"].tolist() == test.index.tolist()
    assert set(table["label"]) == {9} and table["found"].all()
    assert set(table["source"]) == {4} and set(table["target"]) == {9}
    assert not [name for name in table if str(name).endswith("_query")]
    found = (
        classifiers.load(experiment.models, experiment.classifier, CPU)
        .probabilities(test.images)
        .numpy()
    )
    np.testing.assert_allclose(table["target_probability_counterfactual"], found[:, 9])
    np.testing.assert_allclose(table["source_probability_counterfactual"], found[:, 4])
    picture = Image.open(layout.counterfactuals("tiny", "original-data", 4, 9).with_suffix(".png"))
    assert picture.size == (2 * (12 * 30 - 2), 2 * 28)  # one row
    assert not layout.timing("tiny", "original-data", 4, 9).exists()


# Which test images are explained


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
