"""The stage that computes the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.config import DatasetOptions, Experiment, Models
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.metrics import compute
from counterlens.metrics.base import CounterfactualSet, quantise
from counterlens.runtime import files

from .battery import CONFIGURED, FirstPixels, Halves, options_of, with_path


def write_set(cf: CounterfactualSet) -> None:
    path = layout.counterfactuals(cf.experiment, cf.method, cf.source, cf.target)
    about = {
        "experiment": cf.experiment,
        "method": cf.method,
        "source": str(cf.source),
        "target": str(cf.target),
    }
    tensors = {"counterfactual": cf.counterfactual.numpy()}
    if cf.query is not None:
        tensors["query"] = cf.query.numpy()
    tensors |= {name: tensor.numpy() for name, tensor in cf.extras.items()}
    files.save_tensors(Path(f"{path}.safetensors"), tensors, about)
    files.write_parquet(Path(f"{path}.parquet"), cf.table)


class Toy(DatasetOptions):
    """Images of 6x6 that are known by their attributes alone."""

    attributes: ClassVar[tuple[str, ...]] = ("large", "bright", "round")
    shape: ClassVar[tuple[int, int, int]] = (1, 6, 6)
    licence: ClassVar[str] = "none"


@pytest.fixture
def stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bright, make_experiment, random_set
) -> tuple[Experiment, Callable[..., list[str]]]:
    """An experiment with all metrics about what is bright, and a way to give it its oracles."""
    monkeypatch.chdir(tmp_path)
    attributes = np.zeros((40, 3), np.uint8)
    attributes[:, 0], attributes[:, 1] = 1, np.arange(40) % 5 > 1
    tensors = {
        "images": quantise(random_set(40, seed=9).counterfactual).numpy(),
        "labels": np.zeros(40, np.int64),
        "attributes": attributes,
    }
    files.save_tensors(layout.prepared("toy", "train"), tensors)
    experiment = make_experiment(
        dataset=Toy(kind="toy"),
        pairs=[(0, 1)],
        classifier={"kind": "lenet", "attribute": "bright"},
        metrics=tuple(options_of(kind) for kind in CONFIGURED),
    )

    def give(oracles: dict[str, object]) -> list[str]:
        """What is loaded, in order, once the stage has run."""
        loaded: list[str] = []

        def load(models: Models, name: str, device: torch.device) -> object:
            assert models is experiment.models
            loaded.append(name)
            return {"lenet": bright, **oracles}[name]

        monkeypatch.setattr(compute.classifiers, "load", load)
        monkeypatch.setattr(compute.oracles, "load", load)
        return loaded

    return experiment, give


def test_the_stage_writes_both_files_the_same_each_time(
    stage, pixel_extractor, random_set: Callable[..., CounterfactualSet]
) -> None:
    experiment, give = stage
    write_set(with_path(random_set(12)))
    pixels = pixel_extractor()
    loaded = give({"attributes": FirstPixels(), "autoencoders": Halves(), "pixels": pixels})
    output = layout.metrics("tiny", "hand", 0, 1)
    written = []
    for _ in range(2):
        compute.compute(experiment, "hand", 0, 1, torch.device("cpu"))
        written.append([Path(f"{output}{suffix}").read_bytes() for suffix in (".json", ".parquet")])
    assert written[0] == written[1]
    assert loaded == 2 * ["lenet", "attributes", "autoencoders", "pixels"]
    summary = files.read_json(Path(f"{output}.json"))
    assert (summary["experiment"], summary["method"]) == ("tiny", "hand")
    assert (summary["source"], summary["target"], summary["images"]) == (0, 1, 12)
    table = pd.read_parquet(f"{output}.parquet")
    assert summary["per_image"]["cout"] == pytest.approx(table["cout"].mean())
    assert len(table["curve_source"][0]) == 9
    assert summary["per_set"]["feature_error"] == pytest.approx(0.25)
    # only what is bright is the reference of 0_to_1, and the second job finds its features kept
    asked = [len(call) for call in pixels.calls]
    assert sorted(asked) == [12, 12, 12, 12, 24]  # counterfactuals and queries, twice
    reference = load_split(layout.prepared("toy", "train"), [1], attribute=1).images
    (seen,) = (call for call in pixels.calls if len(call) == 24)
    assert torch.equal(seen, quantise(reference))


def test_the_context_is_of_what_the_classifier_tells(stage) -> None:
    experiment, give = stage
    give({})
    context = compute.context_of(experiment, [], torch.device("cpu"))
    assert context.attribute == 1 and context.class_names == ("not bright", "bright")
    assert context.oracles == {}


def test_the_stage_without_its_input_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = SimpleNamespace(name="tiny", metrics=[])
    with pytest.raises(UserError, match="0_to_1"):
        compute.compute(experiment, "hand", 0, 1, torch.device("cpu"))  # type: ignore[arg-type]


def test_the_stage_of_a_pair(stage, pixel_extractor, random_set) -> None:
    """Both directions are read, or the one that is run; only what judges pairs is loaded."""
    experiment, give = stage
    sets = {(0, 1): random_set(12), (1, 0): random_set(9, seed=4)}
    for (source, target), cf in sets.items():
        stem = layout.counterfactuals("tiny", "hand", source, target)
        tensors = {"query": cf.query.numpy(), "counterfactual": cf.counterfactual.numpy()}
        facts = {"experiment": "tiny", "method": "hand"}
        facts |= {"source": str(source), "target": str(target)}
        files.save_tensors(stem.with_suffix(".safetensors"), tensors, facts)
        files.write_parquet(stem.with_suffix(".parquet"), cf.table)
    loaded = give({"attributes": FirstPixels(), "pixels": pixel_extractor()})
    written = []
    path = layout.pair_metrics("tiny", "hand", "0-1").with_suffix(".json")
    for _ in range(2):
        compute.compute_pair(experiment, "hand", (0, 1), torch.device("cpu"))
        written.append(path.read_bytes())
    assert written[0] == written[1] and set(loaded) == {"lenet", "attributes", "pixels"}
    summary = files.read_json(path)
    assert summary["pair"] == [0, 1] and set(summary["per_pair"]) == {"cd_oracle", "sfid_oracle"}
    both = summary["images"]["cd_oracle"]
    forward = experiment.evaluation.model_copy(update={"directions": "forward"})
    one_way = experiment.model_copy(update={"evaluation": forward})
    compute.compute_pair(one_way, "hand", (0, 1), torch.device("cpu"))
    assert 0 < files.read_json(path)["images"]["cd_oracle"] < both
