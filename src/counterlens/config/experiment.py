"""An experiment: what is explained of one classifier, by which methods, and how it is judged."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from counterlens.config.models import ALL_CLASSES, Models, Scale
from counterlens.config.options import (
    ClassifierOptions,
    Column,
    DatasetOptions,
    GeneratorOptions,
    Identifier,
    MethodOptions,
    MetricOptions,
    Model,
    OracleOptions,
    Pair,
    pair_name,
)

ORIGINAL_DATA = "original-data"
ALL_PAIRS = "all-pairs"


class Evaluation(Model):
    """At most `images` queries per direction (test-set order), in shards of `shard_size`.

    `queries`: `label` takes the test images of the source class, `predicted` those of them that
    the classifier answers correctly. `errors`: of a direction, at most so many images of the
    target class that the classifier takes for the source class stand before them; no metric
    counts these. `paths`: for how many queries per direction a method's path is kept.
    `animations`: how many of the paths are animated, besides those of the errors. `directions`:
    `forward` explains only the first class of each pair as the second.
    """

    images: int = Field(gt=0)
    shard_size: int = Field(default=2000, gt=0)
    batch_size: int = Field(default=256, gt=0)
    queries: Literal["label", "predicted"] = "label"
    errors: int = Field(default=0, ge=0)
    paths: int = Field(default=24, ge=0)
    animations: int = Field(default=2, ge=0)
    directions: Literal["both", "forward"] = "both"

    @property
    def shards(self) -> int:
        """How many jobs explain one direction."""
        return -(-self.images // self.shard_size)


class Experiment(Model):
    """Models of a dataset, which classifier of them is explained, pairs, methods and metrics.

    `unsuited` methods, which cannot serve the classifier or the dataset, are an error or skipped;
    `skipped` gives the reason of each method that the tables show without numbers.
    `further_pairs`: pairs that only those methods are run on that name them under `pairs`, and that
    no table counts which shows other methods besides.
    """

    name: Identifier
    description: str = ""
    models: Models
    classifier: Identifier
    pairs: tuple[Pair, ...] = Field(min_length=1)
    further_pairs: tuple[Pair, ...] = ()
    unsuited: Literal["error", "skip"] = "error"
    methods: dict[Identifier, SerializeAsAny[MethodOptions]] = Field(min_length=1)
    skipped: dict[Identifier, str] = Field(default={})
    metrics: tuple[SerializeAsAny[MetricOptions], ...] = ()
    evaluation: Evaluation

    @property
    def scale(self) -> Scale:
        """As published, or the reduction for CPUs."""
        return self.models.scale

    @property
    def seed(self) -> int:
        """The root of all randomness: that of the models."""
        return self.models.seed

    @property
    def dataset(self) -> DatasetOptions:
        """What the images are."""
        return self.models.dataset

    @property
    def classes(self) -> tuple[str, ...]:
        """What the explained classifier tells apart; the index is the label."""
        return self.models.class_names(self.classifier)

    @property
    def classifier_options(self) -> ClassifierOptions:
        """The options of the explained classifier."""
        return self.models.classifiers[self.classifier]

    @property
    def generators(self) -> dict[str, GeneratorOptions]:
        """The generators that the methods use, and those that these require."""
        named = [name for method in self.methods.values() for name in method.generators()]
        used = self.models.required_generators(named)
        return {name: options for name, options in self.models.generators.items() if name in used}

    @property
    def oracles(self) -> dict[str, OracleOptions]:
        """The oracles that the metrics use."""
        used = {name for metric in self.metrics for name in metric.oracles()}
        return {name: options for name, options in self.models.oracles.items() if name in used}

    def method_pairs(self, method: str) -> tuple[Pair, ...]:
        """The pairs a method (or `original-data`) is run on, in the experiment's order."""
        chosen = None if method == ORIGINAL_DATA else self.methods[method].pairs
        return self.pairs if chosen is None else tuple(p for p in self.all_pairs() if p in chosen)

    def label(self, method: str) -> str:
        """A method's name in print: `C3LT`, and `C3LT (n3)` for `c3lt-n3`."""
        if method == ORIGINAL_DATA:
            return "Original data"
        options = self.methods.get(method)
        if options is None or not options.label:
            return method
        variant = method.removeprefix(options.kind).removeprefix("-")
        return f"{options.label} ({variant})" if variant else options.label

    def all_pairs(self) -> tuple[Pair, ...]:
        """The pairs of every method, and those of some."""
        return (*self.pairs, *self.further_pairs)

    def trained_methods(self) -> tuple[str, ...]:
        """The methods that have a training of their own."""
        return tuple(n for n, m in self.methods.items() if m.trainable and m.trained_as is None)

    def training_scopes(self, method: str) -> dict[str, tuple[Pair, ...]]:
        """What a method is trained on: each pair by itself, or all of its pairs together."""
        pairs = self.method_pairs(method)
        if self.methods[method].joint:
            return {ALL_PAIRS: pairs}
        return {pair_name(pair): (pair,) for pair in pairs}

    def training_of(self, method: str, pair: Pair) -> tuple[str, str]:
        """Which training, as (method, scope), a method uses on a pair."""
        options = self.methods[method]
        return options.trained_as or method, ALL_PAIRS if options.joint else pair_name(pair)

    def directions(self, method: str) -> tuple[Pair, ...]:
        """The directions (source, target) of every pair of a method."""
        return tuple(d for pair in self.method_pairs(method) for d in self.pair_directions(pair))

    def pair_directions(self, pair: Pair) -> tuple[Pair, ...]:
        """Both halves (source, target) of a pair, or its first."""
        both = (pair, (pair[1], pair[0]))
        return both if self.evaluation.directions == "both" else both[:1]

    def pooled(self) -> bool:
        """Whether any metric judges all directions of a pair together."""
        return any(column.per == "pair" for column in self.columns().values())

    def settings(self, section: str, name: str | None = None) -> dict[str, Any]:
        """All of the configuration that shapes one stage's result, as plain JSON values.

        `section` is `methods`, `metrics` or `evaluation`; `name` selects one of the methods.
        """
        content = self.model_dump(mode="json", include={section})[section]
        return {
            "seed": self.seed,
            "dataset": self.dataset.model_dump(mode="json"),
            "attribute": self.classifier_options.attribute,
            section: content if name is None else {name: content[name]},
        }

    def pair_of(self, source: int, target: int) -> Pair:
        """The experiment's pair that a direction belongs to."""
        return (source, target) if (source, target) in self.all_pairs() else (target, source)

    def columns(self) -> dict[str, Column]:
        """Every metric column of the experiment by name."""
        return {column.name: column for metric in self.metrics for column in metric.columns()}

    def scopes(self, generator: str) -> tuple[str, ...]:
        """What a generator is trained on: `all-classes`, or each pair used by a method."""
        if not self.models.generators[generator].per_pair:
            return (ALL_CLASSES,)
        users = [
            method
            for method in self.methods
            if generator in self.models.required_generators(self.methods[method].generators())
        ]
        used = {pair for method in users for pair in self.method_pairs(method)}
        return tuple(pair_name(pair) for pair in self.all_pairs() if pair in used)
