"""Stage `bench`: what a counterfactual costs, beside the least that it could cost.

For every method of an experiment: seconds per counterfactual; the ratio to the bare network passes
that the method cannot do without, timed in turn with it; for PGD the ratio to torchattacks on the
same model and images; for CEM and CVE the ratio to the search as published, one image at a time;
for a method whose diffusion model explains in bfloat16 what float32 would change; and on request
the ratio to another method of the experiment, and a paper's times beside ours. Images are on the
device before the clock starts.
"""

from __future__ import annotations

import copy
import importlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterlens import __version__, layout, plugins
from counterlens.bench import references, report
from counterlens.classifiers import base as classifiers
from counterlens.config import Experiment, Pair, Table, pair_name
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.generators import base as generators
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.methods import base
from counterlens.methods.ace import ACE
from counterlens.methods.base import Method
from counterlens.methods.c3lt import C3LT
from counterlens.methods.cecas import CECAS
from counterlens.methods.cem import CEM
from counterlens.methods.cve import CVE
from counterlens.methods.pgd import PGD
from counterlens.oracles import base as oracles
from counterlens.oracles.feature_extractor import FeatureExtractor
from counterlens.plan.inputs import TIME
from counterlens.runtime import device as devices
from counterlens.runtime import files
from counterlens.runtime.seeding import image_generators

WARM_UP = 3
AT_MOST = 60.0  # seconds of repeating one method
TOLERANCE = 0.05  # of validity, or of the share of equal images, between two that are compared
SAME = 1e-3  # largest difference of a pixel
Run = Callable[[], Any]


