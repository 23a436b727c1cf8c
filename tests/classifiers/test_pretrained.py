"""A user's own network in its three formats, and what is said of one that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from counterlens import layout, plugins
from counterlens.classifiers import adopt, base
from counterlens.classifiers.base import Classifier
from counterlens.classifiers.pretrained import Options, Pretrained
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.runtime import files
from counterlens.runtime.device import freeze

CPU = torch.device("cpu")
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Conv2d(4, 6, 3, 2, 1)
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))

def build():
    return Net()

def broken():
    return 3
"""
FACTORY = {
    "network": "net.py:build",
    "weights": "net.safetensors",
    "mean": (0.5,),
    "std": (0.25,),
    "maps": ("first", "second"),
    "head": "fc",
}


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The user's network in the current folder, as code, weights, ONNX and TorchScript."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.manual_seed(3)
    made: nn.Module = space["build"]()
    made(torch.randn(64, 1, 28, 28))  # statistics of the normalisation
    made.eval()
    save_file(made.state_dict(), "net.safetensors")
    torch.jit.trace(made, torch.rand(2, 1, 28, 28)).save("net.pt")
    torch.onnx.export(
        made,
        (torch.rand(2, 1, 28, 28),),
        "net.onnx",
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
        dynamo=False,
    )
    return made


def create(**changes: Any) -> Pretrained:
    options = Options.model_validate({"kind": "pretrained", **changes})
    model = plugins.create("classifiers", options, Classifier, shape=(1, 28, 28), classes=10)
    model.read_weights()
    return model.eval()


@pytest.mark.parametrize("network_file", ["net.onnx", "net.pt"])
def test_a_file_answers_as_the_network(network: nn.Module, network_file: str) -> None:
    x = torch.rand(5, 1, 28, 28)
    model = create(network=network_file, mean=(0.5,), std=(0.25,))
    expected = network((x - 0.5) / 0.25)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    # without maps the logits stand for them, and all parts of the interface agree
    torch.testing.assert_close(model.classify(model.features(x)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.head(model.embedding(x)), expected, rtol=1e-4, atol=1e-5)
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    assert gradient.abs().sum() > 0
    with pytest.raises(UserError, match=f"{network_file}: is trained and cannot be trained again"):
        model.train()


def test_a_factory_has_its_maps_and_head(network: Any) -> None:
    x = torch.rand(3, 1, 28, 28)
    model = create(**FACTORY)
    v = (x - 0.5) / 0.25
    first = network.first(v)
    found = model.maps(x)
    torch.testing.assert_close(found[0], first)
    torch.testing.assert_close(found[1], network.second(first))
    torch.testing.assert_close(model.embedding(x), network.second(first).mean(dim=(2, 3)))
    torch.testing.assert_close(model.classify(found[1]), network(v))
    frozen = freeze(create(**FACTORY), CPU)  # folds the normalisation
    torch.testing.assert_close(frozen.maps(x)[0], first, rtol=1e-4, atol=1e-5)  # type: ignore


def test_probabilities_become_logits(network: Any, tmp_path: Path) -> None:
    Path("soft.py").write_text(
        NET + "\ndef soft():\n    return nn.Sequential(Net(), nn.Softmax(1))\n"
    )
    save_file({f"0.{k}": v for k, v in network.state_dict().items()}, "soft.safetensors")
    model = create(network="soft.py:soft", weights="soft.safetensors", outputs="probabilities")
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model(x).softmax(1), network(x).softmax(1))
    assert model(x).isfinite().all()


def test_fresh_weights_for_a_judge(network: Any) -> None:
    """An oracle of the same architecture must not start from the user's weights."""
    options = Options.model_validate({"kind": "pretrained", **FACTORY})
    fresh = plugins.create("classifiers", options, Classifier, shape=(1, 28, 28), classes=10)
    assert not torch.equal(fresh.network.fc.weight, network.fc.weight)
    assert fresh.train().training


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": "net.py:build"}, "a factory needs it"),
        ({"network": "net.onnx", "weights": "net.safetensors"}, "belongs to a factory"),
        ({"network": "net.onnx", "maps": ("first",)}, "`maps` names modules of a factory"),
        ({**FACTORY, "maps": ()}, "`maps` and `head` belong together"),
        ({**FACTORY, "head": None}, "`maps` and `head` belong together"),
        ({**FACTORY, "outputs": "probabilities"}, "`head` gives logits"),
        ({**FACTORY, "std": (0.0,)}, "must be positive"),
        ({"network": "net.pkl"}, "should match pattern"),
        ({"network": "net.py:build", "weights": "net.pth"}, "should match pattern"),
    ],
)
def test_options_that_do_not_go_together(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Options.model_validate({"kind": "pretrained", **changes})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({**FACTORY, "network": "net.py:absent"}, "net.py: defines no 'absent'"),
        ({**FACTORY, "network": "net.py:broken"}, "net.py:broken: gives int, not a torch module"),
        ({**FACTORY, "maps": ("third",)}, "has no module 'third'; it has first, "),
        ({**FACTORY, "mean": (0.1, 0.2)}, "classifier.mean: 2 values for 1 channels"),
        ({"network": "damaged.onnx"}, "damaged.onnx: cannot be read"),
        ({"network": "damaged.pt"}, "damaged.pt: cannot be read"),
    ],
)
def test_networks_that_are_not_there(network: Any, changes: dict[str, Any], told: str) -> None:
    for name in ("damaged.onnx", "damaged.pt"):
        Path(name).write_bytes(b"\x00 nothing")
    with pytest.raises(UserError, match=told) as error:
        create(**changes)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_fit(network: Any) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors: does not fit net.py:build"):
        create(**{**FACTORY, "weights": "other.safetensors"})


