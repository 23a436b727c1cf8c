"""What the Snakefile asks: which targets exist, what each job depends on and which settings.

Torch-free. `code`, `sources` and `settings` give input and parameter functions of rules; every
other method that takes `wildcards` is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from counterlens import layout, plugins
from counterlens.config import (
    ALL_CLASSES,
    CONFIG_DIR,
    ORIGINAL_DATA,
    Figure,
    Models,
    Pair,
    Table,
    figure_names,
    load_figure,
    load_project,
    load_table,
    parse_pair,
    table_names,
)
from counterlens.errors import UserError
from counterlens.experiments import load_experiment, load_models
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.plan import inputs
from counterlens.plan.code import code_of, relative
from counterlens.plan.settings import canonical, setting
from counterlens.plugins import PACKAGE

Rule = Callable[[Any], Any]
RESERVED = {"models", "tables", "figures", "timings", "all", "demo", "data"}


class Plan:
    """The models, experiments, tables and figures under `config/`, and the jobs they need."""

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self.config = load_project(overrides)
        self.scale = self.config.scale
        self.experiments = {n: load_experiment(n, self.scale) for n in yaml_names("experiments")}
        self.models = {name: load_models(name, self.scale) for name in yaml_names("models")}
        self.models |= {e.models.name: e.models for e in self.experiments.values()}
        self.tables: dict[str, Table] = {name: load_table(name) for name in table_names()}
        self.figures: dict[str, Figure] = {name: load_figure(name) for name in figure_names()}
        self.datasets = {m.dataset.name: m.dataset for m in self.models.values()}
        self.check_names()
        if self.config.mirror:
            os.environ.setdefault("COUNTERLENS_MIRROR", self.config.mirror)  # jobs inherit it

    def check_names(self) -> None:
        """What no single file can tell: that all that they name exists."""

        def check(place: str, names: Iterable[str], known: Iterable[str]) -> None:
            for name in names:
                if name not in known:
                    raise UserError(f"{place}: '{name}' is unknown; known: {', '.join(known)}")

        for name, models in self.models.items():
            if models.dataset != self.datasets[models.dataset.name]:
                raise UserError(
                    f"models {name}: dataset: '{models.dataset.name}' has other options in other "
                    "models; let its `name` depend on them"
                )
        for section in ("models", "experiments", "tables", "figures"):
            place = f"{CONFIG_DIR / 'config.yaml'}: {section}"
            check(place, getattr(self.config, section), getattr(self, section))
            for name in {*getattr(self, section)} & RESERVED:
                raise UserError(f"{CONFIG_DIR / section / name}.yaml: '{name}' is a reserved name")
        for name in self.config.experiments:
            place = f"{CONFIG_DIR / 'config.yaml'}: models: those of experiment {name}"
            check(place, [self.experiments[name].models.name], self.config.models)
        for name, table in self.tables.items():
            check(f"table {name}: experiments", table.experiments, self.experiments)
        for name, figure in self.figures.items():
            check(f"figure {name}: experiment", [figure.experiment], self.experiments)

    # What a rule says of itself

    def code(self, *words: str) -> Rule:
        """The source files that a job runs: `code("methods/explain", "method", "classifier")`.

        Each word is a module of the package, or which plugins of the job's wildcards it runs.
        """
        return lambda wildcards: code_of(
            file for word in words for file in self.files_of(word, wildcards)
        )

    def sources(self, *words: str) -> Rule:
        """As `code`, without what these files import in turn."""
        return lambda wildcards: [
            relative(file) for word in words for file in self.files_of(word, wildcards)
        ]

    def settings(self, *keys: str) -> Rule:
        """The configuration that shapes a job's result, as JSON: `settings("methods.{method}")`."""
        return lambda wildcards: canonical(
            [setting(self, key.format(**dict(wildcards.items())), wildcards) for key in keys]
        )

    def files_of(self, word: str, wildcards: Any) -> list[Path]:
        """The files that one word of `code` stands for."""
        if "/" in word:
            return [PACKAGE / f"{word}.py"]
        if word == "dataset":
            chosen = [("data", self.datasets[wildcards.dataset].kind)]
        elif hasattr(wildcards, "experiment"):
            chosen = self.plugins_of_experiment(word, wildcards)
        else:
            chosen = self.plugins_of_models(word, wildcards)
        return [plugins.source_file(section, kind) for section, kind in chosen]

    def plugins_of_models(self, word: str, wildcards: Any) -> list[tuple[str, str]]:
        """The plugins (section, kind) that a word stands for in the training of a model."""
        models = self.models[wildcards.models]
        if word == "generator":
            needed = models.required_generators([wildcards.generator])
            return [("generators", models.generators[name].kind) for name in needed]
        if word == "oracle":
            return [("oracles", models.oracles[wildcards.oracle].kind)]
        if word == "classifier":
            asked = self.asked_classifiers(wildcards)
            return [("classifiers", models.classifiers[name].kind) for name in asked]
        raise UserError(f"code: no training of a model has a '{word}'")

    def plugins_of_experiment(self, word: str, wildcards: Any) -> list[tuple[str, str]]:
        """The same for a job of an experiment."""
        e = self.experiments[wildcards.experiment]
        if word == "classifier":
            return [("classifiers", e.classifier_options.kind)]
        if word == "metrics":
            return [("metrics", metric.kind) for metric in e.metrics]
        if word == "oracles":
            recipes = {o.classifier for o in e.oracles.values() if o.classifier is not None}
            return [
                *(("oracles", options.kind) for options in e.oracles.values()),
                *(("classifiers", e.models.classifiers[name].kind) for name in sorted(recipes)),
            ]
        if word == "method":
            return [("methods", e.methods[wildcards.method].kind)]
        if word == "generators":
            names = e.methods[wildcards.method].generators()
            return [("generators", e.models.generators[name].kind) for name in names]
        raise UserError(f"code: no job of an experiment has a '{word}'")

    def asked_classifiers(self, wildcards: Any) -> list[str]:
        """The classifier that a job of models trains, or that its model names, if any."""
        models = self.models[wildcards.models]
        if hasattr(wildcards, "classifier"):
            return [wildcards.classifier]
        options = (
            models.oracles[wildcards.oracle]
            if hasattr(wildcards, "oracle")
            else models.generators[wildcards.generator]
        )
        return [options.classifier] if options.classifier is not None else []

    @staticmethod
    def hours(count: int) -> Callable[[Any, int], int]:
        """Minutes for `count` hours, doubled with each attempt: the `runtime` of a rule."""
        return lambda wildcards, attempt: 60 * count * attempt

    def generator_threads(self, wildcards: Any) -> int:
        """All threads for the one generator of all classes; one each for those of the pairs."""
        return self.config.threads if wildcards.scope == ALL_CLASSES else 1

    # Wildcard constraints

    def ids(self, section: str) -> str:
        """A pattern of every id under `classifiers`, `generators`, `oracles` or `methods`."""
        owners = self.experiments if section == "methods" else self.models
        return any_of(name for owner in owners.values() for name in getattr(owner, section))

    def sharded(self, wanted: bool) -> str:
        """A pattern of the experiments whose directions are (not) explained in shards."""
        return any_of(
            name for name, e in self.experiments.items() if (e.evaluation.shards > 1) == wanted
        )

    def diffusion_models(self) -> str:
        """A pattern of every generator that is a diffusion model."""
        return any_of(
            name
            for models in self.models.values()
            for name, options in models.generators.items()
            if isinstance(options, DiffusionOptions)
        )

    def any_row(self) -> str:
        """A pattern of every method id and the reference row."""
        return f"{self.ids('methods')}|{ORIGINAL_DATA}"

    # Inputs

    def prepared(self, dataset: str) -> list[str]:
        """The prepared splits of a dataset."""
        return [str(layout.prepared(dataset, split)) for split in ("train", "test")]

    def oracle_files(self, models: Models, name: str) -> list[str]:
        """The trained oracle, or the records of the pretrained weights that it loads."""
        if not models.oracles[name].trained:
            return [str(layout.weight(weight)) for weight in models.oracles[name].weights]
        return [str(layout.oracle(models.name, name) / "model.safetensors")]

    def pareto_figures(self, experiment: str) -> list[Figure]:
        """The figures of kind `pareto` of an experiment."""
        drawn = self.figures.values()
        return [f for f in drawn if f.kind == "pareto" and f.experiment == experiment]

    def boards(self, experiment: str) -> list[Table]:
        """The ranked tables about one experiment alone, which its report shows."""
        tables = self.tables.values()
        return [table for table in tables if table.ranked and table.experiments == (experiment,)]

    def raw_files(self, wildcards: Any) -> list[str]:
        """A dataset's downloads."""
        options = self.datasets[wildcards.dataset]
        return [str(layout.raw(options.name) / file) for file in options.files]

    def dataset_arguments(self, wildcards: Any) -> str:
        """A dataset's plugin and options, as the command line takes them."""
        return self.datasets[wildcards.dataset].arguments()

    def dataset_of(self, wildcards: Any) -> list[str]:
        """The prepared splits that a job reads."""
        if hasattr(wildcards, "experiment"):
            return self.prepared(self.experiments[wildcards.experiment].dataset.name)
        return self.prepared(self.models[wildcards.models].dataset.name)

    def classifier_files(self, wildcards: Any) -> list[str]:
        """What a classifier is read from, if it is not trained: the user's files, or weights."""
        options = self.models[wildcards.models].classifiers[wildcards.classifier]
        return [*options.files, *(str(layout.weight(name)) for name in options.named_weights)]

    def classifier_of(self, wildcards: Any) -> list[str]:
        """The classifier that an experiment explains, or that the training of a model asks."""
        if hasattr(wildcards, "experiment"):
            e = self.experiments[wildcards.experiment]
            folders = [layout.classifier(e.models.name, e.classifier)]
        else:
            asked = self.asked_classifiers(wildcards)
            folders = [layout.classifier(wildcards.models, name) for name in asked]
        return [str(folder / "model.safetensors") for folder in folders]

    def generator_inputs(self, wildcards: Any) -> list[str]:
        """The generators that a generator builds on."""
        models = self.models[wildcards.models]
        options = models.generators[wildcards.generator]
        pair = None if wildcards.scope == ALL_CLASSES else parse_pair(wildcards.scope)
        return [self.generator_file(models, name, pair) for name in options.requires()]

    def generator_file(self, models: Models, name: str, pair: Pair | None) -> str:
        """The model of a generator as it serves a pair."""
        scope = ALL_CLASSES if pair is None else models.scope(name, pair)
        return str(layout.generator(models.name, name, scope) / "model.safetensors")

    def method_generators(self, wildcards: Any) -> list[str]:
        """The trained generators that a method's options name."""
        e = self.experiments[wildcards.experiment]
        return [
            self.generator_file(e.models, name, self.pair(wildcards))
            for name in e.methods[wildcards.method].generators()
        ]

    def method_model(self, wildcards: Any) -> list[str]:
        """The trained method, where there is something to train."""
        e = self.experiments[wildcards.experiment]
        if not e.methods[wildcards.method].trainable:
            return []
        folder = layout.method(e.name, *e.training_of(wildcards.method, self.pair(wildcards)))
        return [str(folder / "model.safetensors")]

    def earlier_sets(self, wildcards: Any) -> list[str]:
        """The set of the same direction by the method that this one builds on, if any."""
        e = self.experiments[wildcards.experiment]
        earlier = e.methods[wildcards.method].builds_on()
        if earlier is None:
            return []
        direction = (int(wildcards.source), int(wildcards.target))
        return strings(inputs.set_files(e, earlier, [direction]))

    def explained_predictions(self, wildcards: Any) -> list[str]:
        """The classifier's answers, where they decide which test images are explained."""
        e = self.experiments[wildcards.experiment]
        if e.evaluation.queries == "label" and not e.evaluation.errors:
            return []
        return [str(inputs.predictions(e))]

    def pair(self, wildcards: Any) -> Pair:
        """The pair of a job (any of them in a joint training): its scope's, or its direction's."""
        e = self.experiments[wildcards.experiment]
        if hasattr(wildcards, "scope"):
            return e.training_scopes(wildcards.method)[wildcards.scope][0]
        return e.pair_of(int(wildcards.source), int(wildcards.target))

    def shards(self, wildcards: Any) -> list[str]:
        """The shards of a direction: images, tables and timings."""
        of = self.experiments[wildcards.experiment].evaluation.shards
        place = (wildcards.experiment, wildcards.method, wildcards.source, wildcards.target)
        stems = [layout.shard(*place, number, of) for number in range(1, of + 1)]
        timing = layout.timing(*place)
        return [
            *(f"{stem}.{suffix}" for stem in stems for suffix in ("safetensors", "parquet")),
            *(str(timing.with_suffix(f".{n}-of-{of}.json")) for n in range(1, of + 1)),
        ]

    def shard_count(self, wildcards: Any) -> int:
        """How many shards a direction has."""
        return self.experiments[wildcards.experiment].evaluation.shards

    def metric_oracles(self, wildcards: Any) -> list[str]:
        """What the metrics of an experiment need besides the classifier."""
        e = self.experiments[wildcards.experiment]
        return [file for name in e.oracles for file in self.oracle_files(e.models, name)]

    def pair_sets(self, wildcards: Any) -> list[str]:
        """The counterfactual sets of a method on all directions of a pair."""
        e = self.experiments[wildcards.experiment]
        directions = e.pair_directions(parse_pair(wildcards.scope))
        return strings(inputs.set_files(e, wildcards.method, directions))

    def found_inputs(self, wildcards: Any) -> list[str]:
        """The tables of all methods that are run on a direction."""
        e = self.experiments[wildcards.experiment]
        direction = (int(wildcards.source), int(wildcards.target))
        methods = inputs.methods_on(e, direction)
        sets = [path for name in methods for path in inputs.set_files(e, name, [direction])]
        return strings(path for path in sets if path.suffix == ".parquet")

    def table_inputs(self, wildcards: Any) -> list[str]:
        """The metrics of a table's rows, and the cards of the models behind them."""
        return strings(inputs.table_inputs(self.tables[wildcards.table], self.experiments))

    def figure_inputs(self, wildcards: Any) -> list[str]:
        """The counterfactual sets and metrics that a figure draws."""
        figure = self.figures[wildcards.figure]
        return strings(inputs.figure_inputs(figure, self.experiments[figure.experiment]))

    def report_inputs(self, wildcards: Any) -> list[str]:
        """Everything the report of an experiment shows."""
        return strings(inputs.report_inputs(self.experiments[wildcards.experiment]))

    def cost_inputs(self, wildcards: Any) -> list[str]:
        """The timing files of an experiment."""
        return strings(inputs.cost_inputs(self.experiments[wildcards.experiment]))


def yaml_names(folder: str) -> list[str]:
    """The names of the YAML files in a folder of `config/`."""
    return sorted(path.stem for path in (CONFIG_DIR / folder).glob("*.yaml"))


def strings(paths: Iterable[Path]) -> list[str]:
    """Paths as Snakemake wants them."""
    return [str(path) for path in paths]


def any_of(names: Iterable[str]) -> str:
    """A regular expression for the names; one that matches nothing if there are none."""
    return "|".join(sorted(set(names))) or r"(?!)"
