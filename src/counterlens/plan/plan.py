"""What the Snakefile asks: which targets exist, what each job depends on and which settings.

Torch-free. Every method that takes `wildcards` is an input or parameter function of a rule.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from counterlens import layout, plugins
from counterlens.config import (
    ALL_CLASSES,
    ALL_PAIRS,
    CONFIG_DIR,
    ORIGINAL_DATA,
    Experiment,
    Figure,
    Table,
    figure_names,
    load_figure,
    load_project,
    load_table,
    pair_name,
    parse_pair,
    table_names,
)
from counterlens.errors import UserError
from counterlens.experiments import load_experiment
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.plan import inputs
from counterlens.plan.code import closure, code, is_control, relative
from counterlens.plugins import PACKAGE


class Workflow:
    """The project's experiments, tables and figures, validated, and the jobs they need."""

    def __init__(self, overrides: Mapping[str, Any]) -> None:
        self.project = load_project(overrides)
        scale = self.project.scale
        names = sorted(path.stem for path in (CONFIG_DIR / "experiments").glob("*.yaml"))
        self.experiments = {name: load_experiment(name, scale) for name in names}
        self.tables: dict[str, Table] = {name: load_table(name) for name in table_names()}
        self.figures: dict[str, Figure] = {name: load_figure(name) for name in figure_names()}
        self.datasets = {e.dataset.name: e.dataset for e in self.experiments.values()}
        self.scale = scale
        self.check_names()
        if self.project.mirror:
            os.environ.setdefault("COUNTERLENS_MIRROR", self.project.mirror)  # jobs inherit it

    def check_names(self) -> None:
        """What no single file can tell: that the experiments, tables and figures named exist."""

        def check(place: str, names: Iterable[str], known: Iterable[str]) -> None:
            for name in names:
                if name not in known:
                    raise UserError(f"{place}: '{name}' is unknown; known: {', '.join(known)}")

        for name, e in self.experiments.items():
            if e.dataset != self.datasets[e.dataset.name]:
                raise UserError(
                    f"{CONFIG_DIR / 'experiments' / name}.yaml: dataset: '{e.dataset.name}' has "
                    "other options in another experiment; let its `name` depend on them"
                )
        for section in ("experiments", "tables", "figures"):
            place = f"{CONFIG_DIR / 'config.yaml'}: {section}"
            check(place, getattr(self.project, section), getattr(self, section))
        for name, table in self.tables.items():
            check(f"table {name}: experiments", table.experiments, self.experiments)
        for name, figure in self.figures.items():
            check(f"figure {name}: experiment", [figure.experiment], self.experiments)

    @staticmethod
    def hours(count: int) -> Callable[[Any, int], int]:
        """Minutes for `count` hours, doubled with each attempt: the `runtime` of a rule."""
        return lambda wildcards, attempt: 60 * count * attempt

    def generator_threads(self, wildcards: Any) -> int:
        """All threads for the one generator of all classes; one each for those of the pairs."""
        return self.project.threads if wildcards.scope == ALL_CLASSES else 1

    # Wildcard constraints

    def ids(self, section: str) -> str:
        """A pattern of every id that any experiment defines in a section."""
        return any_of(name for e in self.experiments.values() for name in getattr(e, section))

    def sharded(self, wanted: bool) -> str:
        """A pattern of the experiments whose directions are (not) explained in shards."""
        return any_of(
            name for name, e in self.experiments.items() if (e.evaluation.shards > 1) == wanted
        )

    def diffusion_models(self) -> str:
        """A pattern of every generator that is a diffusion model."""
        return any_of(
            name
            for e in self.experiments.values()
            for name, options in e.generators.items()
            if isinstance(options, DiffusionOptions)
        )

    def any_figure(self) -> str:
        """A pattern of every figure."""
        return any_of(self.figures)

    def any_row(self) -> str:
        """A pattern of every method id and the reference row."""
        return f"{self.ids('methods')}|{ORIGINAL_DATA}"

    # Targets

    def all_targets(self) -> list[str]:
        """What `all` builds: the experiments, tables and figures that config.yaml lists."""
        files = [f for name in self.project.experiments for f in self.experiment_target(name)]
        files += [f"{layout.TABLES}/{name}.csv" for name in self.project.tables]
        return [*files, *(f"{layout.FIGURES}/{name}.png" for name in self.project.figures)]

    def counterfactuals(self, experiment: str, methods: Iterable[str] | None = None) -> list[str]:
        """Every counterfactual set of an experiment, or of some of its methods."""
        e = self.experiments[experiment]
        return [
            f"{layout.counterfactuals(experiment, method, *direction)}.safetensors"
            for method in ((*e.methods, ORIGINAL_DATA) if methods is None else methods)
            for direction in e.directions(method)
        ]

    def metrics(self, experiment: str, methods: Iterable[str] | None = None) -> list[str]:
        """The metric files of an experiment, or of some of its methods."""
        e = self.experiments[experiment]
        chosen = (*e.methods, ORIGINAL_DATA) if methods is None else methods
        found: list[Path] = []
        for method in chosen:
            if method in e.methods or method == ORIGINAL_DATA:
                found += inputs.metric_files(e, method, e.directions(method))
                found += inputs.pair_files(e, method, e.directions(method))
        return strings(found)

    def generators(self, experiment: str, names: Iterable[str] | None = None) -> list[str]:
        """Every trained generator of an experiment, or some of them."""
        e = self.experiments[experiment]
        chosen = e.generators if names is None else names
        folders = [
            (name, layout.generator(experiment, name, scope))
            for name in chosen
            for scope in e.scopes(name)
        ]
        return [
            *(str(folder / "model.safetensors") for _, folder in folders),
            *(
                str(folder / "diffusers/model_index.json")
                for name, folder in folders
                if isinstance(e.generators[name], DiffusionOptions)
            ),
        ]

    def oracles(self, experiment: str) -> list[str]:
        """Every oracle of an experiment."""
        e = self.experiments[experiment]
        return [file for name in e.oracles for file in self.oracle_files(e, name)]

    def oracle_files(self, e: Experiment, name: str) -> list[str]:
        """The trained oracle, or the records of the pretrained weights that it loads."""
        if not e.oracles[name].trained:
            return [str(layout.weight(weight)) for weight in e.oracles[name].weights]
        return [str(layout.oracle(e.name, name) / "model.safetensors")]

    def classifier_weights(self, experiment: str) -> list[str]:
        """The records of the pretrained weights that an experiment's classifier loads."""
        options = self.experiments[experiment].classifier
        return [str(layout.weight(weight)) for weight in options.named_weights]

    def prepared(self, experiment: str) -> list[str]:
        """The prepared dataset of an experiment."""
        dataset = self.experiments[experiment].dataset.name
        return [str(layout.prepared(dataset, split)) for split in ("train", "test")]

    def experiment_target(self, name: str) -> list[str]:
        """An experiment's report, costs, animations, Pareto figures, found images and tables."""
        own = [table for table, content in self.tables.items() if content.experiments == (name,)]
        tables = [f"{layout.TABLES}/{table}.csv" for table in (*own, f"{name}-cost")]
        figures = [f"{layout.FIGURES}/{figure.name}.png" for figure in self.pareto_figures(name)]
        found = strings(inputs.found_files(self.experiments[name]))
        return [str(layout.report(name)), *tables, *figures, *self.animations(name), *found]

    def board_target(self, table: str) -> list[str]:
        """A ranked table, and all about its experiments."""
        names = self.tables[table].experiments
        about = [file for name in names for file in self.experiment_target(name)]
        return list(dict.fromkeys([f"{layout.TABLES}/{table}.csv", *about]))

    def pareto_figures(self, experiment: str) -> list[Figure]:
        """The figures of kind `pareto` of an experiment."""
        found = self.figures.values()
        return [f for f in found if f.kind == "pareto" and f.experiment == experiment]

    def boards(self, experiment: str) -> list[Table]:
        """The ranked tables about one experiment alone, which its report shows."""
        found = self.tables.values()
        return [table for table in found if table.ranked and table.experiments == (experiment,)]

    def animations(self, name: str) -> list[str]:
        """The folders of an experiment's animations."""
        e = self.experiments[name]
        return strings(
            layout.animations(name, method, e.dataset.name, pair_name(pair))
            for method in e.methods
            if e.methods[method].animated and e.evaluation.animations
            for pair in e.method_pairs(method)
        )

    def named_targets(self) -> dict[str, list[str]]:
        """Files by target name: every table, figure and experiment, and the groups of `dvc.yaml`.

        A group is one stage of the pipeline for one dataset, experiment, generator or method:
        `datasets_digits`, `classifiers_digits`, `generators_digits_dcgan`, `metrics_digits_c3lt`.
        """
        found = {name: [f"{layout.TABLES}/{name}.csv"] for name in self.tables}
        found |= {name: [f"{layout.FIGURES}/{name}.png"] for name in self.figures}
        weights: set[str] = set()
        for name, e in self.experiments.items():
            weights |= {*self.classifier_weights(name)}
            found[name] = self.experiment_target(name)
            found[f"datasets_{e.dataset.name}"] = self.prepared(name)
            found[f"classifiers_{name}"] = [str(layout.classifier(name) / "model.safetensors")]
            for oracle in e.oracles:
                if not e.oracles[oracle].trained:
                    weights |= {*self.oracle_files(e, oracle)}
                else:
                    found.setdefault(f"oracles_{name}", []).extend(self.oracle_files(e, oracle))
            for generator in e.generators:
                found[f"generators_{name}_{generator}"] = self.generators(name, [generator])
            for method in (*e.methods, ORIGINAL_DATA):
                found[f"counterfactuals_{name}_{method}"] = self.counterfactuals(name, [method])
                found[f"metrics_{name}_{method}"] = self.metrics(name, [method])
            found[f"reports_{name}"] = [
                str(layout.report(name)),
                f"{layout.TABLES}/{name}-cost.csv",
                *self.animations(name),
                *strings(inputs.found_files(e)),
            ]
        for name, table in self.tables.items():
            if table.ranked:
                found[name] = self.board_target(name)
        return {**found, "pretrained": sorted(weights)} if weights else found

    # Inputs

    def raw_files(self, wildcards: Any) -> list[str]:
        """A dataset's downloads."""
        options = self.datasets[wildcards.dataset]
        return [str(layout.raw(options.name) / file) for file in options.files]

    def dataset_arguments(self, wildcards: Any) -> str:
        """A dataset's plugin and options, as the command line takes them."""
        return self.datasets[wildcards.dataset].arguments()

    def dataset_of(self, wildcards: Any) -> list[str]:
        """The prepared splits of a job's experiment."""
        return self.prepared(wildcards.experiment)

    def classifier_files(self, wildcards: Any) -> list[str]:
        """The user's files that a classifier is read from, if it is not trained."""
        return list(self.experiments[wildcards.experiment].classifier.files)

    def pretrained_of(self, wildcards: Any) -> list[str]:
        """The records of the weights that a job's classifier loads."""
        return self.classifier_weights(wildcards.experiment)

    def generator_inputs(self, wildcards: Any) -> list[str]:
        """The generators that a generator builds on."""
        e = self.experiments[wildcards.experiment]
        options = e.generators[wildcards.generator]
        pair = None if wildcards.scope == ALL_CLASSES else parse_pair(wildcards.scope)
        return [self.generator_file(e, name, pair) for name in options.requires()]

    def generator_file(self, e: Experiment, name: str, pair: tuple[int, int] | None) -> str:
        """The model of a generator as it serves a pair."""
        scope = ALL_CLASSES
        if pair is not None and e.generators[name].per_pair:
            scope = pair_name(pair)
        return str(layout.generator(e.name, name, scope) / "model.safetensors")

    def method_generators(self, wildcards: Any) -> list[str]:
        """The trained generators that a method's options name."""
        e = self.experiments[wildcards.experiment]
        return [
            self.generator_file(e, name, self.pair(wildcards))
            for name in e.methods[wildcards.method].generators()
        ]

    def method_model(self, wildcards: Any) -> list[str]:
        """The trained method, where there is something to train."""
        e = self.experiments[wildcards.experiment]
        if not e.methods[wildcards.method].trainable:
            return []
        pair = e.pair_of(int(wildcards.source), int(wildcards.target))
        folder = layout.method(e.name, *e.training_of(wildcards.method, pair))
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
        return [str(layout.classifier(e.name) / "predictions.parquet")]

    def pair(self, wildcards: Any) -> tuple[int, int]:
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
        return self.oracles(wildcards.experiment)

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

    def animation_inputs(self, wildcards: Any) -> list[str]:
        """The counterfactual sets of a pair, with their paths."""
        return self.pair_sets(wildcards)

    def report_inputs(self, wildcards: Any) -> list[str]:
        """Everything the report of an experiment shows."""
        return strings(inputs.report_inputs(self.experiments[wildcards.experiment]))

    def cost_inputs(self, wildcards: Any) -> list[str]:
        """The timing files of an experiment."""
        return strings(inputs.cost_inputs(self.experiments[wildcards.experiment]))

    # Code

    def stage_code(self, module: str, *wanted: tuple[str, str]) -> list[str]:
        """The files of a stage's module and of the plugins (section, kind) it runs."""
        stage = PACKAGE / f"{module}.py"
        return code(stage, *(plugins.source_file(section, kind) for section, kind in wanted))

    def fetch_code(self, wildcards: Any) -> list[str]:
        """Code of `fetch`: only the dataset's own file (URLs, checksums) can change a download."""
        return [relative(plugins.source_file("data", self.datasets[wildcards.dataset].kind))]

    def prepare_code(self, wildcards: Any) -> list[str]:
        """Code of `prepare`."""
        return self.stage_code(
            "data/formats/prepare", ("data", self.datasets[wildcards.dataset].kind)
        )

    def weights_code(self, wildcards: Any) -> list[str]:
        """Code of `weights`: the list of URLs and checksums."""
        return [relative(PACKAGE / "data/formats/weights.py")]

    def gather_code(self, wildcards: Any) -> list[str]:
        """Code of `gather`."""
        return self.stage_code("methods/explain")

    def classifier_code(self, wildcards: Any) -> list[str]:
        """Code of `classifier`."""
        chosen = self.experiments[wildcards.experiment].classifier
        stage = "classifiers/train" if chosen.trained else "classifiers/adopt"
        return self.stage_code(stage, ("classifiers", chosen.kind))

    def oracle_code(self, wildcards: Any) -> list[str]:
        """Code of `oracle`."""
        e = self.experiments[wildcards.experiment]
        kind = e.oracles[wildcards.oracle].kind
        return self.stage_code(
            "oracles/train", ("oracles", kind), ("classifiers", e.classifier.kind)
        )

    def generator_code(self, wildcards: Any) -> list[str]:
        """Code of `generator`."""
        e = self.experiments[wildcards.experiment]
        needed = e.required_generators((wildcards.generator,))
        kinds = [("generators", e.generators[name].kind) for name in needed]
        return self.stage_code("generators/train", *kinds, ("classifiers", e.classifier.kind))

    def export_code(self, wildcards: Any) -> list[str]:
        """Code of `export`."""
        e = self.experiments[wildcards.experiment]
        kind = e.generators[wildcards.generator].kind
        return self.stage_code("generators/export", ("generators", kind))

    def method_code(self, module: str, wildcards: Any) -> list[str]:
        """Code of `fit` and `explain`: the method's own file, and what it runs on."""
        e = self.experiments[wildcards.experiment]
        options = e.methods[wildcards.method]
        kinds = [("generators", e.generators[name].kind) for name in options.generators()]
        return self.stage_code(
            module, ("methods", options.kind), *kinds, ("classifiers", e.classifier.kind)
        )

    def fit_code(self, wildcards: Any) -> list[str]:
        """Code of `fit`."""
        return self.method_code("methods/fit", wildcards)

    def explain_code(self, wildcards: Any) -> list[str]:
        """Code of `explain`."""
        return self.method_code("methods/explain", wildcards)

    def original_data_code(self, wildcards: Any) -> list[str]:
        """Code of `original-data`."""
        e = self.experiments[wildcards.experiment]
        return self.stage_code("methods/explain", ("classifiers", e.classifier.kind))

    def metrics_code(self, wildcards: Any) -> list[str]:
        """Code of `metrics`."""
        e = self.experiments[wildcards.experiment]
        kinds = [("metrics", metric.kind) for metric in e.metrics]
        kinds += [("oracles", oracle.kind) for oracle in e.oracles.values()]
        return self.stage_code("metrics/compute", *kinds, ("classifiers", e.classifier.kind))

    def report_code(self, module: str) -> list[str]:
        """Code of `table`, `figure`, `cost` and `report`, templates and control modules too."""
        folder = PACKAGE / "reports"
        templates = [path for path in folder.iterdir() if path.suffix in (".j2", ".css", ".js")]
        control = [path for path in PACKAGE.rglob("*.py") if is_control(path)]
        found = {*closure(frozenset([folder / f"{module}.py"])), *control}
        if module in ("html", "tables"):
            found |= {*templates}
        return [relative(path) for path in sorted(found)]

    # Parameters

    def settings(self, section: str, wildcards: Any) -> str:
        """The part of the configuration that shapes a job's result, as canonical JSON."""
        e = self.experiments[wildcards.experiment]
        key = {"generators": "generator", "oracles": "oracle", "methods": "method"}.get(section)
        name = getattr(wildcards, key) if key else None
        if name == ORIGINAL_DATA:
            return canonical(e.settings("evaluation"))
        return canonical(e.settings(section, *([name] if name else [])))

    def classifier_settings(self, wildcards: Any) -> str:
        """Parameters of `classifier`."""
        return self.settings("classifier", wildcards)

    def oracle_settings(self, wildcards: Any) -> str:
        """Parameters of `oracle`, which may be trained like the classifier and on its pairs."""
        e = self.experiments[wildcards.experiment]
        both = [self.settings("oracles", wildcards), self.settings("classifier", wildcards)]
        return canonical([*both, e.pairs])

    def generator_settings(self, wildcards: Any) -> str:
        """Parameters of `generator`."""
        return self.settings("generators", wildcards)

    def method_settings(self, wildcards: Any) -> str:
        """Parameters of `fit`: the options that shape it, and the pairs of a joint training."""
        e = self.experiments[wildcards.experiment]
        content = e.settings("methods", wildcards.method)
        content["methods"][wildcards.method] = e.methods[wildcards.method].training()
        pairs = e.training_scopes(wildcards.method).get(ALL_PAIRS)
        return canonical([content, pairs] if pairs else content)

    def explain_settings(self, wildcards: Any) -> str:
        """Parameters of `explain`: the method's options, whichever pairs it is run on."""
        e = self.experiments[wildcards.experiment]
        content = e.settings("methods", wildcards.method)
        content["methods"][wildcards.method].pop("pairs")
        return canonical([canonical(content), self.settings("evaluation", wildcards)])

    def evaluation_settings(self, wildcards: Any) -> str:
        """Parameters of `original-data` and `animations`."""
        return self.settings("evaluation", wildcards)

    def metrics_settings(self, wildcards: Any) -> str:
        """Parameters of `metrics`."""
        return self.settings("metrics", wildcards)

    def table_settings(self, wildcards: Any) -> str:
        """Parameters of `table`: its own file, and its experiments' metrics."""
        table = self.tables[wildcards.table]
        metrics = [self.experiments[name].settings("metrics") for name in table.experiments]
        return canonical([table.model_dump(mode="json"), metrics, self.project.scale])

    def found_settings(self, wildcards: Any) -> str:
        """Parameters of `found`: what the filtered tables of the experiment ask."""
        name = wildcards.experiment
        asked = {
            table.name: inputs.TableView(table, self.experiments[name]).filtered
            for table in self.tables.values()
            if name in table.experiments
        }
        return canonical({table: methods for table, methods in asked.items() if methods})

    def figure_settings(self, wildcards: Any) -> str:
        """Parameters of `figure`."""
        return canonical(self.figures[wildcards.figure].model_dump(mode="json"))

    def report_settings(self, wildcards: Any) -> str:
        """Parameters of `report`: the whole experiment, its ranked tables and Pareto figures."""
        name = wildcards.experiment
        shown = [self.experiments[name], *self.boards(name), *self.pareto_figures(name)]
        return canonical([each.model_dump(mode="json") for each in shown])


def strings(paths: Iterable[Path]) -> list[str]:
    """Paths as Snakemake wants them."""
    return [str(path) for path in paths]


def canonical(content: object) -> str:
    """JSON with sorted keys."""
    return json.dumps(content, sort_keys=True)


def any_of(names: Iterable[str]) -> str:
    """A regular expression for the names; one that matches nothing if there are none."""
    return "|".join(sorted(set(names))) or r"(?!)"