# The stage


@pytest.fixture
def adopted(network: nn.Module, prepared: Callable[..., None], make_experiment: Any) -> Any:
    """An experiment on square images with the given classifier."""
    prepared(12, 30)

    def make(**classifier: Any) -> Any:
        return make_experiment(classifier={"kind": "pretrained", **classifier})

    return make


@pytest.mark.parametrize("classifier", [FACTORY, {"network": "net.onnx"}, {"network": "net.pt"}])
def test_the_stage_writes_what_training_writes(
    adopted: Any, network: nn.Module, classifier: dict[str, Any]
) -> None:
    experiment = adopted(**classifier)
    adopt.run(experiment.models, experiment.classifier, CPU)
    folder = layout.classifier(experiment.name, experiment.classifier)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "card.json",
        "training.csv",
        "predictions.parquet",
        "embeddings.safetensors",
    }
    assert list(pd.read_csv(folder / "training.csv").columns) == ["epoch"]
    card = files.read_json(folder / "card.json")
    table = pd.read_parquet(folder / "predictions.parquet")
    accuracy = (table["label"] == table["predicted"]).mean()
    assert card["test_accuracy"] == pytest.approx(accuracy)
    assert card["gates"]["test_accuracy"]["passed"] == (accuracy > 0.5)  # half of them are a 4
    assert card["epochs"] == 0
    assert card["files"] == {
        Path(f).name: files.sha256(Path(f)) for f in experiment.classifier_options.files
    }
    # what is loaded later answers the same, and does so from its own file
    loaded = base.load(experiment.models, experiment.classifier, CPU)
    x = torch.rand(4, 1, 28, 28)
    v = (x - 0.5) / 0.25 if classifier is FACTORY else x
    torch.testing.assert_close(loaded(x), network(v), rtol=1e-4, atol=1e-4)
    assert files.read_metadata(folder / "model.safetensors") == card["files"]


def test_equal_files_give_equal_bytes(adopted: Any, digests: Callable[[], dict[str, str]]) -> None:
    experiment = adopted(network="net.onnx")
    adopt.run(experiment.models, experiment.classifier, CPU)
    first = digests()
    adopt.run(experiment.models, experiment.classifier, CPU)
    assert digests() == first


@pytest.mark.parametrize(
    ("code", "changes", "told"),
    [
        (
            "return self.fc(self.second(self.first(x)).amax(dim=(2, 3)))",
            {},
            "does not give the net",
        ),
        (
            "return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))[:, :4]",
            {},
            r"gives \(8, 4\)",
        ),
        (
            "return self.fc(self.second(self.first(x)).mean(dim=(2, 3))) + x.mean()",
            {"maps": (), "head": None},
            "answers depend on the other images of a batch",
        ),
        (
            "return self.fc(self.second(self.first(x)).mean(dim=(2, 3)).view(1, 6))",
            {},
            "export it for any batch",
        ),
        (
            "return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))",
            {"maps": ("first.0", "second")},
            "'first.0' is merged with the normalisation behind it",
        ),
        (
            "return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))",
            {"maps": ("fc",)},
            "must give feature maps",
        ),
    ],
)
def test_a_network_that_is_not_what_is_said(
    adopted: Any, code: str, changes: dict[str, Any], told: str
) -> None:
    before = "return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))"
    assert before in NET
    Path("net.py").write_text(NET.replace(before, code))
    experiment = adopted(**{**FACTORY, **changes})
    with pytest.raises(UserError, match=told) as error:
        adopt.run(experiment.models, experiment.classifier, CPU)
    assert "\n" not in str(error.value)


# The experiment file


EXPERIMENT = """
name: own
dataset: digits
seed: 1
pairs: [[4, 9]]
classifier: {classifier}
oracles: {oracles}
methods: {methods}
evaluation: {{images: 5}}
"""


@pytest.mark.parametrize(
    ("classifier", "oracles", "methods", "told"),
    [
        (
            "{kind: pretrained, network: net.onnx}",
            "{}",
            "{m: {kind: mirror-cfe}}",
            "global average",
        ),
        (
            "{kind: pretrained, network: net.pt}",
            "{judge: {kind: feature-extractor}}",
            "{pgd: {kind: pgd, epsilon: 0.1, step_size: 0.1, steps: 2}}",
            "oracles.judge: trains the classifier's architecture again",
        ),
        (
            "{kind: pretrained, network: gone.onnx}",
            "{}",
            "{pgd: {kind: pgd, epsilon: 0.1, step_size: 0.1, steps: 2}}",
            "'gone.onnx': no such",
        ),
    ],
)
def test_the_experiment_is_refused_in_one_line(
    network: Any, classifier: str, oracles: str, methods: str, told: str
) -> None:
    text = EXPERIMENT.format(classifier=classifier, oracles=oracles, methods=methods)
    files.write_text(Path("config/experiments/own.yaml"), text)
    with pytest.raises(UserError, match=told) as error:
        load_experiment("own", "small")
    assert "\n" not in str(error.value)
