"""The options that plugins declare, and what they tell of themselves."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from counterlens.errors import UserError

IDENTIFIER = r"^[a-z0-9]+(-[a-z0-9]+)*$"

Pair = tuple[int, int]
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]


def _ratio(value: object) -> object:
    if not (isinstance(value, str) and "/" in value):
        return value
    try:
        return float(Fraction(value))
    except ZeroDivisionError:
        raise ValueError("a ratio has no denominator 0") from None


Ratio = Annotated[float, BeforeValidator(_ratio)]
"""A float that may be written as a ratio, e.g. `64/255`."""


def pair_name(pair: Pair) -> str:
    """`(4, 9)` as it stands in paths: `4-9`."""
    return f"{pair[0]}-{pair[1]}"


def parse_pair(name: str) -> Pair:
    """The inverse of `pair_name`."""
    match = re.fullmatch(r"(\d+)-(\d+)", name)
    if match is None:
        raise UserError(f"'{name}' is not a pair; write two class indices, such as 4-9")
    return int(match[1]), int(match[2])


class Model(BaseModel):
    """Base of all configuration: immutable; unknown keys and infinite numbers are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Options(Model):
    """Hyper-parameters of one plugin, as written in an experiment file.

    `kind` is the plugin's file name with hyphens, or `path/to/file.py` for a user's own.
    """

    kind: str


def _as_yaml(value: object) -> str:
    """A value as YAML reads it back, without quotes where it needs none."""
    plain = isinstance(value, str) and yaml.safe_load(value) == value
    return str(value) if plain else json.dumps(value)


class DatasetOptions(Options):
    """`files` are the raw files to download; `shape` is (C, H, W).

    `classes` are the labels; none where every image has attributes alone. `attributes` names what
    else is known of every image, present or not; most datasets have none. A classifier answers
    the classes, or one of the attributes.

    A dataset with options of its own overrides `name`, so that each choice has its own folder, and
    `classes` or `shape` where they depend on the choice.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    attributes: ClassVar[tuple[str, ...]] = ()
    shape: ClassVar[tuple[int, int, int]]
    files: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str]

    def class_names(self, attribute: str | None) -> tuple[str, ...]:
        """What a classifier tells apart: the classes, or images without and with an attribute."""
        if attribute is None:
            return self.classes
        words = attribute.replace("_", " ").lower()
        return (f"not {words}", words)

    @property
    def name(self) -> str:
        """The dataset's name in paths, e.g. `fashion-mnist`."""
        return self.mirror_folder

    @property
    def mirror_folder(self) -> str:
        """The folder of its files in a mirror."""
        return Path(self.kind).stem.replace("_", "-")

    def arguments(self) -> str:
        """The dataset as `counterlens fetch` and `prepare` are told of it."""
        chosen = self.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
        settings = [f"{key}={_as_yaml(value)}" for key, value in chosen.items()]
        return " ".join([self.kind, *(f"--set {shlex.quote(setting)}" for setting in settings)])


def too_small(dataset: DatasetOptions, least: int) -> str | None:
    """Why images are too small for networks that halve them; None if they are not."""
    height, width = dataset.shape[1:]
    if min(height, width) >= least:
        return None
    return f"images of {height}x{width} are too small, it needs at least {least} pixels a side"


