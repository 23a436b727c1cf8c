"""The `counterlens` command: one subcommand per stage, each runnable by itself.

A stage's modules, and torch with them, are imported when the stage runs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from counterlens import __version__, layout
from counterlens.errors import UserError

if TYPE_CHECKING:
    import torch

    from counterlens.config import DatasetOptions, Experiment, Models, Scale

DESCRIPTION = "The stages of the pipeline; `snakemake` runs them in order."
Arguments = argparse.Namespace
Stage = Callable[[Arguments], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    parsed = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        parsed.stage(parsed)
    except UserError as error:
        print(f"counterlens: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("counterlens: stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="counterlens", description=DESCRIPTION)
    whole.add_argument("--version", action="version", version=__version__)
    stages = whole.add_subparsers(title="stages", required=True, metavar="STAGE")

    def stage(name: str, run: Stage, help: str) -> argparse.ArgumentParser:
        command = stages.add_parser(name, help=help, description=help)
        command.set_defaults(stage=run)
        return command

    def with_experiment(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument(
            "--experiment", required=True, help="name of config/experiments/*.yaml"
        )
        return with_scale(command)

    def with_models(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        help = "name of config/models/*.yaml, or of an experiment with its own models"
        command.add_argument("--models", required=True, help=help)
        return with_scale(command)

    def with_scale(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        help = "which values of the experiment file (default: scale of config/config.yaml)"
        command.add_argument("--scale", choices=("small", "published"), help=help)
        return command

    def with_device(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument("--gpus", type=int, default=1, help="GPUs to wait for (default 1)")
        command.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
        return command

    def with_direction(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument("--source", type=int, required=True, help="class index of the queries")
        command.add_argument("--target", type=int, required=True, help="class index aimed at")
        return command

    def with_dataset(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument("--dataset", required=True, help="name, or path/to/file.py")
        command.add_argument(
            "--set", action="append", metavar="KEY=VALUE", help="one of its options"
        )
        return command

    command = with_dataset(stage("fetch", fetch, "download one raw file of a dataset"))
    command.add_argument("--file", required=True)
    command.add_argument("--mirror", help="folder or URL laid out as <dataset>/<file>, tried first")

    with_dataset(stage("prepare", prepare, "bring a dataset to the common format"))

    command = stage("weights", weights, "download a named pretrained weight, or record why not")
    command.add_argument("--weight", required=True)
    command.add_argument("--mirror", help="folder or URL laid out as weights/<file>, tried first")

    help = "train one classifier, or adopt a user's"
    command = with_device(with_models(stage("classifier", classifier, help)))
    command.add_argument("--classifier", required=True)

    command = with_device(with_models(stage("oracle", oracle, "train one oracle")))
    command.add_argument("--oracle", required=True)

    command = with_device(with_models(stage("generator", generator, "train one generator")))
    command.add_argument("--generator", required=True)
    command.add_argument("--scope", required=True, help="'all-classes' or a pair such as 4-9")

    command = with_models(stage("export", export, "a diffusion model in diffusers' format"))
    command.add_argument("--generator", required=True)
    command.add_argument("--scope", required=True, help="'all-classes' or a pair such as 4-9")

    command = with_device(with_experiment(stage("fit", fit, "train a method")))
    command.add_argument("--method", required=True)
    command.add_argument("--scope", required=True, help="a pair such as 4-9, or 'all-pairs'")

    command = with_device(with_experiment(stage("explain", explain, "explain one direction")))
    with_direction(command).add_argument("--method", required=True)
    command.add_argument("--shard", type=int, default=1, help="which shard, from 1")
    command.add_argument("--of", type=int, default=1, help="number of shards")

    command = with_experiment(stage("gather", gather, "join the shards of one direction"))
    with_direction(command).add_argument("--method", required=True)
    command.add_argument("--of", type=int, required=True, help="number of shards")

    command = stage("original-data", original_data, "the reference row: real images of the target")
    with_direction(with_device(with_experiment(command)))

    command = with_device(with_experiment(stage("metrics", metrics, "judge one direction or pair")))
    command.add_argument("--method", required=True)
    command.add_argument("--source", type=int, help="class index of the queries")
    command.add_argument("--target", type=int, help="class index aimed at")
    command.add_argument("--pair", help="all directions of a pair such as 4-9, instead of one")

    help = "record which method found a counterfactual for which query"
    with_direction(with_experiment(stage("found", found_by_all, help)))

    command = with_scale(stage("table", table, "build one table of a paper"))
    command.add_argument("--table", required=True)
    command = with_scale(stage("figure", figure, "draw one figure of a paper"))
    command.add_argument("--figure", required=True)
    with_experiment(stage("cost", cost, "gather what an experiment's methods cost"))
    command = with_experiment(stage("animations", animations, "animate the paths of one pair"))
    command.add_argument("--method", required=True)
    command.add_argument("--pair", required=True, help="a pair such as 4-9")
    with_experiment(stage("report", report, "build an experiment's HTML report"))
    stage("check", check, "validate every file under config/")
    command = stage("record", record, "have DVC record what a target was made from")
    command.add_argument("target", help="a table, figure or experiment, or models_<dataset>")

    command = stage("bench", bench, "measure what a counterfactual costs; no rule runs this")
    with_device(with_experiment(command)).add_argument("--pair", help="default: the first pair")
    command.add_argument("--method", action="append", help="may be repeated (default: all)")
    command.add_argument("--images", type=int, default=256, help="size of the batch (default 256)")
    command.add_argument("--repeats", type=int, default=20, help="timed runs (default 20)")
    command.add_argument("--warm-up", type=int, default=3, help="runs before those (default 3)")
    help = "another implementation: torchattacks, or path/to/file.py; may be repeated"
    command.add_argument("--peer", action="append", help=help)
    help = "images for the peers, which may be slow (default: all)"
    command.add_argument("--peer-images", type=int, help=help)
    command.add_argument("--beside", help="a method that each other one is timed in turn with")
    help = "networks with fresh weights, for methods whose work does not depend on them"
    command.add_argument("--untrained", action="store_true", help=help)
    command.add_argument("--table", help="a table of times: its methods, the paper's times beside")
    help = "seconds after which no repeat of a method begins (default 60)"
    command.add_argument("--at-most", type=float, default=60.0, help=help)
    return whole


def experiment(arguments: Arguments) -> Experiment:
    """The experiment a stage is asked to work on."""
    from counterlens.config import ORIGINAL_DATA
    from counterlens.experiments import load_experiment

    chosen = load_experiment(arguments.experiment, scale(arguments))
    name = getattr(arguments, "method", None)
    if isinstance(name, str) and name not in (known := (*chosen.methods, ORIGINAL_DATA)):
        raise UserError(
            f"--method {name}: the experiment {chosen.name} has none of that name; "
            f"it has: {', '.join(known)}"
        )
    return chosen


def models(arguments: Arguments) -> Models:
    """The models that a stage is asked to train one of."""
    from counterlens.experiments import load_models

    chosen = load_models(arguments.models, scale(arguments))
    for key in ("classifier", "generator", "oracle"):
        known = getattr(chosen, f"{key}s")
        name = getattr(arguments, key, None)
        if name is not None and name not in known:
            raise UserError(
                f"--{key} {name}: the models {chosen.name} have none of that name; "
                f"they have: {', '.join(known) or 'none'}"
            )
    return chosen


def scale(arguments: Arguments) -> Scale:
    """The scale asked for, or the project's."""
    from counterlens.config import load_project

    return arguments.scale or load_project().scale


