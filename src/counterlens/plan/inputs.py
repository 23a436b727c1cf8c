"""Which files each report reads, so that the workflow can declare them. Imports only config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from counterlens import layout
from counterlens.config import (
    ORIGINAL_DATA,
    Column,
    Experiment,
    Figure,
    Pair,
    Table,
    pair_name,
)
from counterlens.errors import UserError

TIME = Column(
    name="milliseconds", label="Time per image", unit="ms", direction="down", scale=1e3, decimals=4
)
"""The one column that is measured while counterfactuals are made, and so differs at every run."""


def runs(experiment: Experiment, method: str) -> bool:
    """Whether the experiment runs a method; the reference row `original-data` always is."""
    return method == ORIGINAL_DATA or method in experiment.methods


def shared_directions(experiment: Experiment, methods: Iterable[str]) -> tuple[Pair, ...]:
    """The directions that every one of the methods which the experiment runs has in common."""
    run = [method for method in methods if runs(experiment, method)]
    return tuple(
        direction
        for direction in experiment.directions(ORIGINAL_DATA)
        if all(direction in experiment.directions(method) for method in run)
    )


def methods_on(experiment: Experiment, direction: Pair) -> tuple[str, ...]:
    """The methods that an experiment runs on a direction."""
    return tuple(name for name in experiment.methods if direction in experiment.directions(name))


@dataclass(frozen=True)
class TableView:
    """A table as one experiment fills it."""

    table: Table
    experiment: Experiment

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The rows that the experiment runs, in the table's order."""
        return tuple(r.method for r in self.table.rows if runs(self.experiment, r.method))

    @property
    def filtered(self) -> tuple[str, ...]:
        """The rows that must all have found a counterfactual for an image, if the table asks it."""
        if self.table.filter != "found-by-all":
            return ()
        asked = {row.method for row in self.table.rows if row.in_filter} - {ORIGINAL_DATA}
        return tuple(method for method in self.methods if method in asked)

    @property
    def judged(self) -> bool:
        """Whether any column is a metric's."""
        return any(column != TIME.name for column in self.table.columns)

    def directions(self, method: str) -> tuple[Pair, ...]:
        """The directions that a row is about; none if the experiment does not run it."""
        if method not in self.methods:
            return ()
        if self.table.directions == "own":
            return self.experiment.directions(method)
        return self._shared

    @cached_property
    def _shared(self) -> tuple[Pair, ...]:
        return shared_directions(self.experiment, self.methods)


def trained_oracles(experiment: Experiment) -> list[str]:
    """The oracles that a stage trains; the others only load pretrained weights."""
    return [name for name, options in experiment.oracles.items() if options.trained]


