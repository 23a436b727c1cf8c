"""Stage `bench`: what a counterfactual costs, beside the least that it could cost.

For every method of an experiment: seconds per counterfactual; the ratio to the bare network passes
that the method cannot do without, timed in turn with it; and for PGD the ratio to torchattacks on
the same model and images. Images are on the device before the clock starts.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterlens import __version__, layout
from counterlens.config import Experiment, Pair, pair_name
from counterlens.data.base import load_split
from counterlens.errors import UserError
from counterlens.methods import base
from counterlens.methods.ace import ACE
from counterlens.methods.base import Method
from counterlens.methods.c3lt import C3LT
from counterlens.methods.cecas import CECAS
from counterlens.methods.pgd import PGD
from counterlens.runtime import device as devices
from counterlens.runtime import files
from counterlens.runtime.seeding import image_generators

WARM_UP = 3
TOLERANCE = 0.05  # of validity, between two attacks that start from different random points
Run = Callable[[], Any]


def run(
    experiment: Experiment,
    device: torch.device,
    pair: str | None = None,
    images: int = 256,
    repeats: int = 20,
    methods: Sequence[str] = (),
    peer: str | None = None,
) -> dict[str, Any]:
    """Measure, print, and write `results/benchmarks/<experiment>.json`.

    The queries are one batch of test images of the first class of `pair` (default: the first pair);
    trained models are read from `results/`, a method without them is skipped with the reason.
    `methods` empty means all; `peer` is compared with every `pgd` method.

    Raises:
        UserError: an argument does not fit the experiment, the peer is not installed, or no method
            can be measured.
    """
    if images < 1 or repeats < 1:
        raise UserError(f"--images {images} --repeats {repeats}: both must be at least 1")
    chosen = _pair(experiment, pair)
    for name in methods:
        if name not in experiment.methods:
            raise UserError(f"--method {name}: unknown; allowed: {', '.join(experiment.methods)}")
    attacks = _import(peer) if peer else None
    source, target = chosen
    data = load_split(layout.prepared(experiment.dataset.name, "test"), [source])
    x = data.images[:images].to(device, memory_format=torch.channels_last)
    sources, targets = (torch.full((len(x),), label, device=device) for label in chosen)
    seeds = (experiment.seed, experiment.name, "bench", data.index[:images].tolist())
    measured: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in methods or experiment.methods:
        if chosen not in experiment.method_pairs(name):
            skipped[name] = f"is not run on the pair {pair_name(chosen)}"
            continue
        try:
            method = base.load(experiment, name, chosen, device)
        except UserError as error:
            skipped[name] = str(error)
            continue
        randomness = image_generators(*seeds)
        entry = measure(method, x, sources, targets, randomness, repeats, attacks)
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
        "warm_up": WARM_UP,
        "device": devices.describe(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": __version__,
        "methods": measured,
        "skipped": skipped,
    }
    files.write_json(layout.RESULTS / "benchmarks" / f"{experiment.name}.json", result)
    print(report(result))
    return result


def measure(
    method: Method,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Sequence[torch.Generator],
    repeats: int,
    attacks: Any = None,
) -> dict[str, Any]:
    """One method on one batch x (N, C, H, W): ours, its bare passes and, for PGD, the peer.

    `attacks` is the module torchattacks, or None.
    """
    rivals: dict[str, Run] = {
        "ours": lambda: method.explain(x, source, target, randomness).counterfactual
    }
    if least := bare(method, x, target):
        rivals["bare"] = least[1]
    if attacks and isinstance(method, PGD) and not method.options.feed_unnormalised:
        rivals["peer"] = _peer(attacks, method, x, target)
        torch.manual_seed(method.task.seed)
    seconds = interleaved(rivals, repeats, x.device)
    entry: dict[str, Any] = {"seconds_per_image": statistics.median(seconds["ours"]) / len(x)}
    if least:
        entry["bare"] = {"passes": least[0], **_versus(seconds, "bare", len(x))}
    if "peer" in rivals:
        valid = {name: _validity(method, rivals[name](), target) for name in ("ours", "peer")}
        agree = abs(valid["ours"] - valid["peer"]) <= TOLERANCE
        about = {"name": attacks.__name__, "version": attacks.__version__}
        entry["peer"] = {**about, "validity": valid, "agree": agree}
        if agree:  # the speed of another result is no comparison
            entry["peer"] |= _versus(seconds, "peer", len(x))
    return entry


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
    return None


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
    rivals: dict[str, Run], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run: in turn, in an order that turns round, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(WARM_UP + repeats):
        for name in list(rivals) if number % 2 else list(reversed(rivals)):
            _synchronise(device)
            began = time.perf_counter()
            rivals[name]()
            _synchronise(device)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def report(result: Mapping[str, Any]) -> str:
    """The measurements in lines for people."""
    source, target = result["direction"]
    lines = [
        f"{result['experiment']} ({result['scale']}), {source} to {target}: {result['images']} "
        f"images, median of {result['repeats']}, {result['device']}"
    ]
    for name, entry in result["methods"].items():
        line = f"  {name}: {entry['seconds_per_image']:.3g} s per counterfactual"
        if "bare" in entry:
            line += f"; {entry['bare']['ratio']:.3f} x its bare passes ({entry['bare']['passes']})"
        if peer := entry.get("peer"):
            both = f"validity {peer['validity']['ours']:.3f} and {peer['validity']['peer']:.3f}"
            ratio = f"{peer['ratio']:.3f} x" if peer["agree"] else "not comparable with"
            line += f"; {ratio} {peer['name']} {peer['version']} ({both})"
        lines.append(line)
    lines += [f"  {name}: skipped: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def _pair(experiment: Experiment, name: str | None) -> Pair:
    pairs = {pair_name(pair): pair for pair in experiment.all_pairs()}
    if name is None:
        return experiment.pairs[0]
    if name not in pairs:
        raise UserError(f"--pair {name}: experiment {experiment.name} has {', '.join(pairs)}")
    return pairs[name]


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


def _versus(seconds: Mapping[str, list[float]], rival: str, images: int) -> dict[str, float]:
    ratios = [a / b for a, b in zip(seconds["ours"], seconds[rival], strict=True)]
    return {
        "seconds_per_image": statistics.median(seconds[rival]) / images,
        "ratio": statistics.median(ratios),
    }


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
