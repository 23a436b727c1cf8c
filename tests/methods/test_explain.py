"""Stages `explain`, `gather` and `original-data` on a tiny project of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.methods import base, explain
from counterlens.runtime import files

from .stages import CPU, MEAN_IMAGE, QUERIES, evaluated, whole_set


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