def trainings(
    experiment: Experiment, methods: Iterable[str], pairs: Iterable[Pair]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is trained for some methods on some pairs: generators and methods, as (id, scope)."""
    chosen = tuple(pairs)
    generators: dict[tuple[str, str], None] = {}
    trained: dict[tuple[str, str], None] = {}
    waiting = [method for method in methods if method in experiment.methods]
    for method in waiting:
        options = experiment.methods[method]
        if (earlier := options.builds_on()) is not None and earlier not in waiting:
            waiting.append(earlier)
        for pair in (pair for pair in experiment.method_pairs(method) if pair in chosen):
            if options.trainable:
                trained[experiment.training_of(method, pair)] = None
            for name in experiment.models.required_generators(options.generators()):
                generators[name, experiment.models.scope(name, pair)] = None
    return list(generators), list(trained)


def model_folders(
    experiment: Experiment,
    generators: Iterable[tuple[str, str]] | None = None,
    methods: Iterable[tuple[str, str]] | None = None,
) -> list[Path]:
    """Where the explained classifier, the oracles, generators and trained methods lie.

    Args:
        generators, methods: those that are wanted, as (id, scope); all by default.
    """
    models = experiment.models.name
    if generators is None:
        generators = [(g, s) for g in experiment.generators for s in experiment.scopes(g)]
    if methods is None:
        methods = [
            (method, scope)
            for method in experiment.trained_methods()
            for scope in experiment.training_scopes(method)
        ]
    return [
        layout.classifier(models, experiment.classifier),
        *(layout.oracle(models, oracle) for oracle in trained_oracles(experiment)),
        *(layout.generator(models, *training) for training in generators),
        *(layout.method(experiment.name, *training) for training in methods),
    ]


def model_name(folder: Path) -> str:
    """A model by its folder, for people: `generators/dcgan/all-classes`."""
    own = folder.is_relative_to(layout.MODELS)
    return "/".join(folder.relative_to(layout.RESULTS).parts[2 if own else 1 :])


def cards(experiment: Experiment) -> list[Path]:
    """The cards (quality gates) of all of an experiment's models."""
    return [folder / "card.json" for folder in model_folders(experiment)]


def table_cards(view: TableView) -> list[Path]:
    """The cards of the models behind a table's rows, on the directions that these are about."""
    experiment = view.experiment
    directions = dict.fromkeys(d for method in view.methods for d in view.directions(method))
    pairs = dict.fromkeys(experiment.pair_of(*direction) for direction in directions)
    folders = model_folders(experiment, *trainings(experiment, view.methods, pairs))
    return [folder / "card.json" for folder in folders]


def metric_files(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """The metrics of a method on some directions, `.json` and `.parquet`."""
    stems = [layout.metrics(experiment.name, method, *direction) for direction in directions]
    return [stem.with_suffix(suffix) for stem in stems for suffix in (".json", ".parquet")]


def pair_files(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """The metrics of all pairs of which some directions are given, if any metric judges pairs."""
    if not experiment.pooled():
        return []
    pairs = dict.fromkeys(experiment.pair_of(*direction) for direction in directions)
    return [
        layout.pair_metrics(experiment.name, method, pair_name(pair)).with_suffix(".json")
        for pair in pairs
    ]


def set_files(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """The counterfactual sets of a method on some directions, `.safetensors` and `.parquet`."""
    stems = [
        layout.counterfactuals(experiment.name, method, *direction) for direction in directions
    ]
    return [stem.with_suffix(suffix) for stem in stems for suffix in (".safetensors", ".parquet")]


def table_inputs(table: Table, experiments: Mapping[str, Experiment]) -> list[Path]:
    """Everything a table is computed from.

    Args:
        table: the table.
        experiments: the table's experiments by name.

    Raises:
        UserError: the rows of the table have no direction in common.
    """
    paths: list[Path] = []
    for name in table.experiments:
        experiment = experiments[name]
        view = TableView(table, experiment)
        if table.directions == "shared" and not shared_directions(experiment, view.methods):
            raise UserError(
                f"table {table.name}: the methods {', '.join(view.methods)} of experiment {name} "
                "have no direction in common; give them a common pair under 'pairs'"
            )
        for method in view.methods:
            directions = view.directions(method)
            if view.judged:
                paths += metric_files(experiment, method, directions)
                paths += pair_files(experiment, method, directions)
            if TIME.name in table.columns:
                paths += timing_files(experiment, method, directions)
                paths += earlier_timing_files(experiment, method, directions)
        for method in view.filtered:
            sets = set_files(experiment, method, view.directions(method))
            paths += [path for path in sets if path.suffix == ".parquet"]
        paths += table_cards(view)
    return paths


def figure_methods(figure: Figure, experiment: Experiment) -> tuple[str, ...]:
    """The methods that a figure shows: all that it names, or of a `pareto` those that are run."""
    if figure.kind != "pareto":
        return figure.methods
    return tuple(method for method in figure.methods if runs(experiment, method))


def figure_inputs(figure: Figure, experiment: Experiment) -> list[Path]:
    """Everything a figure is drawn from.

    Raises:
        UserError: the experiment does not run a method of the figure on its directions.
    """
    paths: list[Path] = []
    for method in figure_methods(figure, experiment):
        for direction in figure.directions:
            if not runs(experiment, method) or direction not in experiment.directions(method):
                raise UserError(
                    f"figure {figure.name}: experiment {experiment.name} does not run "
                    f"{method} on {direction[0]} to {direction[1]}; add it under 'methods' and "
                    "'pairs' of the experiment"
                )
        if figure.kind not in ("parameter", "pareto"):
            paths += set_files(experiment, method, figure.directions)
        if figure.kind in ("cout", "parameter", "pareto"):
            paths += metric_files(experiment, method, figure.directions)
        if figure.kind == "pareto":
            paths += pair_files(experiment, method, figure.directions)
    if figure.kind == "tsne":
        paths.append(embeddings(experiment))
    return paths


def found_files(experiment: Experiment) -> list[Path]:
    """For every direction, which method found a counterfactual for which query, and the counts."""
    stems = [layout.found(experiment.name, *d) for d in experiment.directions(ORIGINAL_DATA)]
    return [stem.with_suffix(suffix) for stem in stems for suffix in (".parquet", ".json")]


def embeddings(experiment: Experiment) -> Path:
    """The classifier's features of the test images."""
    folder = layout.classifier(experiment.models.name, experiment.classifier)
    return folder / "embeddings.safetensors"


def predictions(experiment: Experiment) -> Path:
    """The classifier's answers to the test images."""
    folder = layout.classifier(experiment.models.name, experiment.classifier)
    return folder / "predictions.parquet"


def dataset_card(experiment: Experiment) -> Path:
    """The card of an experiment's dataset, the package's or a user's own."""
    return layout.dataset_card(experiment.dataset.name)


def report_inputs(experiment: Experiment) -> list[Path]:
    """Everything an experiment's HTML report shows."""
    paths = [
        dataset_card(experiment),
        predictions(experiment),
        *cards(experiment),
        *curve_files(experiment),
        *sample_sheets(experiment),
    ]
    for method in experiment.methods:
        paths += set_files(experiment, method, experiment.directions(method))
    for method in (*experiment.methods, ORIGINAL_DATA):
        paths += metric_files(experiment, method, experiment.directions(method))
        paths += pair_files(experiment, method, experiment.directions(method))
    return paths


def curve_files(experiment: Experiment) -> list[Path]:
    """Every `training.csv` of an experiment's models."""
    return [folder / "training.csv" for folder in model_folders(experiment)]


def sample_sheets(experiment: Experiment) -> list[Path]:
    """The sample sheet of every trained generator."""
    return [
        layout.generator(experiment.models.name, generator, scope) / "samples.png"
        for generator in experiment.generators
        for scope in experiment.scopes(generator)
    ]


def own_directions(experiment: Experiment) -> dict[str, tuple[Pair, ...]]:
    """All directions of each method."""
    return {method: experiment.directions(method) for method in experiment.methods}


def timing_inputs(experiment: Experiment) -> list[Path]:
    """The measured seconds per image of every method and direction."""
    return [
        path
        for method, directions in own_directions(experiment).items()
        for path in timing_files(experiment, method, directions)
    ]


def training_times(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """How long the trainings took that a method uses on some directions, own or borrowed ones."""
    pairs = {experiment.pair_of(*direction) for direction in directions}
    trained = {experiment.training_of(method, pair) for pair in pairs}
    return [
        layout.method_time(experiment.name, name, scope)
        for name, scope in sorted(trained)
        if experiment.methods[method].trainable
    ]


def generator_times(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """How long the trainings took of all generators that a method needs on some directions."""
    models = experiment.models
    needed = models.required_generators(experiment.methods[method].generators())
    pairs = dict.fromkeys(experiment.pair_of(*direction) for direction in directions)
    trained = dict.fromkeys((name, models.scope(name, pair)) for name in needed for pair in pairs)
    return [layout.generator_time(models.name, name, scope) for name, scope in trained]


def cost_inputs(
    experiment: Experiment, directions: Mapping[str, Sequence[Pair]] | None = None
) -> list[Path]:
    """Everything that was measured of the methods' costs, on some directions of each, or all."""
    files: list[Path] = []
    chosen_of = own_directions(experiment) if directions is None else directions
    for method, chosen in chosen_of.items():
        files += timing_files(experiment, method, chosen)
        files += earlier_timing_files(experiment, method, chosen)
        files += training_times(experiment, method, chosen)
        files += generator_times(experiment, method, chosen)
    return list(dict.fromkeys(files))


def timing_files(experiment: Experiment, method: str, directions: Iterable[Pair]) -> list[Path]:
    """The measured seconds per image of a method on some directions; real images take none."""
    if method == ORIGINAL_DATA:
        return []
    return [layout.timing(experiment.name, method, *direction) for direction in directions]


def earlier_timing_files(
    experiment: Experiment, method: str, directions: Iterable[Pair]
) -> list[Path]:
    """Those of the method whose counterfactuals this one goes on from; most have none."""
    if method == ORIGINAL_DATA or (earlier := experiment.methods[method].builds_on()) is None:
        return []
    return timing_files(experiment, earlier, directions)