def run(
    experiment: Experiment,
    device: torch.device,
    pair: str | None = None,
    images: int = 256,
    repeats: int = 20,
    methods: Sequence[str] = (),
    peer: str | None = None,
    sequential: int = 0,
    warm_up: int = WARM_UP,
    beside: str | None = None,
    untrained: bool = False,
    table: Table | None = None,
    at_most: float = AT_MOST,
) -> dict[str, Any]:
    """Measure, print, and write `results/benchmarks/<experiment>.json`.

    The queries are one batch of test images of the first class of `pair` (default: the first pair),
    as many as asked for and the experiment gives the method. Trained models are read from
    `results/`; a method without them is skipped with the reason. No repeat of a method begins once
    `at_most` seconds are over.

    Args:
        methods: their names; none means those of the table, or all.
        peer: compared with every `pgd` method.
        sequential: on so many of the images the search as published, one image at a time, is
            compared with every `cem` and `cve` method.
        beside: a method that each other one is compared with.
        untrained: networks have fresh weights, enough for a method whose work does not depend on
            them.
        table: one of times, whose paper's number is put beside each of ours, printed and as
            `results/benchmarks/<table>.md`.

    Raises:
        UserError: an argument does not fit the experiment, the peer is not installed, or no method
            can be measured.
    """
    if images < 1 or repeats < 1:
        raise UserError(f"--images {images} --repeats {repeats}: both must be at least 1")
    if sequential < 0 or warm_up < 0:
        raise UserError(f"--sequential {sequential} --warm-up {warm_up}: neither may be negative")
    chosen = _pair(experiment, pair)
    for name in (*methods, *([beside] if beside else [])):
        if name not in experiment.methods:
            option = "--method" if name in methods else "--beside"
            raise UserError(f"{option} {name}: unknown; allowed: {', '.join(experiment.methods)}")
    paper = _published(table, experiment) if table else {}
    attacks = _import(peer) if peer else None
    source, target = chosen
    data = load_split(layout.prepared(experiment.dataset.name, "test"), [source])
    x = data.images[:images].to(device, memory_format=torch.channels_last)
    sources, targets = (torch.full((len(x),), label, device=device) for label in chosen)
    seeds = (experiment.seed, experiment.name, "bench", data.index[:images].tolist())
    judge = None if untrained else _judge(experiment, device)
    load = fresh if untrained else base.load
    other = load(experiment, beside, chosen, device) if beside else None
    measured: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in methods or paper or experiment.methods:
        if chosen not in experiment.method_pairs(name):
            skipped[name] = f"is not run on the pair {pair_name(chosen)}"
            continue
        try:
            method = load(experiment, name, chosen, device)
        except UserError as error:
            skipped[name] = str(error)
            continue
        some = slice(experiment.methods[name].images)
        randomness = image_generators(*seeds)[some]
        exact = in_float32(experiment, name)
        entry = measure(
            method,
            x[some],
            sources[some],
            targets[some],
            randomness,
            repeats,
            attacks,
            sequential,
            warm_up,
            load(exact, name, chosen, device) if exact else None,
            judge,
            None if name == beside else other,
            at_most,
        )
        if "beside" in entry:
            entry["beside"]["name"] = beside
        if name in paper:
            entry["paper_seconds_per_image"] = paper[name]
        measured[name] = {"kind": experiment.methods[name].kind, **entry}
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise UserError(f"experiment {experiment.name}: nothing to measure: {reasons}")
    result = {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "direction": [source, target],
        "images": len(x),
        "repeats": repeats,
        "warm_up": warm_up,
        "untrained": untrained,
        "device": devices.describe(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
        "methods": measured,
        "skipped": skipped,
    }
    files.write_json(layout.RESULTS / "benchmarks" / f"{experiment.name}.json", result)
    print(report.in_words(result))
    if table:
        files.write_text(
            layout.RESULTS / "benchmarks" / f"{table.name}.md",
            report.beside_paper(result, table),
        )
    return result


def measure(
    method: Method,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Sequence[torch.Generator],
    repeats: int,
    attacks: Any = None,
    sequential: int = 0,
    warm_up: int = WARM_UP,
    exact: Method | None = None,
    judge: FeatureExtractor | None = None,
    beside: Method | None = None,
    at_most: float = AT_MOST,
) -> dict[str, Any]:
    """One method on one batch x (N, C, H, W): ours, its bare passes and what it is compared with.

    `attacks` is the module torchattacks, or None; `sequential` is the number of images for the
    search one image at a time; `exact` is the same method in float32, `judge` tells how far both
    change the images; `beside` is another method; no round begins once `at_most` seconds are over.
    """
    state = [one.get_state() for one in randomness]

    def again() -> Sequence[torch.Generator]:
        for one, first in zip(randomness, state, strict=True):
            one.set_state(first)
        return randomness

    rivals: dict[str, Run] = {
        "ours": lambda: method.explain(x, source, target, again()).counterfactual
    }
    if least := bare(method, x, target):
        rivals["bare"] = least[1]
    if attacks and isinstance(method, PGD) and not method.options.feed_unnormalised:
        rivals["peer"] = _peer(attacks, method, x, target)
        torch.manual_seed(method.task.seed)
    some = slice(sequential)
    alone: Run | None = None
    if sequential:
        alone = one_at_a_time(method, x[some], source[some], target[some], again)
    if alone is not None:
        rivals["sequential"] = alone
    if exact is not None:
        rivals["float32"] = lambda: exact.explain(x, source, target, again()).counterfactual
    if beside is not None:
        rivals["beside"] = lambda: beside.explain(x, source, target, again())
    seconds = interleaved(rivals, repeats, x.device, warm_up, at_most)
    entry: dict[str, Any] = {
        "images": len(x),
        "repeats": len(seconds["ours"]),
        "seconds_per_image": statistics.median(seconds["ours"]) / len(x),
    }
    if least:
        entry["bare"] = {"passes": least[0], **_versus(seconds, "bare", len(x))}
    if beside is not None:
        entry["beside"] = _versus(seconds, "beside", len(x))
    if "peer" in rivals:
        valid = {name: _validity(method, rivals[name](), target) for name in ("ours", "peer")}
        agree = abs(valid["ours"] - valid["peer"]) <= TOLERANCE
        about = {"name": attacks.__name__, "version": attacks.__version__}
        entry["peer"] = {**about, "validity": valid, "agree": agree}
        if agree:  # the speed of another result is no comparison
            entry["peer"] |= _versus(seconds, "peer", len(x))
    if exact is not None:
        found = {name: rivals[name]() for name in ("ours", "float32")}
        entry["float32"] = {
            "validity": {name: _validity(method, y, target) for name, y in found.items()},
            **_versus(seconds, "float32", len(x)),
        }
        if judge is not None:
            entry["float32"]["lpips_oracle"] = {
                name: float(judge.perceptual_distance(x, y).mean()) for name, y in found.items()
            }
    if alone is not None:
        assert isinstance(method, CEM | CVE)
        entry["sequential"] = _alike(method, x[some], source[some], target[some], again)
        if entry["sequential"]["agree"]:
            entry["sequential"] |= _speed_up(seconds, len(x), entry["sequential"]["images"])
    return entry


def fresh(experiment: Experiment, name: str, pair: Pair, device: torch.device) -> Method:
    """One of the experiment's methods with untrained networks throughout."""
    options = experiment.methods[name]
    classifier = classifiers.create(experiment)
    models = {each: generators.create(experiment, each) for each in options.generators()}
    for model in (classifier, *models.values()):
        devices.freeze(model, device)
    shape = experiment.dataset.shape
    task = base.Task(classifier, models, shape, (pair,), device, experiment.seed)
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
        if isinstance(options := experiment.generators[generator], DiffusionOptions)
        and options.explanation_precision != "fp32"
    }
    if not changed:
        return None
    return experiment.model_copy(update={"generators": {**experiment.generators, **changed}})


