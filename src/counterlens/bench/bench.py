"""Stage `bench`: what a counterfactual costs, beside the least that it could cost.

For every method of an experiment: seconds per counterfactual; the ratio to the bare network passes
that the method cannot do without, timed in turn with it; on request the ratio to a peer, another
implementation of the same method on the same model and images, and to another method of the
experiment, and a paper's times beside ours; for a method whose diffusion model explains in bfloat16
what float32 would change. Images are on the device before the clock starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from counterlens import __version__, layout, plugins
from counterlens.bench import peers, report
from counterlens.bench.measure import Batch, Rival, measure
from counterlens.bench.settings import Settings, check, chosen_pair, paper_seconds
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, Pair, pair_name
from counterlens.errors import UserError
from counterlens.generators import base as generators
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.methods import base
from counterlens.methods.base import Method
from counterlens.methods.explain import test_split
from counterlens.oracles import base as oracles
from counterlens.oracles.feature_extractor import FeatureExtractor
from counterlens.runtime import device as devices
from counterlens.runtime import files
from counterlens.runtime.seeding import image_generators


def run(experiment: Experiment, device: torch.device, settings: Settings) -> dict[str, Any]:
    """Measure, print, and write `results/benchmarks/<experiment>.json`, and a table's `.md`.

    Raises:
        UserError: the settings do not fit the experiment, or no method can be measured.
    """
    check(experiment, settings)
    pair = chosen_pair(experiment, settings.pair)
    table = settings.table
    published = paper_seconds(table, experiment) if table else {}
    names = settings.methods or tuple(published) or tuple(experiment.methods)
    measured, skipped = measure_all(experiment, device, settings, pair, names)
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"experiment {experiment.name}: nothing to measure: {reasons}")
    for name in measured.keys() & published.keys():
        measured[name]["paper_seconds_per_image"] = published[name]
    result = {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "direction": list(pair),
        **asdict(settings.rounds),
        "untrained": settings.untrained,
        "device": devices.describe(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
        "methods": measured,
        "skipped": skipped,
    }
    folder = layout.RESULTS / "benchmarks"
    files.write_json(folder / f"{experiment.name}.json", result)
    print(report.in_words(result))
    if table:
        files.write_text(folder / f"{table.name}.md", report.beside_paper(result, table))
    return result


def measure_all(
    experiment: Experiment,
    device: torch.device,
    settings: Settings,
    pair: Pair,
    names: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What is measured of each method, and why others are skipped."""
    load = partial(fresh if settings.untrained else base.load, pair=pair, device=device)
    implementations = [peers.load(peer) for peer in settings.peers]
    beside = load(experiment, settings.beside) if settings.beside else None
    judge = None if settings.untrained else feature_extractor(experiment, device)
    everything = batch(experiment, device, pair, settings.images)
    measured: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        options = experiment.methods[name]
        if pair not in experiment.method_pairs(name):
            skipped[name] = f"is not run on the pair {pair_name(pair)}"
            continue
        try:
            method = load(experiment, name)
        except UserError as error:
            skipped[name] = str(error)
            continue
        queries = everything.first(options.images)
        rivals = bare_passes(method, queries)
        if beside is not None and name != settings.beside:
            rivals["beside"] = explained_by(beside, str(settings.beside))
        if exact := in_float32(experiment, name):
            rivals["float32"] = explained_by(load(exact, name), "itself in float32")
        rivals |= by_peer(method, implementations, settings.peer_images)
        entry = measure(method, queries, rivals, settings.rounds, judge)
        measured[name] = {"kind": options.kind, **entry}
    return measured, skipped


def bare_passes(method: Method, queries: Batch) -> dict[str, Rival]:
    """The passes that a method cannot do without, where it knows them."""
    passes = method.bare(queries.x, queries.target)
    return {"bare": Rival(passes.words, lambda _: passes.run())} if passes else {}


def explained_by(method: Method, name: str) -> Rival:
    """Another method of the experiment, or the same in another form."""
    return Rival(name, lambda batch: method.explain(*batch.given()).counterfactual)


def by_peer(
    method: Method, implementations: Sequence[peers.Peer], images: int | None
) -> dict[str, Rival]:
    """The first of the peers that implements a method, on so many images."""
    for peer in implementations:
        if function := peer.of(method.options.kind):
            run = partial(run_peer, function, method)
            return {"peer": Rival(peer.name, run, images, must_agree=True)}
    return {}


def run_peer(function: peers.Implementation, method: Method, queries: Batch) -> Tensor:
    """A peer's counterfactuals of a batch."""
    return function(method, *queries.given())


def batch(experiment: Experiment, device: torch.device, pair: Pair, images: int) -> Batch:
    """The first test images of the first class of a pair, towards the second."""
    data = test_split(experiment, [pair[0]])
    x = data.images[:images].to(device, memory_format=torch.channels_last)
    source, target = (torch.full((len(x),), label, device=device) for label in pair)
    index = data.index[:images].tolist()
    randomness = image_generators(experiment.seed, experiment.name, "bench", index)
    return Batch(x, source, target, randomness, [each.get_state() for each in randomness])


def fresh(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> Method:
    """One of the experiment's methods with untrained networks throughout."""
    options = experiment.methods[name]
    models = experiment.models
    classifier = classifiers.create(models, experiment.classifier)
    decoders = {each: generators.create(models, each) for each in options.generators()}
    for model in (classifier, *decoders.values()):
        devices.freeze(model, device)
    shape = experiment.dataset.shape
    task = base.Task(classifier, decoders, shape, (pair,), device, experiment.seed)
    method = plugins.create("methods", options, Method, task)
    if options.trainable:
        devices.freeze(method.trained(), device)
    return method


def in_float32(experiment: Experiment, name: str) -> Experiment | None:
    """The experiment with the diffusion models of a method in float32; None if they are so."""
    used = experiment.models.required_generators(experiment.methods[name].generators())
    changed = {
        generator: options.model_copy(update={"explanation_precision": "fp32"})
        for generator in used
        if isinstance(options := experiment.models.generators[generator], DiffusionOptions)
        and options.explanation_precision != "fp32"
    }
    if not changed:
        return None
    models = experiment.models
    models = models.model_copy(update={"generators": {**models.generators, **changed}})
    return experiment.model_copy(update={"models": models})


def feature_extractor(experiment: Experiment, device: torch.device) -> FeatureExtractor | None:
    """A trained one of the experiment's dataset, where there is any."""
    for name, options in experiment.models.oracles.items():
        if options.kind == "feature-extractor":
            if not (layout.oracle(experiment.models.name, name) / "model.safetensors").exists():
                return None
            oracle = oracles.load(experiment.models, name, device)
            assert isinstance(oracle, FeatureExtractor)
            return oracle
    return None
