"""Typed model of every YAML file under `config/`; one clear error per mistake.

Nothing here imports torch: the workflow validates every experiment before any job starts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
)

from counterlens.errors import UserError

CONFIG_DIR = Path("config")
ORIGINAL_DATA = "original-data"
ALL_CLASSES = "all-classes"
ALL_PAIRS = "all-pairs"
T = TypeVar("T", bound=BaseModel)
IDENTIFIER = r"^[a-z0-9]+(-[a-z0-9]+)*$"

Scale = Literal["small", "published"]
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

    `attributes` names what else is known of every image, present or not; most datasets have none.

    A dataset with options of its own overrides `name`, so that each choice has its own folder, and
    `classes` or `shape` where they depend on the choice.
    """

    classes: ClassVar[tuple[str, ...]] = ()
    attributes: ClassVar[tuple[str, ...]] = ()
    shape: ClassVar[tuple[int, int, int]]
    files: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[str]

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


class ClassifierOptions(Options):
    """How a classifier is trained: AdamW, learning rate halved every `decay_every` epochs.

    `has_gap`: the logits are one linear layer on globally average-pooled features. `has_maps`: its
    feature maps can be read. `trained`: whether the experiment trains it; otherwise it is read
    from `files` of the user's or from `named_weights`.
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


class GeneratorOptions(Options):
    """`per_pair`: trained once per class pair instead of once for all classes.

    `decodes`, `encodes`: what it can do with a latent and with an image. `conditional`: a latent
    holds the class.
    """

    per_pair: ClassVar[bool] = False
    uses_classifier: ClassVar[bool] = False
    has_discriminator: ClassVar[bool] = False
    decodes: ClassVar[bool] = True
    encodes: ClassVar[bool] = False
    conditional: ClassVar[bool] = False

    def requires(self) -> tuple[str, ...]:
        """Ids of the generators that must be trained before this one."""
        return ()

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Why it cannot work with the generators it requires; None if it can."""
        return None


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
    """`weights`: named pretrained weights the oracle loads.

    `trained`: whether the experiment trains it; otherwise it loads weights, named ones or a file
    of the user's.
    """

    weights: ClassVar[tuple[str, ...]] = ()
    trained: ClassVar[bool] = True


class MethodOptions(Options):
    """`pairs` restricts the method to some of the experiment's pairs, `images` to fewer queries.

    `trained_as` names the method of the same kind whose trained model it uses instead of one of
    its own. `explaining`: the options that shape explanations and not the training, in which the
    two may differ. `requires_maps`, `requires_gap`: it reads the classifier's feature maps, or
    also its one linear layer on their average.
    """

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
    directions that the method is run on, pooled.
    """

    name: str
    label: str
    direction: Literal["up", "down", "none"]
    unit: str = ""
    scale: float = 1.0
    per: Literal["image", "set", "pair"] = "image"
    decimals: int = 3


class MetricOptions(Options):
    """`paired`: the metric compares each counterfactual with its own query.

    `errors`: whether queries count that the classifier does not take for their class. `flipped`:
    whether only counterfactuals count whose 8-bit image the classifier gives the target class.
    """

    paired: ClassVar[bool] = True

    errors: bool = False
    flipped: bool = False

    def columns(self) -> tuple[Column, ...]:
        """What the metric measures, in printing order."""
        raise NotImplementedError(f"{type(self).__name__} declares no columns")

    def oracles(self) -> tuple[str, ...]:
        """Ids of the experiment's oracles that the metric uses."""
        return ()


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
    generators: dict[Identifier, SerializeAsAny[GeneratorOptions]] = {}
    oracles: dict[Identifier, SerializeAsAny[OracleOptions]] = {}
    unsuited: Literal["error", "skip"] = "error"
    methods: dict[Identifier, SerializeAsAny[MethodOptions]] = Field(min_length=1)
    skipped: dict[Identifier, str] = {}
    metrics: tuple[SerializeAsAny[MetricOptions], ...] = ()
    evaluation: Evaluation

    def method_pairs(self, method: str) -> tuple[Pair, ...]:
        """The pairs a method (or `original-data`) is run on, in the experiment's order."""
        chosen = None if method == ORIGINAL_DATA else self.methods[method].pairs
        return self.pairs if chosen is None else tuple(p for p in self.all_pairs() if p in chosen)

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


