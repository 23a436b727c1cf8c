"""Frozen networks of width 4 and methods on the pair (4, 9)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from counterlens import layout, plugins
from counterlens.bench import peers
from counterlens.classifiers import train as classifiers_train
from counterlens.classifiers.base import Classifier
from counterlens.config import Experiment, MethodOptions, Options
from counterlens.data.base import ImageSet
from counterlens.experiments import load_experiment
from counterlens.generators import train as generators_train
from counterlens.generators.base import Generator, Training
from counterlens.methods import fit
from counterlens.methods.base import Method, Task
from counterlens.runtime import files
from counterlens.runtime.device import freeze

from .stages import MEAN_IMAGE

CPU = torch.device("cpu")
PAIR = (4, 9)
SHAPE = (1, 28, 28)
GENERATORS: dict[str, dict[str, Any]] = {
    "dcgan": {"kind": "dcgan", "width": 4, "latent_dim": 8},
    "encoder": {"kind": "dcgan-encoder", "generator": "dcgan", "width": 4, "latent_dim": 8},
    "vae": {"kind": "vae", "width": 4, "latent_dim": 8},
    "ddpm": {"kind": "ddpm", "channels": (8, 8), "steps": 50},
    "latent-diffusion": {
        "kind": "latent-diffusion",
        "classes": (4, 9),
        "widths": (8, 8, 8),
        "channels": (8, 8),
        "groups": 8,
    },
    "cem-autoencoder": {"kind": "cem-autoencoder", "width": 4},
    "pgan": {"kind": "pgan", "width": 4, "latent_dim": 8},
    "beta-tcvae": {"kind": "beta-tcvae", "width": 4, "latent_dim": 8},
    "sean": {"kind": "sean", "segmentation": "strokes", "width": 4, "code_dim": 8},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "lenet": {"kind": "lenet"},
    "gap-resnet": {"kind": "gap-resnet", "widths": (4, 8)},
}
TRAINED_CLASSIFIER = ("cve",)  # methods that need images it recognises
FILTERED = {"schedule": 10, "steps": 2, "iterations": 4, "step_size": 0.05, "dilation": 3}
METHODS: dict[str, dict[str, Any]] = {
    "ace": FILTERED,
    "cecas": {
        **FILTERED,
        "epochs": 2,
        "epoch_steps": 5,
        "batch_size": 8,
        "auxiliary_epochs": 2,
        "auxiliary_batch_size": 8,
    },
    "eced": {"background_updates": 3, "grid": 10, "start": 200, "updates": 3, "lr": 0.3},
    "cem": {
        "autoencoder": "cem-autoencoder",
        "targeting": "full",
        "gamma": 1,
        "initial_c": 1,
        "search_steps": 3,
        "iterations": 8,
        "lr": 0.1,
    },
    "cve": {"per_class": 12},
    "dime": {"schedule": 10, "steps": 3, "guidance": (1.0, 5.0)},
    "c3lt": {
        "generator": "dcgan",
        "encoder": "encoder",
        "epochs": 2,
        "batch_size": 8,
        "lr": 0.01,
        "precision": "fp32",
    },
    "dive": {"explanations": 3, "iterations": 6, "lr": 0.1, "batch_size": 12},
    "mirror-cfe": {
        "epochs": 2,
        "batch_size": 8,
        "grid": 5,
        "lr": 0.001,
        "precision": "fp32",
        "least_width": 6,
    },
    "explaingan": {
        "latent_dim": 8,
        "width": 4,
        "epochs": 2,
        "batch_size": 8,
        "lr": 0.001,
        "precision": "fp32",
    },
    "cyclegan": {
        "width": 4,
        "blocks": 1,
        "discriminator_width": 4,
        "discriminator_layers": 2,
        "epochs": 1,
        "decay_epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
    },
    "pgd": {"epsilon": 0.2, "step_size": 0.05, "steps": 4},
    "steex": {"steps": 6, "lr": 0.1},
}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Options]:
    """The options of a tiny generator by its id here, or of a tiny method by its kind."""

    def make(section: str, name: str, **changes: Any) -> Options:
        known = GENERATORS[name] if section == "generators" else {"kind": name, **METHODS[name]}
        content = {**known, **changes}
        return plugins.options_class(section, content["kind"]).model_validate(content)

    return make


def separate(classifier: Classifier, data: ImageSet) -> None:
    """Set the head so that it tells the two classes apart, by least squares."""
    with torch.no_grad():
        features = classifier.embedding(data.images)
        known = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        sides = torch.where(data.labels == PAIR[1], 1.0, -1.0)
        found = 4 * torch.linalg.lstsq(known, sides[:, None]).solution[:, 0]
        classifier.head.weight.mul_(0.1)  # type: ignore[union-attr, operator]
        classifier.head.bias.fill_(-4)  # type: ignore[union-attr, operator]
        for label, sign in zip(PAIR, (-1, 1), strict=True):
            classifier.head.weight[label] = sign * found[:-1]  # type: ignore[index]
            classifier.head.bias[label] = sign * found[-1]  # type: ignore[index]
    assert (classifier(data.images).argmax(dim=1) == data.labels).float().mean() > 0.8


@pytest.fixture(scope="session")
def models(frozen, shapes) -> dict[str, Any]:
    """Frozen classifiers and generators by id."""
    found: dict[str, Any] = {}
    images = shapes(64, PAIR).images
    for name, content in CLASSIFIERS.items():
        torch.manual_seed(1)
        options = plugins.options_class("classifiers", content["kind"]).model_validate(content)
        model = plugins.create("classifiers", options, Classifier, shape=SHAPE, classes=10)
        found[name] = frozen(model, lambda model=model: model(images))
        # answers far from uniform, as a trained network's are
        found[name].head.weight.data.mul_(10)
    separate(found["gap-resnet"], shapes(64, PAIR))
    for name, content in GENERATORS.items():
        torch.manual_seed(2)
        options = plugins.options_class("generators", content["kind"]).model_validate(content)
        model = plugins.create("generators", options, Generator, SHAPE)

        def run(model: Generator = model, name: str = name) -> None:
            if name in ("encoder", "vae"):
                model.encode(images)
            if name in ("dcgan", "vae"):
                model.decode(torch.randn(64, 8))
            if name == "dcgan":
                model.discriminate(images)

        found[name] = frozen(model, run)
    return found


@pytest.fixture
def create(models) -> Callable[..., Method]:
    """A method of a kind, by default tiny, untrained."""

    def make(kind: str, seed: int = 7, **changes: Any) -> Method:
        assert kind in METHODS, f"give '{kind}' tiny options in METHODS of this file"
        content = {"kind": kind, **METHODS[kind], **changes}
        options = plugins.options_class("methods", kind).model_validate(content)
        assert isinstance(options, MethodOptions)
        gap = options.requires_gap or kind in TRAINED_CLASSIFIER
        classifier = models["gap-resnet" if gap else "lenet"]
        generators = {name: models[name] for name in options.generators()}
        return plugins.create(
            "methods", options, Method, Task(classifier, generators, SHAPE, (PAIR,), CPU, seed)
        )

    return make


@pytest.fixture(scope="session")
def on_trained(models, shapes) -> Callable[..., Method]:
    """A method on a classifier that tells the pair apart and a generator trained on its images."""
    made: dict[str, Generator] = {}

    def train(name: str) -> Generator:
        data = shapes(64, PAIR)
        content = {**GENERATORS[name], "epochs": 24, "batch_size": 16, "lr": 0.01}
        content |= {"precision": "fp32"}
        options = plugins.options_class("generators", name).model_validate(content)
        torch.manual_seed(3)
        generator = plugins.create("generators", options, Generator, SHAPE)
        generator.fit(Training(data.images, data.images, models["gap-resnet"], {}, CPU, 5))
        freeze(generator, CPU)
        return generator

    def make(kind: str, name: str, **changes: Any) -> Method:
        if name not in made:
            made[name] = train(name)
        content = {"kind": kind, **METHODS[kind], **changes}
        options = plugins.options_class("methods", kind).model_validate(content)
        task = Task(models["gap-resnet"], {name: made[name]}, SHAPE, (PAIR,), CPU, 7)
        return plugins.create("methods", options, Method, task)

    return make


@pytest.fixture
def states(models) -> Callable[[], dict[str, bytes]]:
    """The bytes of every frozen network; none may have a gradient."""

    def read() -> dict[str, bytes]:
        found = {}
        for name, model in models.items():
            assert not model.training and all(p.grad is None for p in model.parameters())
            for key, value in model.state_dict().items():
                found[f"{name}.{key}"] = value.contiguous().numpy().tobytes()
        return found

    return read


@pytest.fixture(scope="session")
def references() -> peers.Peer:
    """The searches as published, of one image at a time."""
    return peers.load(str(Path(__file__).with_name("references.py")))


@pytest.fixture(scope="session")
def mismatch() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The share of values that differ by more than rounding.

    Rounding differs with the size of a batch, and a gradient near zero may then change its sign:
    a step more or less in a few pixels.
    """

    def share(found: torch.Tensor, expected: torch.Tensor) -> float:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        if found.dtype == torch.bool:
            return float((found != expected).float().mean())
        return float((~found.isclose(expected, atol=1e-5, rtol=1e-4)).float().mean())

    return share


# A tiny project


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


# Images for C3LT and ECED


@pytest.fixture
def batch(shapes, models) -> tuple[Tensor, Tensor]:
    """Images of both classes, four each, and their latents."""
    data = shapes(8, (4, 9), seed=2)
    order = data.labels.argsort(stable=True)
    x = data.images[order]
    assert data.labels[order].tolist() == [4] * 4 + [9] * 4
    with torch.no_grad():
        return x, models["encoder"].encode(x)


@pytest.fixture
def queries(shapes) -> tuple[Tensor, Tensor, Tensor]:
    """Three images of each class, their classes, and the other class."""
    data = shapes(6, (4, 9), seed=5)
    return data.images, data.labels, 13 - data.labels
