"""One method on one batch: its time, and the ratio to that of everything it is compared with."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from counterlens.methods.base import Explanation, Method
from counterlens.oracles.feature_extractor import FeatureExtractor

TOLERANCE = 0.05  # of validity, and of the mean change as a share, between results that agree


@dataclass(frozen=True)
class Rounds:
    """How often everything is run.

    Attributes:
        repeats: rounds that count.
        warm_up: rounds before those.
        at_most: seconds after which no round begins.
    """

    repeats: int = 20
    warm_up: int = 3
    at_most: float = 60.0


@dataclass(frozen=True)
class Batch:
    """N queries on the device, and the randomness that they are explained with.

    Attributes:
        x: float32 (N, C, H, W) in [0, 1].
        source, target: int64 (N,), each one class for all.
        randomness: one generator per image.
        states: of the generators, before any explanation.
    """

    x: Tensor
    source: Tensor
    target: Tensor
    randomness: Sequence[torch.Generator]
    states: Sequence[Tensor]

    def first(self, count: int | None) -> Batch:
        """So many images; None: all."""
        return Batch(
            self.x[:count],
            self.source[:count],
            self.target[:count],
            self.randomness[:count],
            self.states[:count],
        )

    def given(self) -> tuple[Tensor, Tensor, Tensor, Sequence[torch.Generator]]:
        """What `Method.explain` takes, each time with the same randomness."""
        for random, state in zip(self.randomness, self.states, strict=True):
            random.set_state(state)
        return self.x, self.source, self.target, self.randomness


@dataclass(frozen=True)
class Rival:
    """What a method is timed in turn with.

    Attributes:
        name: what it is printed as.
        run: counterfactuals (N, C, H, W) of a batch, or None where it makes none.
        images: how many of the batch it is given; None: all.
        must_agree: without counterfactuals as good as the method's there is no ratio.
    """

    name: str
    run: Callable[[Batch], Tensor | None]
    images: int | None = None
    must_agree: bool = False


def measure(
    method: Method,
    batch: Batch,
    rivals: Mapping[str, Rival],
    rounds: Rounds,
    judge: FeatureExtractor | None = None,
) -> dict[str, Any]:
    """Seconds per image of a method and, by their keys, of its rivals, with the ratio to each.

    Args:
        judge: adds the mean LPIPS-oracle to the results of a method and a rival.
    """
    parts = {key: batch.first(rival.images) for key, rival in rivals.items()}
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: method.explain(*batch.given())}
    runs |= {key: partial(rival.run, parts[key]) for key, rival in rivals.items()}
    seconds, answers = interleaved(runs, rounds, batch.x.device)
    per_image = [each / len(batch.x) for each in seconds["ours"]]
    entry: dict[str, Any] = {
        "images": len(batch.x),
        "repeats": len(per_image),
        "seconds_per_image": statistics.median(per_image),
    }
    for key, rival in rivals.items():
        count = len(parts[key].x)
        entry[key] = {"name": rival.name, "images": count}
        if answers[key] is not None:
            entry[key] |= results(method, parts[key], answers["ours"], answers[key], judge)
            if rival.must_agree and not entry[key]["agree"]:
                continue  # the speed of another result is no comparison
        theirs = [each / count for each in seconds[key]]
        entry[key] |= {
            "seconds_per_image": statistics.median(theirs),
            "ratio": statistics.median(a / b for a, b in zip(per_image, theirs, strict=True)),
        }
    return entry


def results(
    method: Method,
    batch: Batch,
    ours: Explanation,
    theirs: Tensor,
    judge: FeatureExtractor | None = None,
) -> dict[str, Any]:
    """How good a method's and a rival's counterfactuals are, and whether they agree.

    They do where about as many are valid, the images are changed as much, and the method found any.

    Args:
        batch: the images that the rival was given.
        ours: of these, and maybe of more after them.
        theirs: (N, C, H, W) in [0, 1].
    """
    x, count = batch.x, len(batch.x)
    images = {"ours": ours.counterfactual[:count], "theirs": theirs}
    valid = {name: validity(method, y, batch.target) for name, y in images.items()}
    change = {name: float((y - x).abs().mean()) for name, y in images.items()}
    agree = (
        bool(ours.found[:count].any())
        and abs(valid["ours"] - valid["theirs"]) <= TOLERANCE
        and math.isclose(change["ours"], change["theirs"], rel_tol=TOLERANCE)
    )
    measured = {"validity": valid, "mean change": change}
    if judge is not None:
        measured["LPIPS-oracle"] = {
            name: float(judge.perceptual_distance(x, y).mean()) for name, y in images.items()
        }
    return {"results": measured, "agree": agree}


def validity(method: Method, counterfactual: Tensor, target: Tensor) -> float:
    """The share of images (N, C, H, W) that the classifier gives the target class (N,)."""
    predicted = method.task.classifier.probabilities(counterfactual).argmax(dim=1)
    return float((predicted == target.cpu()).float().mean())


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: Rounds, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each run, round by round, and what each gave in the last round.

    All run in turn, in an order that turns round, so that a drift of the machine hits all alike.
    The last round counts, were it a warm-up.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, Any] = {}
    first = time.perf_counter()
    for number in range(rounds.warm_up + rounds.repeats):
        if number and time.perf_counter() - first > rounds.at_most:
            break
        for name in names if number % 2 else reversed(names):
            synchronise(device)
            began = time.perf_counter()
            answers[name] = runs[name]()
            synchronise(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: each[rounds.warm_up :] or each[-1:] for name, each in seconds.items()}, answers


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