class Row(Model):
    """One row of a table: a method of the experiment, or one that is not run."""

    method: Identifier
    label: str


class Claim(Model):
    """What a paper says of a table, to be checked with our numbers.

    `columns`: the first of them that is available decides. `relation`: `highest` and `lowest` set
    `method` against the others, `at-most` against `value`; `falls` says that no row of `against`,
    in order, is above the one before it, `method` being the first.
    """

    text: str
    columns: tuple[str, ...] = Field(min_length=1)
    relation: Literal["highest", "lowest", "at-most", "falls"]
    method: Identifier
    against: tuple[Identifier, ...] = ()
    value: float | None = None


class Table(Model):
    """A numbered table of a paper: its rows, columns and published numbers.

    `paper_values` maps experiment, method and column to the number as printed. `ranked`: each row
    has a rank in each column, and the mean of its ranks; the paper is then none. `directions`: each
    row is about the directions that it has in common with the others (`shared`), or about all of
    its `own`. `filter`: `found-by-all` averages what is measured per image over the images for
    which every row found a counterfactual, and prints the mean over all images beside it.
    """

    name: Identifier
    title: str
    paper: str = ""
    ranked: bool = False
    rows: tuple[Row, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    experiments: tuple[Identifier, ...] = Field(min_length=1)
    directions: Literal["shared", "own"] = "shared"
    filter: Literal["none", "found-by-all"] = "none"
    paper_values: dict[str, dict[str, dict[str, float]]] = {}
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


class Figure(Model):
    """A figure of a paper, drawn from the artifacts of one experiment.

    `parameter` and `columns` belong to the kind `parameter`: metric columns drawn against one
    option of the methods. The kind `pareto` draws the first of two `columns` against the second;
    methods that the experiment does not run are left out.
    """

    name: Identifier
    title: str
    paper: str = ""
    kind: Literal[
        "cout",
        "latent-change",
        "traversal",
        "gallery",
        "path",
        "tsne",
        "stages",
        "parameter",
        "latents",
        "diversity",
        "angle",
        "pareto",
    ]
    experiment: Identifier
    methods: tuple[Identifier, ...] = Field(min_length=1)
    directions: tuple[Pair, ...] = Field(min_length=1)
    images: int = 1
    parameter: str = ""
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Project(Model):
    """`config/config.yaml`: what `all` builds and how this machine builds it."""

    scale: Scale = "small"
    mirror: str | None = None
    threads: int = Field(default=2, gt=0)
    experiments: tuple[Identifier, ...]
    tables: tuple[Identifier, ...] = ()
    figures: tuple[Identifier, ...] = ()


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that rejects a key written twice instead of keeping the last one."""

    # Checked before any `<<` is resolved: that puts inherited keys beside the mapping's own.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key '{key}' stands twice in the mapping at line {line}")
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; known: {_known(path.parent)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of keys is expected at the top level")
    return content


def _known(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or "none"


def merge(
    base: Mapping[str, Any], override: Mapping[str, Any], keep_null: bool = False
) -> dict[str, Any]:
    """`base` with `override` laid over it, mapping by mapping.

    `null` removes a key; with `keep_null` it stays, to remove the key of a later `base`.
    """
    merged = dict(base)
    for key, value in override.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value, keep_null)
        else:
            merged[key] = value
    return merged


def _validate(path: Path, key: str, model: type[T], content: object) -> T:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(path, key, model, error))) from None


def _explain(path: Path, key: str, model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        place = ".".join([*([key] if key else []), *map(str, detail["loc"])])
        if detail["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(_part(model, detail["loc"][:-1]).model_fields))
            yield f"{path}: {place}: unknown key; allowed: {allowed}"
        elif detail["type"] == "missing":
            yield f"{path}: {place}: key is missing"
        else:
            yield f"{path}: {place}: {detail['msg']} (found {detail['input']!r})"


def _part(model: type[BaseModel], place: Iterable[str | int]) -> type[BaseModel]:
    """The model of a key inside a model, e.g. that of `rows.1` in a table."""
    for key in place:
        if key in model.model_fields:
            annotation = model.model_fields[str(key)].annotation
            for found in (annotation, *get_args(annotation)):
                if isinstance(found, type) and issubclass(found, BaseModel):
                    model = found
    return model


def load_project(overrides: Mapping[str, Any] | None = None) -> Project:
    """`config/config.yaml`, with the overrides of `snakemake --config`."""
    path = CONFIG_DIR / "config.yaml"
    return _validate(path, "", Project, {**read_yaml(path), **(overrides or {})})


def _experiment_file(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = CONFIG_DIR / "experiments" / f"{name}.yaml"
    content = read_yaml(path)
    parent = content.pop("extends", None)
    if parent is None:
        return content
    if parent in (*seen, name):
        raise UserError(f"{path}: extends: '{parent}' extends this file in turn")
    inherited = _experiment_file(str(parent), (*seen, name))
    merged = merge({key: value for key, value in inherited.items() if key != "name"}, content)
    below, above = inherited.get("small"), content.get("small")
    if isinstance(below, dict) and isinstance(above, dict):
        merged["small"] = merge(below, above, keep_null=True)
    return merged


def load_experiment(name: str, scale: Scale) -> Experiment:
    """The experiment `config/experiments/<name>.yaml` at one of its two scales.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    from counterlens import plugins

    path = CONFIG_DIR / "experiments" / f"{name}.yaml"
    content = _experiment_file(name)
    small = content.pop("small", None) or {}
    if not isinstance(small, dict):
        raise UserError(f"{path}: small: a mapping of keys is expected")
    if scale == "small":
        content = merge(content, small)
    if content.get("name") != name:
        raise UserError(f"{path}: name: must be '{name}', the file's own name")

    def options(section: str, key: str, value: object) -> Options:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or "kind" not in value:
            raise UserError(f"{path}: {key}: a mapping with a 'kind' is expected")
        try:
            model = plugins.options_class(section, str(value["kind"]))
        except UserError as error:
            raise UserError(f"{path}: {key}.kind: {error}") from None
        return _validate(path, key, model, value)

    for key, section in (("dataset", "data"), ("classifier", "classifiers")):
        if key in content:
            content[key] = options(section, key, content[key])
    for section in ("generators", "oracles", "methods"):
        named = content.get(section, {})
        if not isinstance(named, dict):
            raise UserError(f"{path}: {section}: a mapping of names is expected")
        content[section] = {k: options(section, f"{section}.{k}", v) for k, v in named.items()}
    metrics = content.get("metrics", [])
    if not isinstance(metrics, list):
        raise UserError(f"{path}: metrics: a list is expected")
    content["metrics"] = [options("metrics", f"metrics.{i}", m) for i, m in enumerate(metrics)]

    experiment = _validate(path, "", Experiment, {**content, "scale": scale})
    if experiment.unsuited == "skip":
        experiment = _without_unsuited(path, experiment)
    _check(path, experiment)
    return experiment


def _without_unsuited(path: Path, experiment: Experiment) -> Experiment:
    """The experiment with the methods moved to `skipped` that cannot serve it, and why."""
    reasons = {
        name: reason
        for name, method in experiment.methods.items()
        if (reason := method.unsuited(experiment.dataset, experiment.classifier))
    }
    kept = {name: m for name, m in experiment.methods.items() if name not in reasons}
    if not kept:
        raise UserError(f"{path}: methods: none can serve: {'; '.join(reasons.values())}")
    found = {"methods": kept, "skipped": {**experiment.skipped, **reasons}}
    return experiment.model_copy(update=found)


def dataset_options(kind: str, settings: Iterable[str]) -> DatasetOptions:
    """A dataset as `DatasetOptions.arguments` names it: kind and `key=value` settings.

    Raises:
        UserError: there is no such dataset or setting.
    """
    from counterlens import plugins

    content: dict[str, Any] = {"kind": kind}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key == "kind":
            raise UserError(f"--set {setting}: write KEY=VALUE, an option of the dataset")
        try:
            content[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: the value is not valid YAML") from None
    model = plugins.options_class("data", kind)
    assert issubclass(model, DatasetOptions)
    return _validate(Path("--set"), "", model, content)


def _check(path: Path, experiment: Experiment) -> None:
    """What no single key can tell: pairs, references and combinations."""

    def fail(key: str, message: str) -> None:
        raise UserError(f"{path}: {key}: {message}")

    classes = len(experiment.dataset.classes)
    for pair in experiment.all_pairs():
        if pair[0] == pair[1] or not all(0 <= index < classes for index in pair):
            fail("pairs", f"{list(pair)} is not two different class indices in 0..{classes - 1}")
    if len({frozenset(pair) for pair in experiment.all_pairs()}) < len(experiment.all_pairs()):
        fail("pairs", "a pair stands twice; pairs are unordered")
    for file in experiment.classifier.files:
        if not Path(file).is_file():
            fail("classifier", f"'{file}': no such file")
    for label in experiment.classifier.left_out:
        if not 0 <= label < classes:
            fail("classifier.left_out", f"{label} is no class index in 0..{classes - 1}")
    if experiment.classifier.attribute_weight and not experiment.dataset.attributes:
        fail("classifier.attribute_weight", f"'{experiment.dataset.name}' has no attributes")
    for name, generator in experiment.generators.items():
        for needed in generator.requires():
            if needed not in experiment.generators:
                fail(
                    f"generators.{name}",
                    f"needs generator '{needed}'; defined: {', '.join(experiment.generators)}",
                )
    for name in experiment.generators:
        behind: set[str] = set()
        waiting = [name]
        while waiting:
            needs = {*experiment.generators[waiting.pop()].requires()} - behind
            if name in needs:
                fail(f"generators.{name}", "needs itself, by way of the generators that it needs")
            behind |= needs
            waiting += needs
        if reason := experiment.generators[name].conflict(experiment.generators):
            fail(f"generators.{name}", reason)
    for name, oracle in experiment.oracles.items():
        if oracle.kind == "feature-extractor" and not experiment.classifier.retrainable:
            fail(
                f"oracles.{name}",
                "trains the classifier's architecture again, which is not known of "
                f"'{experiment.classifier.kind}' without a factory, `maps` and `head`",
            )
    for name, method in experiment.methods.items():
        if name == ORIGINAL_DATA:
            fail(f"methods.{name}", "this name is reserved for the reference row of the tables")
        for pair in method.pairs or ():
            if pair not in experiment.all_pairs():
                fail(f"methods.{name}.pairs", f"{list(pair)} is not one of the experiment's pairs")
            if method.pairs and method.pairs.count(pair) > 1:
                fail(f"methods.{name}.pairs", f"{list(pair)} stands twice")
        for needed in method.generators():
            if needed not in experiment.generators:
                known = ", ".join(experiment.generators) or "none"
                fail(f"methods.{name}", f"needs generator '{needed}'; defined: {known}")
        if reason := method.conflict(experiment.generators):
            fail(f"methods.{name}", reason)
        for needed in method.generators():
            if method.joint and experiment.generators[needed].per_pair:
                fail(
                    f"methods.{name}",
                    f"one training serves all pairs, but generator '{needed}' is trained per pair",
                )
        if reason := _cannot_share(experiment, name):
            fail(f"methods.{name}.trained_as", reason)
        if reason := _cannot_build(experiment, name):
            fail(f"methods.{name}", reason)
        if reason := method.unsuited(experiment.dataset, experiment.classifier):
            fail(f"methods.{name}", reason)
    for name in experiment.skipped:
        if name in experiment.methods:
            fail(f"skipped.{name}", "stands under 'methods', too")
    for metric in experiment.metrics:
        for needed in metric.oracles():
            if needed not in experiment.oracles:
                known = ", ".join(experiment.oracles) or "none"
                fail(f"metrics.{metric.kind}", f"needs oracle '{needed}'; defined: {known}")
    names = [column.name for metric in experiment.metrics for column in metric.columns()]
    for name in names:
        if names.count(name) > 1:
            fail("metrics", f"two metrics give the column '{name}'")


def _cannot_share(experiment: Experiment, name: str) -> str | None:
    """Why a method cannot use the training that its `trained_as` names; None if it can."""
    method = experiment.methods[name]
    if method.trained_as is None:
        return None
    known = ", ".join(n for n in experiment.trained_methods() if n != name) or "none"
    if method.trained_as not in experiment.trained_methods():
        return f"'{method.trained_as}' has no training of its own; those that have: {known}"
    other = experiment.methods[method.trained_as]
    ours, theirs = method.training(), other.training()
    different = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if different:
        return f"'{method.trained_as}' is trained with other values of {', '.join(different)}"
    missing = {*experiment.method_pairs(name)} - {*experiment.method_pairs(method.trained_as)}
    if missing:
        return f"'{method.trained_as}' is not trained on {[list(pair) for pair in sorted(missing)]}"
    return None


def _cannot_build(experiment: Experiment, name: str) -> str | None:
    """Why a method cannot go on from the one that it builds on; None if it can."""
    method = experiment.methods[name]
    earlier = method.builds_on()
    if earlier is None:
        return None
    other = experiment.methods.get(earlier)
    if other is None:
        return (
            f"builds on '{earlier}', which is no method; defined: {', '.join(experiment.methods)}"
        )
    if other.builds_on() is not None:
        return f"builds on '{earlier}', which builds on another method itself"
    missing = {*experiment.method_pairs(name)} - {*experiment.method_pairs(earlier)}
    if missing:
        return f"builds on '{earlier}', which is not run on {[list(p) for p in sorted(missing)]}"
    if other.images is not None and (method.images is None or method.images > other.images):
        return f"builds on '{earlier}', which explains only {other.images} images"
    reason = method.cannot_build_on(other)
    return f"builds on '{earlier}', which {reason}" if reason else None


def load_table(name: str) -> Table:
    """A table by id: `<file>` itself, or `<file>-<variant>` for one of its variants."""
    folder = CONFIG_DIR / "tables"
    for path in sorted(folder.glob("*.yaml")):
        if name == path.stem or name.startswith(f"{path.stem}-"):
            content = read_yaml(path)
            variants = content.pop("variants", None) or {}
            variant = name.removeprefix(path.stem).removeprefix("-")
            if variant and variant not in variants:
                continue
            if variant:
                content["experiments"] = variants[variant]
            table = _validate(path, "", Table, {**content, "name": name})
            _check_claims(path, table)
            return table
    raise UserError(f"{folder}/{name}.yaml: no such table; known: {', '.join(table_names())}")


def _check_claims(path: Path, table: Table) -> None:
    rows = [row.method for row in table.rows]
    for place, claim in enumerate(table.claims):
        wrong = [name for name in (claim.method, *claim.against) if name not in rows]
        wrong += [name for name in claim.columns if name not in table.columns]
        if wrong:
            raise UserError(
                f"{path}: claims.{place}: '{wrong[0]}' is no row or column of the table"
            )
        if (claim.value is None) == (claim.relation == "at-most"):
            raise UserError(f"{path}: claims.{place}: at-most, and only that, has a value")


def table_names() -> list[str]:
    """Every table id: each file under `config/tables/` and its variants."""
    names = []
    for path in sorted((CONFIG_DIR / "tables").glob("*.yaml")):
        variants = read_yaml(path).get("variants") or {}
        names += [path.stem, *(f"{path.stem}-{variant}" for variant in variants)]
    return names


def figure_names() -> list[str]:
    """Every figure id: each file under `config/figures/`."""
    return sorted(path.stem for path in (CONFIG_DIR / "figures").glob("*.yaml"))


def load_figure(name: str) -> Figure:
    """The figure `config/figures/<name>.yaml`."""
    path = CONFIG_DIR / "figures" / f"{name}.yaml"
    return _validate(path, "", Figure, {**read_yaml(path), "name": name})