class ClassifierOptions(Options):
    """How a classifier is trained: AdamW, learning rate halved every `decay_every` epochs.

    `has_gap`: the logits are one linear layer on globally average-pooled features. `has_maps`: its
    feature maps can be read. `trained`: whether it is trained here; otherwise it is read from
    `files` of the user's or from `named_weights`.
    `attribute`: one of the dataset's, which it tells instead of the dataset's classes.
    `max_shift`: training images are moved by up to that many pixels. `flip`: half of them are
    mirrored. `attribute_weight`: of a second loss in training, on the dataset's attributes, which
    makes the features richer. `left_out`: classes whose training images are not shown to it; it
    can still answer them. `precision`: of training; answers are always in float32.
    """

    has_gap: ClassVar[bool] = False
    has_maps: ClassVar[bool] = True
    trained: ClassVar[bool] = True
    retrainable: ClassVar[bool] = True
    named_weights: ClassVar[tuple[str, ...]] = ()

    attribute: str | None = None
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    decay_every: int = Field(default=5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_shift: int = Field(default=0, ge=0)
    flip: bool = False
    attribute_weight: float = Field(default=0.0, ge=0)
    left_out: tuple[int, ...] = ()
    precision: Literal["fp32", "bf16"] = "bf16"

    @property
    def files(self) -> tuple[str, ...]:
        """The user's files that it is read from."""
        return ()

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """Why it cannot see the dataset's images; None if it can."""
        return None


class GeneratorOptions(Options):
    """`classifier`: id of the one that its training or its quality gates ask; may be left out
    where there is only one.

    `per_pair`: trained once per class pair instead of once for all classes. `per_classifier`: it
    serves only methods that explain the classifier that it names. `decodes`, `encodes`: what it can
    do with a latent and with an image. `conditional`: a latent holds the class. `least_side`:
    smallest height and width of its images.
    """

    per_pair: ClassVar[bool] = False
    per_classifier: ClassVar[bool] = False
    uses_classifier: ClassVar[bool] = False
    has_discriminator: ClassVar[bool] = False
    decodes: ClassVar[bool] = True
    encodes: ClassVar[bool] = False
    conditional: ClassVar[bool] = False
    least_side: ClassVar[int] = 16

    classifier: Identifier | None = None

    def requires(self) -> tuple[str, ...]:
        """Ids of the generators that must be trained before this one."""
        return ()

    def known_classes(self) -> tuple[int, ...] | None:
        """The labels that it can be told; None: all."""
        return None

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Why it cannot work with the generators it requires; None if it can."""
        return None

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """Why it cannot make the dataset's images; None if it can."""
        return too_small(dataset, self.least_side)


def latents_differ(
    generators: Mapping[str, GeneratorOptions], encoder: str, decoder: str
) -> str | None:
    """Why an encoder's latents are not what a decoder takes; None if they are."""
    if not generators[decoder].decodes:
        return f"'{decoder}' decodes no latents"
    if not generators[encoder].encodes:
        return f"'{encoder}' encodes no images"
    sizes = [getattr(generators[name], "latent_dim", None) for name in (encoder, decoder)]
    if sizes[0] != sizes[1]:
        return f"'{encoder}' has latents of size {sizes[0]}, '{decoder}' of size {sizes[1]}"
    return None


class OracleOptions(Options):
    """`classifier`: id of the one whose recipe its training follows, where it follows any; may be
    left out where there is only one.

    `weights`: named pretrained weights the oracle loads. `trained`: whether it is trained here;
    otherwise it loads weights, named ones or a file of the user's.
    """

    weights: ClassVar[tuple[str, ...]] = ()
    trained: ClassVar[bool] = True
    uses_classifier: ClassVar[bool] = False

    classifier: Identifier | None = None


class MethodOptions(Options):
    """`pairs` restricts the method to some of the experiment's pairs, `images` to fewer queries.

    `trained_as` names the method of the same kind whose trained model it uses instead of one of
    its own. `explaining`: the options that shape explanations and not the training, in which the
    two may differ. `requires_maps`, `requires_gap`: it reads the classifier's feature maps, or
    also its one linear layer on their average. `label`: the method's name as its paper prints it;
    reports show the method's id where it is empty.
    """

    label: ClassVar[str] = ""
    trainable: ClassVar[bool] = False
    requires_maps: ClassVar[bool] = False
    requires_gap: ClassVar[bool] = False
    explaining: ClassVar[tuple[str, ...]] = ()

    pairs: tuple[Pair, ...] | None = None
    images: int | None = Field(default=None, gt=0)
    trained_as: Identifier | None = None

    @property
    def joint(self) -> bool:
        """Whether one training serves all pairs of the method."""
        return False

    @property
    def animated(self) -> bool:
        """Whether the method's paths, with the confidences it intends, are made into animations."""
        return False

    def training(self) -> dict[str, Any]:
        """The options that shape the training, as plain JSON values."""
        without = {"pairs", "images", "trained_as", *self.explaining}
        return self.model_dump(mode="json", exclude=without)

    def generators(self) -> tuple[str, ...]:
        """Ids of the experiment's generators that the method uses."""
        return ()

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Why the method cannot work with the generators it names; None if it can."""
        return None

    def unsuited(self, dataset: DatasetOptions, classifier: ClassifierOptions) -> str | None:
        """Why the method cannot serve a classifier or a dataset; None if it can."""
        if self.requires_gap and not classifier.has_gap:
            return (
                f"'{self.kind}' needs a classifier with global average pooling before one "
                f"linear layer; '{classifier.kind}' has none (use gap-resnet)"
            )
        if self.requires_maps and not classifier.has_maps:
            return (
                f"'{self.kind}' reads the feature maps of the classifier; '{classifier.kind}' "
                "names none"
            )
        return None

    def builds_on(self) -> str | None:
        """Id of the method whose counterfactual sets this one goes on from, if any."""
        return None

    def cannot_build_on(self, other: MethodOptions) -> str | None:
        """Why the method that `builds_on` names does not serve; None if it does."""
        return None


class Column(Model):
    """One number a metric gives; `scale` multiplies it when printed (1000 for KID x 1e3).

    It is of every image, of every counterfactual set (one direction), or of a pair: of all
    directions that the method is run on, pooled. `size_biased`: fewer images make it larger or
    smaller by themselves, so that only sets of about the same size may be compared.
    """

    name: str
    label: str
    direction: Literal["up", "down", "none"]
    unit: str = ""
    scale: float = 1.0
    per: Literal["image", "set", "pair"] = "image"
    size_biased: bool = False
    decimals: int = 3


class MetricOptions(Options):
    """`paired`: the metric compares each counterfactual with its own query.

    `errors`: whether queries count that the classifier does not take for their class. `flipped`:
    whether only counterfactuals count whose 8-bit image the classifier gives the target class.
    `asks_classes`: its oracles are asked about the source or the target class, so that they must
    know the classes of the explained classifier.
    """

    paired: ClassVar[bool] = True
    asks_classes: ClassVar[bool] = False

    errors: bool = False
    flipped: bool = False

    def columns(self) -> tuple[Column, ...]:
        """What the metric measures, in printing order."""
        raise NotImplementedError(f"{type(self).__name__} declares no columns")

    def oracles(self) -> tuple[str, ...]:
        """Ids of the experiment's oracles that the metric uses."""
        return ()
