"""What a method is given and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from counterlens import layout, plugins
from counterlens.classifiers import base as classifiers
from counterlens.classifiers.base import Classifier
from counterlens.config import Experiment, MethodOptions, Pair
from counterlens.data.base import ImageSet
from counterlens.generators import base as generators
from counterlens.generators.base import Generator
from counterlens.runtime.device import freeze
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.training import Checkpoint, History, load_model


@dataclass(frozen=True)
class Task:
    """What a method explains: the frozen classifier, on one pair of classes or several.

    Attributes:
        generators: the frozen generators that the method's options name, by id.
        shape: (C, H, W) of the images.
        pairs: the pairs that one training of the method covers; one, unless the method is joint.
        seed: root of all randomness in training.
    """

    classifier: Classifier
    generators: Mapping[str, Generator]
    shape: tuple[int, int, int]
    pairs: tuple[Pair, ...]
    device: torch.device
    seed: int

    @property
    def pair(self) -> Pair:
        """The only pair."""
        (only,) = self.pairs
        return only


@dataclass(frozen=True)
class Explanation:
    """The answer to a batch of N queries.

    Attributes:
        counterfactual: float32 (N, C, H, W) in [0, 1].
        found: bool (N,), whether the method says that it found one. Not the same as valid.
        extras: further tensors with N rows, e.g. `mask` (N, 1, H, W) in [0, 1] where the method
            makes one, or `latent` (N, d).
        query: float32 (N, C, H, W) in [0, 1], where the method explains images of its own making
            in place of those it was given.
    """

    counterfactual: Tensor
    found: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    query: Tensor | None = None


@dataclass(frozen=True)
class Walk:
    """The way from each of N queries to its counterfactual, and beyond, in K steps.

    Attributes:
        images: float32 (N, K, C, H, W) in [0, 1], from the query's reconstruction on.
        position: float32 (K,) in [0, 1], where each step stands on the way.
        intended: float32 (N, K, classes), the probabilities that the method wants at each step,
            where it wants any.
        features: float32 (N, K, d), the classifier's penultimate features that it wants there.
    """

    images: Tensor
    position: Tensor
    intended: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class BarePasses:
    """The network passes that a method cannot do without for one batch.

    Attributes:
        words: what they are, e.g. `encode, map, decode`.
        run: makes all of them once; their results are thrown away.
    """

    words: str
    run: Callable[[], None]


class Method(ABC):
    """One way to make counterfactuals, for one pair of classes or several."""

    def __init__(self, options: MethodOptions, task: Task) -> None:
        self.options = options
        self.task = task

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Train on the training images of the pairs; returns the mean losses of each epoch."""
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

    def explain_further(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
        earlier: Mapping[str, Tensor],
    ) -> Explanation:
        """As `explain`, from what the method that the options build on made of the same queries.

        Args:
            earlier: its counterfactuals and extras, by name, each with N rows on the device.
        """
        raise TypeError(f"{type(self).__name__} builds on no other method")

    def quality(self, data: ImageSet) -> Quality:
        """Measure the trained method on test images of its classes, for its card."""
        return Quality({})

    def path(self, x: Tensor, source: Tensor, target: Tensor) -> Walk | None:
        """How the queries turn into their counterfactuals, if the method goes step by step."""
        return None

    def bare(self, x: Tensor, target: Tensor) -> BarePasses | None:
        """The passes behind `explain` of the same batch, the limit of its speed; None: not known.

        Args:
            x: queries, float32 (N, C, H, W) in [0, 1] on the task's device.
            target: int64 (N,), the same class for all.
        """
        return None


def create(experiment: Experiment, name: str, scope: str, device: torch.device) -> Method:
    """One of the experiment's methods, untrained, with the models it needs.

    Args:
        scope: a pair such as `4-9`, or `all-pairs`, as `Experiment.training_scopes` names it.
    """
    options = experiment.methods[name]
    pairs = experiment.training_scopes(name)[scope]
    task = Task(
        classifier=classifiers.load(experiment.models, experiment.classifier, device),
        generators=generators.load_for_pair(
            experiment.models, options.generators(), pairs[0], device
        ),
        shape=experiment.dataset.shape,
        pairs=pairs,
        device=device,
        seed=derive_seed(experiment.seed, experiment.name, "fit", name, scope),
    )
    return plugins.create("methods", options, Method, task)


def load(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> Method:
    """One of the experiment's methods, ready to explain a pair."""
    trained_as, scope = experiment.training_of(name, pair)
    method = create(experiment, name, scope, device)
    if experiment.methods[name].trainable:
        folder = layout.method(experiment.name, trained_as, scope)
        load_model(folder / "model.safetensors", method.trained())
        freeze(method.trained(), device)
    return method
