"""The searches of CEM and CVE as published, one image at a time.

Written from the papers apart from the batched methods, which must give the same. Also a peer of
`counterlens bench --peer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from counterlens.classifiers.lenet import LeNet
from counterlens.methods.cem import CEM
from counterlens.methods.cve import CVE


def cem(
    method: CEM,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Sequence[torch.Generator] = (),
) -> Tensor:
    """Counterfactuals of queries (N, C, H, W) in [0, 1], by the release's loops."""
    pairs = zip(source.tolist(), target.tolist(), strict=True)
    return torch.cat(
        [_cem(method, image[None] - 0.5, *pair) + 0.5 for image, pair in zip(x, pairs, strict=True)]
    )


def _cem(method: CEM, x0: Tensor, source: int, target: int) -> Tensor:
    """One image (1, C, H, W) in [-½, ½]; zeros where nothing is found."""
    options = method.options
    low, high, weight = 0.0, 1e10, options.initial_c
    smallest, answer = math.inf, torch.zeros_like(x0)

    def logits(image: Tensor) -> Tensor:
        return method.task.classifier(image + 0.5)[0]

    def attack_loss(image: Tensor) -> Tensor:
        z = logits(image)
        if options.targeting == "pairwise":
            against = z[source]
        else:
            against = torch.cat([z[:target], z[target + 1 :]]).max()
        return (against - z[target] + options.kappa).clamp(min=0)

    def is_success(image: Tensor) -> bool:
        with torch.inference_mode():
            z = logits(image).clone()
            if options.must_reach_target:
                z[target] -= options.kappa
                return int(z.argmax()) == target
            z[source] += options.kappa
            return int(z.argmax()) != source

    for _ in range(options.search_steps):
        delta, ahead, succeeded = x0, x0, False
        for k in range(options.iterations):
            y = ahead.clone().requires_grad_(True)
            loss = weight * attack_loss(y) + (y - x0).square().sum()
            if method.autoencoder is not None:
                residual = method.autoencoder.reconstruct(y + 0.5) - 0.5 - y
                loss = loss + options.gamma * residual.square().sum()
            (gradient,) = torch.autograd.grad(loss, y)
            stepped = ahead - options.lr * math.sqrt(1 - k / options.iterations) * gradient
            change = stepped - x0
            shrunk = torch.where(change > options.beta, (stepped - options.beta).clamp(max=0.5), x0)
            lower = (stepped + options.beta).clamp(min=-0.5)
            shrunk = torch.where(change < -options.beta, lower, shrunk)
            shrunk = torch.where(shrunk > x0, shrunk, x0)
            ahead = shrunk + (k + 1) / (k + 4) * (shrunk - delta)
            ahead = torch.where(ahead > x0, ahead, x0)
            delta = shrunk
            change = delta - x0
            distance = float(change.square().sum() + options.beta * change.abs().sum())
            if is_success(delta):
                succeeded = True
                if distance < smallest:
                    smallest, answer = distance, delta
        if succeeded:
            high = min(high, weight)
            weight = (low + high) / 2
        else:
            low = max(low, weight)
            weight = (low + high) / 2 if high < 1e9 else weight * 10
    return answer


def cve(
    method: CVE,
    x: Tensor,
    source: Tensor,
    target: Tensor,
    randomness: Sequence[torch.Generator],
) -> Tensor:
    """Counterfactuals of queries (N, C, H, W): all exchanges of one image through the head."""
    composed = []
    with torch.inference_mode():
        for index in range(len(x)):
            row = slice(index, index + 1)
            distractor = method.distractors(x[row], target[row], randomness[row])
            edits = _cve(method, x[row], distractor, int(target[index]))
            columns = torch.tensor(edits, dtype=torch.int64, device=x.device).view(-1, 2)
            into, of = columns[:, 0][None], columns[:, 1][None]
            composed.append(method.compose(x[row], distractor, into, of)[0])
    return torch.cat(composed)


def _head(method: CVE) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]:
    """Images to maps, maps to logits, and the side of a cell of the maps."""
    classifier, side = method.task.classifier, method.options.cell
    if isinstance(classifier, LeNet) and side == 2:
        hidden, head = classifier.hidden, classifier.head
        return (
            lambda x: functional.max_pool2d(classifier.features(x), 2),
            lambda pooled: head(functional.relu(hidden(pooled.flatten(1)))),
            1,
        )
    return classifier.features, classifier.classify, side


def _cve(method: CVE, x: Tensor, distractor: Tensor, target: int) -> list[tuple[int, int]]:
    """The exchanges for one image: (cell of the query, cell of the distractor)."""
    features, head, side = _head(method)
    maps, others = features(x)[0], features(distractor)[0]
    height, width = maps.shape[1] // side, maps.shape[2] // side
    most = method.options.max_edits or height * width

    def part(cell: int) -> tuple[slice, slice, slice]:
        down, along = side * (cell // width), side * (cell % width)
        return slice(None), slice(down, down + side), slice(along, along + side)

    edits: list[tuple[int, int]] = []
    while int(head(maps[None])[0].argmax()) != target and len(edits) < most:
        taken, given = ({pair[end] for pair in edits} for end in (0, 1))
        free = [cell for cell in range(height * width) if cell not in taken]
        offered = [cell for cell in range(height * width) if cell not in given]
        pieces = torch.stack([others[part(cell)] for cell in offered])
        changed = maps.repeat(len(free), len(offered), 1, 1, 1)
        for row, cell in enumerate(free):
            changed[row][:, *part(cell)] = pieces
        changed = changed.flatten(0, 1)
        best = int(head(changed).log_softmax(dim=1)[:, target].argmax())
        maps = changed[best]
        edits.append((free[best // len(offered)], offered[best % len(offered)]))
    return edits