def one_at_a_time(
    method: Method,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Callable[[], Sequence[torch.Generator]],
) -> Run | None:
    """The search as published on each image by itself; None for other methods.

    Args:
        randomness: gives the images' generators, as they were at first.
    """
    if isinstance(method, CEM):
        return lambda: references.cem(method, x, source, target)
    if isinstance(method, CVE):
        return lambda: references.cve(method, x, source, target, randomness())
    return None


def bare(method: Method, x: Tensor, target: Tensor) -> tuple[str, Run] | None:
    """The passes that a method cannot do without, in words and to run; None where not known."""
    if isinstance(method, C3LT) and (encoder := method.encoder) is not None:
        latent_map = method.maps["g" if int(target[0]) == method.task.pair[1] else "h"]

        def latent_passes() -> None:
            with torch.inference_mode():
                method.generator.decode(latent_map(encoder.encode(x)))

        return "encode, map, decode", latent_passes
    if isinstance(method, PGD):
        classifier, steps = method.task.classifier, method.options.steps
        leaf = x.detach().clone().requires_grad_(True)
        ones = torch.ones_like(classifier(x))

        def gradient_passes() -> None:
            for _ in range(steps):
                torch.autograd.grad(classifier(leaf), leaf, ones)

        return f"{steps} x (forward and backward of the classifier)", gradient_passes
    if isinstance(method, ACE | CECAS):
        return _filter_passes(method, x)
    if isinstance(method, CEM):
        return _search_passes(method, x)
    return None


def _search_passes(method: CEM, x: Tensor) -> tuple[str, Run]:
    """The gradients of all search steps; not the classifier's answers to the iterates."""
    classifier, autoencoder = method.task.classifier, method.autoencoder
    count = method.options.search_steps * method.options.iterations
    leaf = x.detach().clone().requires_grad_(True)

    def passes() -> None:
        for _ in range(count):
            value = classifier(leaf).sum()
            if autoencoder is not None:
                value = value + autoencoder.reconstruct(leaf).sum()
            torch.autograd.grad(value, leaf)

    networks = "classifier" if autoencoder is None else "classifier and auto-encoder"
    return f"{count} x (forward and backward of the {networks})", passes


def _filter_passes(method: ACE | CECAS, x: Tensor) -> tuple[str, Run]:
    """The passes of the diffusion model and the classifier: one attack of ACE, two of CECAS."""
    through, options = method.attack.filter, method.options
    network, classifier = through.network, method.task.classifier
    attacks = 2 if isinstance(method, CECAS) else 1
    leaf = x.detach().clone().requires_grad_(True)
    ones = torch.ones_like(classifier(x))

    def predict(v: Tensor, step: int) -> Tensor:
        return network.predict(v, step)[0]

    def passes() -> None:
        for _ in range(attacks * options.iterations):
            v = leaf
            for level in reversed(through.levels):
                if through.recompute:
                    v = checkpoint(predict, v, level.step, use_reentrant=False)
                else:
                    v = predict(v, level.step)
            torch.autograd.grad(classifier(v), leaf, ones)
        with torch.inference_mode():
            for level in reversed(through.levels):
                predict(x, level.step)

    words = f"{attacks * options.iterations} x {len(through.levels)} denoising steps, with gradient"
    return words, passes


