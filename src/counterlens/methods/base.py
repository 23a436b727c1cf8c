"""What a method is given and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.classifiers.base import Classifier
from counterlens.config import Experiment, MethodOptions, Pair, pair_name
from counterlens.data.base import ImageSet
from counterlens.generators import base as generators
from counterlens.generators.base import Generator
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, History, load_model


@dataclass(frozen=True)
class Task:
    """What a method explains: the frozen classifier, on one pair of classes.

    Attributes:
        generators: the frozen generators that the method's options name, by id.
        seed: root of all randomness in training.
    """

    classifier: Classifier
    generators: Mapping[str, Generator]
    pair: Pair
    device: torch.device
    seed: int


@dataclass(frozen=True)
class Explanation:
    """The answer to a batch of N queries.

    Attributes:
        counterfactual: float32 (N, C, H, W) in [0, 1].
        found: bool (N,), whether the method says that it found one. Not the same as valid.
        extras: further tensors with N rows, e.g. `mask` (N, 1, H, W) in [0, 1] where the method
            makes one, or `latent` (N, d).
    """

    counterfactual: Tensor
    found: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


class Method(ABC):
    """One way to make counterfactuals, for one pair of classes."""

    def __init__(self, options: MethodOptions, task: Task) -> None:
        self.options = options
        self.task = task

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Train on the pair's training images; returns the mean losses of each epoch."""
        raise TypeError(f"{type(self).__name__} is not trainable")

    def trained(self) -> nn.Module:
        """The module that `fit` trains, to be saved and loaded."""
        raise TypeError(f"{type(self).__name__} is not trainable")

    @abstractmethod
    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Counterfactuals of a batch. No files, no globals.

        Args:
            x: queries, float32 (N, C, H, W) in [0, 1] on the task's device.
            source: int64 (N,), the queries' classes.
            target: int64 (N,), what the classifier should answer.
            randomness: one CPU generator per image, the only randomness a method may use.
        """

    def path(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor | None:
        """Images (N, K, C, H, W) from the query's reconstruction to the counterfactual, if any."""
        return None


def create(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> Method:
    """One of the experiment's methods, untrained, with the models it needs."""
    options = experiment.methods[name]
    task = Task(
        classifier=classifiers.load(experiment, device),
        generators=generators.load_for_pair(experiment, options.generators(), pair, device),
        pair=pair,
        device=device,
        seed=derive_seed(experiment.seed, experiment.name, "fit", name, pair_name(pair)),
    )
    return plugins.create("methods", options, Method, task)


def load(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> Method:
    """One of the experiment's methods, ready to explain."""
    method = create(experiment, name, pair, device)
    if experiment.methods[name].trainable:
        folder = layout.method(experiment.name, name, pair_name(pair))
        load_model(folder / "model.safetensors", method.trained())
        method.trained().requires_grad_(False).eval()
    return method
