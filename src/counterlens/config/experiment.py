"""An experiment: one dataset, one classifier, and all that explains it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, SerializeAsAny

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
)
from counterlens.errors import UserError

ORIGINAL_DATA = "original-data"
ALL_CLASSES = "all-classes"
ALL_PAIRS = "all-pairs"
Scale = Literal["small", "published"]


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
    """One dataset, one classifier, its generators, oracles, methods, pairs, metrics and seed.

    `unsuited` methods, which cannot serve the classifier or the dataset, are an error or skipped;
    `skipped` gives the reason of each method that the tables show without numbers.
    `further_pairs`: pairs that only those methods are run on that name them under `pairs`, and that
    no table counts which shows other methods besides.
    """

    name: Identifier
    description: str = ""
    scale: Scale
    seed: int
    dataset: SerializeAsAny[DatasetOptions]
    pairs: tuple[Pair, ...] = Field(min_length=1)
    further_pairs: tuple[Pair, ...] = ()
    classifier: SerializeAsAny[ClassifierOptions]
    generators: dict[Identifier, SerializeAsAny[GeneratorOptions]] = Field(default={})
    oracles: dict[Identifier, SerializeAsAny[OracleOptions]] = Field(default={})
    unsuited: Literal["error", "skip"] = "error"
    methods: dict[Identifier, SerializeAsAny[MethodOptions]] = Field(min_length=1)
    skipped: dict[Identifier, str] = Field(default={})
    metrics: tuple[SerializeAsAny[MetricOptions], ...] = ()
    evaluation: Evaluation

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

    def settings(self, section: str, *names: str) -> dict[str, Any]:
        """All of the configuration that shapes one stage's result, as plain JSON values.

        `section` is `classifier`, `generators`, `oracles`, `methods`, `metrics` or `evaluation`;
        `names` selects entries of a section that has several.
        """
        content = self.model_dump(mode="json", include={section})[section]
        if names:
            content = {name: content[name] for name in names}
        return {
            "seed": self.seed,
            "dataset": self.dataset.model_dump(mode="json"),
            section: content,
        }

    def pair_of(self, source: int, target: int) -> Pair:
        """The experiment's pair that a direction belongs to."""
        return (source, target) if (source, target) in self.all_pairs() else (target, source)

    def columns(self) -> dict[str, Column]:
        """Every metric column of the experiment by name."""
        return {column.name: column for metric in self.metrics for column in metric.columns()}

    def scopes(self, generator: str) -> tuple[str, ...]:
        """What a generator is trained on: `all-classes`, or each pair used by a method."""
        if not self.generators[generator].per_pair:
            return (ALL_CLASSES,)
        users = [
            method
            for method in self.methods
            if generator in self.required_generators(self.methods[method].generators())
        ]
        used = {pair for method in users for pair in self.method_pairs(method)}
        return tuple(pair_name(pair) for pair in self.all_pairs() if pair in used)

    def required_generators(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The named generators and all that those require, each once."""
        found: dict[str, None] = {}
        for name in names:
            for needed in (*self.required_generators(self.generators[name].requires()), name):
                found[needed] = None
        return tuple(found)


def pair_name(pair: Pair) -> str:
    """`(4, 9)` as it stands in paths: `4-9`."""
    return f"{pair[0]}-{pair[1]}"


def parse_pair(name: str) -> Pair:
    """The inverse of `pair_name`."""
    match = re.fullmatch(r"(\d+)-(\d+)", name)
    if match is None:
        raise UserError(f"'{name}' is not a pair; write two class indices, such as 4-9")
    return int(match[1]), int(match[2])
