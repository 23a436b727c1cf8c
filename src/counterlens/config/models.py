"""The models of a dataset: what is trained once, whatever the question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from counterlens.config.options import (
    ClassifierOptions,
    DatasetOptions,
    GeneratorOptions,
    Identifier,
    Model,
    Options,
    OracleOptions,
    Pair,
    pair_name,
)

ALL_CLASSES = "all-classes"
Scale = Literal["small", "published"]


class Models(Model):
    """One dataset with its classifiers, generators and oracles, and the seed of all trainings.

    `name` is that of `config/models/<name>.yaml`, or of the experiment that holds its own models.
    """

    name: Identifier
    scale: Scale
    seed: int
    dataset: SerializeAsAny[DatasetOptions]
    classifiers: dict[Identifier, SerializeAsAny[ClassifierOptions]] = Field(min_length=1)
    generators: dict[Identifier, SerializeAsAny[GeneratorOptions]] = Field(default={})
    oracles: dict[Identifier, SerializeAsAny[OracleOptions]] = Field(default={})

    def class_names(self, classifier: str) -> tuple[str, ...]:
        """What a classifier tells apart, in the order of its logits."""
        return self.dataset.class_names(self.classifiers[classifier].attribute)

    def attribute_index(self, classifier: str | None) -> int | None:
        """Which attribute of the dataset is the label of a classifier; None: the classes are."""
        attribute = None if classifier is None else self.classifiers[classifier].attribute
        return None if attribute is None else self.dataset.attributes.index(attribute)

    def scope(self, generator: str, pair: Pair) -> str:
        """Which training of a generator serves a pair: `all-classes`, or the pair's own."""
        return pair_name(pair) if self.generators[generator].per_pair else ALL_CLASSES

    def required_generators(self, names: Iterable[str]) -> tuple[str, ...]:
        """The named generators and all that those require, each once, in order of training."""
        required: dict[str, None] = {}
        for name in names:
            for needed in (*self.required_generators(self.generators[name].requires()), name):
                required[needed] = None
        return tuple(required)

    def about(self, options: Options) -> dict[str, Any]:
        """What the card of a trained model says of where it comes from."""
        return {
            "kind": options.kind,
            "dataset": self.dataset.name,
            "options": options.model_dump(mode="json"),
            "seed": self.seed,
            "scale": self.scale,
        }

    def settings(self, section: str, name: str) -> dict[str, Any]:
        """All of the configuration that shapes the training of one model, as plain JSON values.

        `section` is `classifiers`, `generators` or `oracles`. The options of the classifier that
        the model names belong to it.
        """
        options = getattr(self, section)[name]
        chosen = {section: {name: options.model_dump(mode="json")}}
        if section != "classifiers" and options.classifier is not None:
            classifier = self.classifiers[options.classifier]
            chosen["classifiers"] = {options.classifier: classifier.model_dump(mode="json")}
        return {"seed": self.seed, "dataset": self.dataset.model_dump(mode="json"), **chosen}
