"""The examples of the documentation, through the interfaces that a workflow uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from counterlens import layout, plugins
from counterlens.classifiers import adopt
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment
from counterlens.data.base import Dataset, load_split
from counterlens.data.formats.prepare import prepare
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.methods import base, explain, fit
from counterlens.metrics import compute
from counterlens.runtime import files
from counterlens.runtime.training import save_model

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "nearest_neighbour.py"
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
    e = load_experiment("tiny", "small")
    prepare(e.dataset, layout.raw("digits"), layout.PREPARED / "digits")
    torch.manual_seed(0)
    file = classifiers.model_file(e.models, e.classifier)
    save_model(file, classifiers.create(e.models, e.classifier))
    return e


def test_example_runs_through_the_stages(experiment: Experiment) -> None:
    fit.run(experiment, "nearest", "4-9", CPU)
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
    fit.run(experiment, "nearest", "4-9", CPU)
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
    fit.run(experiment, "nearest", "4-9", CPU)
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
        fit.run(experiment, "greedy", "4-9", CPU)


def plugin_of(document: str, folder: Path) -> Path:
    """The Python file that a page of docs/ shows."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    path = folder / f"{document.removesuffix('.md').replace('-', '_')}.py"
    files.write_text(path, text.split("```python\n")[1].split("```")[0])
    return path


def test_the_classifier_of_the_documentation(tmp_path: Path) -> None:
    kind = str(plugin_of("add-a-classifier.md", tmp_path))
    options = plugins.options_class("classifiers", kind)(kind=kind, width=3)
    model = plugins.create(
        "classifiers", options, classifiers.Classifier, shape=(1, 28, 28), classes=10
    )
    x = torch.rand(2, 1, 28, 28)
    maps = model.maps(x)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 14, 14), (2, 6, 7, 7)]
    assert model(x).shape == (2, 10)
    assert torch.equal(model(x), model.head(maps[-1].mean(dim=(2, 3))))


def test_the_dataset_of_the_documentation(tmp_path: Path) -> None:
    kind = str(plugin_of("add-a-dataset.md", tmp_path))
    dataset = plugins.create("data", plugins.options_class("data", kind)(kind=kind), Dataset)
    images = np.arange(2 * 784, dtype=np.uint8).reshape(2, 1, 28, 28)
    np.savez(
        tmp_path / "shapes.npz",
        train_images=images,
        train_labels=np.array([0, 1]),
        test_images=images[:1],
        test_labels=np.array([1], np.int32),
    )
    assert tuple(source.file for source in dataset.sources) == dataset.options.files
    splits = dataset.read(tmp_path)
    assert np.array_equal(splits["train"].images, images)
    assert splits["test"].labels.dtype == np.int64
    assert splits["test"].labels.tolist() == [1]


OWN = ROOT / "examples" / "bring_your_own"
FACTORY = """
network: examples/bring_your_own/net.py:build
weights: my/net.safetensors
maps: [first, second]
head: fc
"""


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example's script makes."""
    folder = tmp_path_factory.mktemp("brought")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(OWN / "make.py"), str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("network", [FACTORY, "network: my/net.onnx", "network: my/net.pt"])
def test_a_user_s_classifier_pictures_and_method(
    network: str, brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All named in one experiment file, from the pictures to the metrics."""
    monkeypatch.chdir(tmp_path)
    Path("my").symlink_to(brought)
    Path("examples").symlink_to(ROOT / "examples")
    text = (OWN / "my-pictures.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    shared = {key: content["classifier"][key] for key in ("kind", "mean", "std")}
    content["classifier"] = {**shared, **yaml.safe_load(network)}
    files.write_text(Path("config/experiments/my-pictures.yaml"), yaml.safe_dump(content))
    e = load_experiment("my-pictures", "small")

    dataset = e.dataset.name
    assert dataset == "pictures-28x28" and e.classifier == "pretrained"
    card = prepare(e.dataset, layout.raw(dataset), layout.PREPARED / dataset)
    assert card.classes == ("three", "eight", "nine") and card.shape == (1, 28, 28)
    adopt.run(e.models, e.classifier, CPU)
    folder = layout.classifier("my-pictures", "pretrained")
    accuracy = files.read_json(folder / "card.json")["test_accuracy"]
    assert accuracy > 0.9, "the pictures, the classes and the normalisation are the network's own"
    fit.run(e, "nearest", "0-1", CPU)
    for method in e.methods:
        explain.run(e, method, 0, 1, CPU)
        compute.compute(e, method, 0, 1, CPU)
        stem = layout.metrics("my-pictures", method, 0, 1)
        judged = files.read_json(stem.with_suffix(".json"))
        assert judged["images"] == 20
        assert judged["per_image"]["validity"] > 0.5, method


def test_the_example_s_file_is_what_is_shown() -> None:
    """The workflow accepts the example as it stands, but for the files that the script makes."""
    content = yaml.safe_load((OWN / "my-pictures.yaml").read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(document.split("```yaml\n")[1].split("```")[0])
    assert shown == content