def device(arguments: Arguments) -> torch.device:
    """Take the GPU slots, before torch is imported, and set torch up."""
    from counterlens.runtime import gpu_slots

    gpu_slots.acquire(arguments.gpus)
    from counterlens.runtime.device import setup

    return setup(arguments.threads)


def dataset(arguments: Arguments) -> DatasetOptions:
    """The dataset that `fetch` or `prepare` is asked for."""
    from counterlens.experiments import dataset_options

    return dataset_options(arguments.dataset, arguments.set or [])


def fetch(arguments: Arguments) -> None:
    from counterlens.data.formats.fetch import fetch_dataset_file

    chosen = dataset(arguments)
    output = layout.raw(chosen.name) / arguments.file
    fetch_dataset_file(chosen, arguments.file, output, arguments.mirror or None)


def prepare(arguments: Arguments) -> None:
    from counterlens.data.formats import prepare

    chosen = dataset(arguments)
    prepare.prepare(chosen, layout.raw(chosen.name), layout.PREPARED / chosen.name)


def weights(arguments: Arguments) -> None:
    from counterlens.data.formats.weights import fetch_weight

    fetch_weight(arguments.weight, layout.weight(arguments.weight), arguments.mirror or None)


def classifier(arguments: Arguments) -> None:
    chosen, where = models(arguments), device(arguments)
    from counterlens.classifiers import adopt, train

    stage = train if chosen.classifiers[arguments.classifier].trained else adopt
    stage.run(chosen, arguments.classifier, where)