def interleaved(
    rivals: dict[str, Run],
    repeats: int,
    device: torch.device,
    warm_up: int = WARM_UP,
    at_most: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds of each run: in turn, in an order that turns round, so that drift hits all alike.

    No round begins once `at_most` seconds are over; the last one counts, were it a warm-up.
    """
    rounds: list[dict[str, float]] = []
    first = time.perf_counter()
    while len(rounds) < warm_up + repeats:
        if rounds and time.perf_counter() - first > at_most:
            break
        seconds: dict[str, float] = {}
        for name in list(rivals) if len(rounds) % 2 else list(reversed(rivals)):
            _synchronise(device)
            began = time.perf_counter()
            rivals[name]()
            _synchronise(device)
            seconds[name] = time.perf_counter() - began
        rounds.append(seconds)
    counted = rounds[min(warm_up, len(rounds) - 1) :]
    return {name: [each[name] for each in counted] for name in rivals}


def _pair(experiment: Experiment, name: str | None) -> Pair:
    pairs = {pair_name(pair): pair for pair in experiment.all_pairs()}
    if name is None:
        return experiment.pairs[0]
    if name not in pairs:
        raise UserError(f"--pair {name}: experiment {experiment.name} has {', '.join(pairs)}")
    return pairs[name]


def _published(table: Table, experiment: Experiment) -> dict[str, float | None]:
    """A paper's seconds per image of the rows of its table of times that the experiment has."""
    values = table.paper_values.get(experiment.name, {})
    if TIME.name not in table.columns or experiment.name not in table.experiments:
        raise UserError(
            f"--table {table.name}: is no table of times about {experiment.name}; it has the "
            f"columns {', '.join(table.columns)} of {', '.join(table.experiments)}"
        )
    return {
        row.method: values[row.method][TIME.name] / TIME.scale
        if TIME.name in values.get(row.method, {})
        else None
        for row in table.rows
        if row.method in experiment.methods
    }


def _judge(experiment: Experiment, device: torch.device) -> FeatureExtractor | None:
    """The experiment's trained feature extractor, where it has one."""
    for name, options in experiment.oracles.items():
        if options.kind == "feature-extractor":
            if not (layout.oracle(experiment.name, name) / "model.safetensors").exists():
                return None
            found = oracles.load(experiment, name, device)
            assert isinstance(found, FeatureExtractor)
            return found
    return None


def _import(peer: str) -> Any:
    try:
        return importlib.import_module(peer)
    except ImportError:
        raise UserError(
            f"--peer {peer}: is not installed here; envs/bench.sh adds it for one run"
        ) from None


def _validity(method: Method, counterfactual: Tensor, target: Tensor) -> float:
    predicted = method.task.classifier.probabilities(counterfactual).argmax(dim=1)
    return float((predicted == target.cpu()).float().mean())


def _peer(attacks: Any, method: PGD, x: Tensor, target: Tensor) -> Run:
    options = method.options
    attack = attacks.PGD(
        method.task.classifier,
        eps=options.epsilon,
        alpha=options.step_size,
        steps=options.steps,
        random_start=options.random_start,
    )
    attack.set_mode_targeted_by_label(quiet=True)
    return lambda: attack(x, target)


def _alike(
    method: CEM | CVE,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Callable[[], Sequence[torch.Generator]],
) -> dict[str, Any]:
    """Whether the batched search and that of single images give the same counterfactuals.

    CEM's iteration enlarges any rounding until single pixels differ, so its two are compared on a
    short search in double precision, where that has not happened yet. Where the short search finds
    nothing they agree on nothing, so some must be found.
    """
    if isinstance(method, CEM):
        method, x = shortened(method), x.double()
    ours = method.explain(x, source, target, randomness()[: len(x)])
    alone = one_at_a_time(method, x, source, target, randomness)
    assert alone is not None
    same = (ours.counterfactual - alone()).flatten(1).abs().amax(dim=1) < SAME
    share, found = float(same.float().mean()), int(ours.found.sum())
    agree = share >= 1 - TOLERANCE and found > 0
    return {"images": len(x), "same": share, "found": found, "agree": agree}


def shortened(method: CEM) -> CEM:
    """The same search in double precision, with at most 2 search steps of at most 30 iterations."""
    options = method.options
    most = {"search_steps": min(2, options.search_steps), "iterations": min(30, options.iterations)}
    task = replace(
        method.task,
        classifier=copy.deepcopy(method.task.classifier).double(),
        generators={k: copy.deepcopy(v).double() for k, v in method.task.generators.items()},
    )
    return CEM(options.model_copy(update=most), task)


def _speed_up(seconds: Mapping[str, list[float]], images: int, sequential: int) -> dict[str, float]:
    """Images per second of ours over those of the search on `sequential` single images."""
    ratios = [
        (alone / sequential) / (ours / images)
        for ours, alone in zip(seconds["ours"], seconds["sequential"], strict=True)
    ]
    return {
        "seconds_per_image": statistics.median(seconds["sequential"]) / sequential,
        "speed_up": statistics.median(ratios),
    }


def _versus(seconds: Mapping[str, list[float]], rival: str, images: int) -> dict[str, float]:
    ratios = [a / b for a, b in zip(seconds["ours"], seconds[rival], strict=True)]
    return {
        "seconds_per_image": statistics.median(seconds[rival]) / images,
        "ratio": statistics.median(ratios),
    }


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
