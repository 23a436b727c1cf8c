"""The method of docs/add-a-method.md, through the stages that a workflow runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from counterlens import layout
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, load_experiment
from counterlens.data.base import load_split
from counterlens.data.prepare import prepare
from counterlens.errors import UserError
from counterlens.methods import base, explain, fit
from counterlens.runtime import files
from counterlens.runtime.training import save_model

EXAMPLE = Path(__file__).parents[1] / "examples" / "nearest_neighbour.py"
CPU = torch.device("cpu")

EXPERIMENT = f"""
name: tiny
dataset: digits
seed: 1
pairs: [[4, 9]]
classifier: {{kind: lenet}}
methods:
  nearest: {{kind: {EXAMPLE}, per_class: 20}}
  greedy: {{kind: {EXAMPLE}, per_class: 100000}}
evaluation: {{images: 5}}
"""


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The digits, and a classifier that is not trained."""
    monkeypatch.chdir(tmp_path)
    files.write_text(Path("config/experiments/tiny.yaml"), EXPERIMENT)
    prepare("digits", layout.raw("digits"), layout.PREPARED / "digits")
    found = load_experiment("tiny", "small")
    torch.manual_seed(0)
    save_model(classifiers.model_file(found), classifiers.create(found))
    return found


def test_example_runs_through_the_stages(experiment: Experiment) -> None:
    fit.run(experiment, "nearest", (4, 9), CPU)
    for source, target in ((4, 9), (9, 4)):
        explain.run(experiment, "nearest", source, target, CPU)
        stem = layout.counterfactuals("tiny", "nearest", source, target)
        tensors = files.load_tensors(stem.with_suffix(".safetensors"))
        table = pd.read_parquet(stem.with_suffix(".parquet"))
        real = load_split(layout.prepared("digits", "train"), [target]).images[:20].numpy()
        assert len(table) == 5
        for number, found in enumerate(table["found"]):
            image = tensors["counterfactual"][number]
            if found:
                assert (image == real).all(axis=(1, 2, 3)).any()
                assert table["predicted_counterfactual"][number] == target
            else:
                assert np.array_equal(image, tensors["query"][number])


def test_example_takes_the_nearest_that_the_classifier_recognises(experiment: Experiment) -> None:
    fit.run(experiment, "nearest", (4, 9), CPU)
    method = base.load(experiment, "nearest", (4, 9), CPU)
    x = load_split(layout.prepared("digits", "test"), [4]).images[:5]
    source, target = torch.full((5,), 4), torch.full((5,), 9)

    class SaysNine(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answers = torch.zeros(len(images), 10)
            answers[:, 9] = 1
            answers[20 + 3] = 0  # the fourth nine is not recognised
            return answers

    object.__setattr__(method.task, "classifier", SaysNine())
    answer = method.explain(x, source, target, [])
    nines = load_split(layout.prepared("digits", "train"), [9]).images[:20].numpy()
    allowed = np.delete(nines, 3, axis=0)
    distance = ((x.numpy()[:, None] - allowed[None]) ** 2).sum(axis=(2, 3, 4))
    expected = allowed[distance.argmin(axis=1)]
    assert answer.found.all()
    assert np.array_equal(answer.counterfactual.numpy(), expected)


def test_example_tells_when_it_found_none(experiment: Experiment) -> None:
    fit.run(experiment, "nearest", (4, 9), CPU)
    method = base.load(experiment, "nearest", (4, 9), CPU)
    x = load_split(layout.prepared("digits", "test"), [4]).images[:3]

    class SaysZero(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[torch.zeros(len(images), dtype=torch.long)]

    object.__setattr__(method.task, "classifier", SaysZero())
    answer = method.explain(x, torch.full((3,), 4), torch.full((3,), 9), [])
    assert not answer.found.any()
    assert torch.equal(answer.counterfactual, x)


def test_example_refuses_a_bank_larger_than_the_class(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="per_class: 100000"):
        fit.run(experiment, "greedy", (4, 9), CPU)
