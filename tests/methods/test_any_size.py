"""Every method and every generator on pictures of three sizes: all that are trained here run.

Networks that are released for certain sizes refuse others in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import pytest
import torch

from counterlens import plugins
from counterlens.classifiers import train as training
from counterlens.classifiers.base import Classifier
from counterlens.config import (
    ClassifierOptions,
    DatasetOptions,
    GeneratorOptions,
    MethodOptions,
    Options,
)
from counterlens.data.base import ImageSet
from counterlens.experiments import dataset_options
from counterlens.generators.base import Generator, Training
from counterlens.methods.base import Method, Task
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import image_generators

CPU = torch.device("cpu")
PAIR = (4, 9)
SHORT = {
    "dcgan": {"epochs": 1},
    "encoder": {"epochs": 1},
    "vae": {"epochs": 1},
    "cem-autoencoder": {"epochs": 1},
    "pgan": {"epochs": 1},
    "beta-tcvae": {"epochs": 1},
    "sean": {"epochs": 1},
    "ddpm": {"epochs": 1, "epoch_steps": 2},
    "latent-diffusion": {"autoencoder_epochs": 1, "epochs": 1, "epoch_steps": 2},
}
QUICK = {
    "cecas": {"epochs": 1, "epoch_steps": 2, "auxiliary_epochs": 1, "iterations": 2},
    "mirror-cfe": {"epochs": 1},
    "cem": {"search_steps": 2, "iterations": 4},
    "cve": {"cell": 4},  # at 28x40 cells of 14x20 positions, those at the border smaller
}


@dataclass
class Pictures:
    """Bright and dark pictures of a size, a classifier of them and generators trained on them."""

    size: tuple[int, int]
    tiny: Callable[..., Options]
    trained: dict[str, Generator] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, *self.size)

    @cached_property
    def dataset(self) -> DatasetOptions:
        settings = ["folder=pictures", "names=[a, b]", "grey=true", f"size={list(self.size)}"]
        return dataset_options("image-folder", settings)

    @cached_property
    def data(self) -> ImageSet:
        labels = torch.tensor(PAIR).repeat(16)
        images = torch.rand(32, *self.shape, generator=torch.Generator().manual_seed(1)) / 2
        images[labels == PAIR[1]] += 0.5
        return ImageSet(images, labels, torch.arange(32))

    @cached_property
    def classifier_options(self) -> ClassifierOptions:
        content = {"kind": "gap-resnet", "widths": (4, 8), "epochs": 8, "batch_size": 8, "lr": 0.03}
        options = plugins.options_class("classifiers", "gap-resnet").model_validate(content)
        assert isinstance(options, ClassifierOptions) and not options.unsuited(self.dataset)
        return options

    @cached_property
    def classifier(self) -> Classifier:
        options = self.classifier_options
        torch.manual_seed(2)
        model = plugins.create("classifiers", options, Classifier, shape=self.shape, classes=10)
        training.fit(model, self.data, options, 3, CPU, None, name="classifier")
        freeze(model, CPU)
        assert (model(self.data.images).argmax(dim=1) == self.data.labels).float().mean() > 0.9
        return model

    def generator(self, name: str) -> Generator:
        """One of the generators, trained for a few steps."""
        if name not in self.trained:
            options = self.tiny("generators", name, **SHORT[name])
            assert isinstance(options, GeneratorOptions) and not options.unsuited(self.dataset)
            torch.manual_seed(4)
            model = plugins.create("generators", options, Generator, self.shape)
            x, labels = self.data.images, self.data.labels
            needed = {other: self.generator(other) for other in options.requires()}
            given = Training(x, x[:8], self.classifier, needed, CPU, 5, None, labels, labels[:8])
            assert len(model.fit(given)) >= 1
            sheet = model.sheet(given)
            assert sheet.shape[1:] == self.shape and ((sheet >= 0) & (sheet <= 1)).all()
            freeze(model, CPU)
            self.trained[name] = model
        return self.trained[name]


@pytest.fixture(scope="module", params=[(16, 16), (32, 32), (28, 40)], ids=str)
def pictures(request: pytest.FixtureRequest, tiny: Callable[..., Options]) -> Pictures:
    return Pictures(request.param, tiny)


@pytest.mark.parametrize("name", SHORT)
def test_generators(name: str, pictures: Pictures) -> None:
    assert pictures.generator(name).shape == pictures.shape


@pytest.mark.parametrize("kind", plugins.known("methods"))
def test_methods(kind: str, pictures: Pictures, tiny: Callable[..., Options]) -> None:
    options = tiny("methods", kind, **QUICK.get(kind, {}))
    assert isinstance(options, MethodOptions)
    assert options.unsuited(pictures.dataset, pictures.classifier_options) is None
    generators = {name: pictures.generator(name) for name in options.generators()}
    task = Task(pictures.classifier, generators, pictures.shape, (PAIR,), CPU, 6)
    method: Method = plugins.create("methods", options, Method, task)
    if options.trainable:
        method.fit(pictures.data)
        freeze(method.trained(), CPU)
    x, source = pictures.data.images[:4], pictures.data.labels[:4]
    random = image_generators(85, "any size", kind, range(4))
    answer = method.explain(x, source, sum(PAIR) - source, random)
    made = answer.counterfactual
    assert made.shape == x.shape and ((made >= 0) & (made <= 1)).all()
    for name, extra in answer.extras.items():
        assert len(extra) == 4 and extra.isfinite().all(), name


FILES = {
    "biggan": {"folder": "f", "imagenet": (1, 2)},
    "guided-diffusion": {"file": "f", "sha256": "0" * 64},
    "released-sean": {
        **{"file": "f", "sha256": "0" * 64},
        **{"segmenter": "s", "segmenter_sha256": "0" * 64},
    },
}


@pytest.mark.parametrize("kind", FILES)
def test_released_networks(kind: str, pictures: Pictures) -> None:
    """Guided diffusion halves images five times; the others draw no grey ones."""
    content = {"kind": kind, **FILES[kind]}
    options = plugins.options_class("generators", kind).model_validate(content)
    assert isinstance(options, GeneratorOptions)
    reason = options.unsuited(pictures.dataset)
    if kind == "guided-diffusion" and pictures.size == (32, 32):
        assert reason is None
    else:
        size = "x".join(map(str, pictures.size))
        assert reason is not None and size in reason and "\n" not in reason