def oracle(arguments: Arguments) -> None:
    chosen, where = models(arguments), device(arguments)
    from counterlens.oracles import train

    train.run(chosen, arguments.oracle, where)


def generator(arguments: Arguments) -> None:
    chosen, where = models(arguments), device(arguments)
    from counterlens.generators import train
    from counterlens.runtime.stopwatch import timed

    place = layout.generator_time(chosen.name, arguments.generator, arguments.scope)
    with timed(place, arguments.threads):
        train.run(chosen, arguments.generator, arguments.scope, where)


def export(arguments: Arguments) -> None:
    chosen = models(arguments)
    from counterlens.generators import export

    export.run(chosen, arguments.generator, arguments.scope)


def fit(arguments: Arguments) -> None:
    chosen, where = experiment(arguments), device(arguments)
    from counterlens.methods import fit
    from counterlens.runtime.stopwatch import timed

    place = layout.method_time(chosen.name, arguments.method, arguments.scope)
    with timed(place, arguments.threads):
        fit.run(chosen, arguments.method, arguments.scope, where)


def explain(arguments: Arguments) -> None:
    chosen, where = experiment(arguments), device(arguments)
    from counterlens.methods import explain

    explain.run(
        chosen,
        arguments.method,
        arguments.source,
        arguments.target,
        where,
        number=arguments.shard,
        of=arguments.of,
    )


def gather(arguments: Arguments) -> None:
    chosen = experiment(arguments)
    from counterlens.methods import explain

    explain.gather(chosen, arguments.method, arguments.source, arguments.target, arguments.of)


def original_data(arguments: Arguments) -> None:
    chosen, where = experiment(arguments), device(arguments)
    from counterlens.methods import explain

    explain.original_data(chosen, arguments.source, arguments.target, where)


def metrics(arguments: Arguments) -> None:
    from counterlens.config import parse_pair

    source, target, pair = arguments.source, arguments.target, arguments.pair
    if (source is None) != (target is None) or (source is None) == (pair is None):
        raise UserError("metrics: give either --source and --target, or --pair")
    chosen, where = experiment(arguments), device(arguments)
    from counterlens.metrics import compute

    if source is None or target is None:
        compute.compute_pair(chosen, arguments.method, parse_pair(pair), where)
    else:
        compute.compute(chosen, arguments.method, source, target, where)


def found_by_all(arguments: Arguments) -> None:
    from counterlens.reports import found

    found.run(experiment(arguments), arguments.source, arguments.target)


def table(arguments: Arguments) -> None:
    from counterlens.reports import tables

    tables.run(arguments.table, scale(arguments))


def figure(arguments: Arguments) -> None:
    from counterlens.reports import figures

    figures.run(arguments.figure, scale(arguments))


def cost(arguments: Arguments) -> None:
    from counterlens.reports import timing

    timing.run(arguments.experiment, scale(arguments))


def animations(arguments: Arguments) -> None:
    from counterlens.config import parse_pair
    from counterlens.reports import animations

    animations.run(experiment(arguments), arguments.method, parse_pair(arguments.pair))


def report(arguments: Arguments) -> None:
    from counterlens.reports import html

    html.run(arguments.experiment, scale(arguments))


def check(arguments: Arguments) -> None:
    from counterlens.plan.plan import Plan

    plan = Plan({})
    print(
        f"{len(plan.models)} sets of models, {len(plan.experiments)} experiments, "
        f"{len(plan.tables)} tables and {len(plan.figures)} figures are valid"
    )


def record(arguments: Arguments) -> None:
    from counterlens.plan import record
    from counterlens.plan.plan import Plan

    record.run(Plan({}), arguments.target)


def bench(arguments: Arguments) -> None:
    from counterlens.config import load_table

    chosen, where = experiment(arguments), device(arguments)
    table = load_table(arguments.table) if arguments.table else None
    from counterlens.bench import bench
    from counterlens.bench.measure import Rounds
    from counterlens.bench.settings import Settings

    settings = Settings(
        pair=arguments.pair,
        methods=arguments.method or (),
        images=arguments.images,
        rounds=Rounds(arguments.repeats, arguments.warm_up, arguments.at_most),
        beside=arguments.beside,
        peers=arguments.peer or (),
        peer_images=arguments.peer_images,
        untrained=arguments.untrained,
        table=table,
    )
    bench.run(chosen, where, settings)
