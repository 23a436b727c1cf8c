"""CEM: contrastive explanations by pertinent negatives (Dhurandhar et al., NeurIPS 2018).

The least ink that must be added to a query so that the classifier answers otherwise, while an
auto-encoder still takes the image for one of the training data. C3LT (CVPR 2022) compares with
it, with the loss turned to a wanted class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.config import GeneratorOptions, MethodOptions
from counterlens.errors import UserError
from counterlens.generators.cem_autoencoder import CemAutoencoder
from counterlens.methods.base import BarePasses, Explanation, Method, Task


class Options(MethodOptions):
    """Hyper-parameters of the authors' release, with C3LT's gamma.

    Attributes:
        autoencoder: id of the experiment's `cem-autoencoder`; only `gamma: 0` needs none.
        targeting: the loss is max(Z_source - Z_target + kappa, 0) for `pairwise`, and
            max(largest other Z - Z_target + kappa, 0) for `full`, Z being the logits.
        success: an image counts as found when the classifier leaves the source class or when it
            reaches the target class; by default the first for `pairwise`, the second for `full`.
        kappa: confidence margin of loss and success.
        beta, gamma: weights of the L1 distance and of the auto-encoder's squared error.
        initial_c: weight of the loss in the first search step.
        search_steps: steps of the binary search for that weight, each from the query.
        iterations: of projected shrinkage per search step.
        lr: step size at first; it falls to zero as the root of the iterations left.
        patience: a search step with a success ends after so many iterations that brought no
            smaller distance; None, as published, goes through all iterations.
        not_found: where no image counts as found the answer is mid-grey, as in the authors'
            release, or the query.
    """

    label: ClassVar[str] = "CEM"

    autoencoder: str | None = None
    targeting: Literal["pairwise", "full"] = "pairwise"
    success: Literal["leave-source", "reach-target"] | None = None
    kappa: float = Field(default=0.0, ge=0)
    beta: float = Field(default=0.1, ge=0)
    gamma: float = Field(default=100.0, ge=0)
    initial_c: float = Field(default=10.0, gt=0)
    search_steps: int = Field(default=9, gt=0)
    iterations: int = Field(default=1000, gt=0)
    lr: float = Field(default=0.01, gt=0)
    patience: int | None = Field(default=None, gt=0)
    not_found: Literal["grey", "query"] = "grey"

    @property
    def must_reach_target(self) -> bool:
        """Whether only an image of the target class counts as found."""
        if self.success is None:
            return self.targeting == "full"
        return self.success == "reach-target"

    def generators(self) -> tuple[str, ...]:
        """The auto-encoder, where its term has a weight."""
        return (self.autoencoder,) if self.autoencoder and self.gamma else ()

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The auto-encoder's term needs CEM's auto-encoder."""
        if not self.gamma:
            return None
        if self.autoencoder is None:
            return f"gamma: {self.gamma} needs an autoencoder; name a cem-autoencoder, or use 0"
        if generators[self.autoencoder].kind != "cem-autoencoder":
            return f"'{self.autoencoder}' is no cem-autoencoder"
        return None


@dataclass
class Search:
    """The images that are still searched, one row each.

    Attributes:
        row: place in the batch of queries.
        query, iterate, ahead: x0, delta's iterate and its look-ahead.
        weight, low, high: c of the loss and its bounds so far.
        distance, best: smallest elastic net distance of a success, and its image.
        iteration, step: of this search step; number of search steps done.
        succeeded, since: in this search step, any success; iterations since the best one.
        at_rest: whether the last iteration began and ended at the query.
    """

    row: Tensor
    source: Tensor
    target: Tensor
    query: Tensor
    iterate: Tensor
    ahead: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor
    distance: Tensor
    best: Tensor
    iteration: Tensor
    step: Tensor
    succeeded: Tensor
    since: Tensor
    at_rest: Tensor

    @classmethod
    def start(cls, x: Tensor, source: Tensor, target: Tensor, initial_c: float) -> Search:
        """Every query at the start of its first search step."""
        count = torch.zeros_like(source)
        weight = x.new_full((len(x),), initial_c)
        infinite = torch.full_like(weight, torch.inf)
        return cls(
            row=torch.arange(len(x), device=x.device),
            source=source,
            target=target,
            query=x,
            iterate=x,
            ahead=x,
            weight=weight,
            low=torch.zeros_like(weight),
            high=infinite,
            distance=infinite,
            best=x,
            iteration=count,
            step=count,
            succeeded=torch.zeros_like(source, dtype=torch.bool),
            since=count,
            at_rest=torch.zeros_like(source, dtype=torch.bool),
        )

    def select(self, kept: Tensor) -> Search:
        """The rows of a mask."""
        return Search(**{part.name: getattr(self, part.name)[kept] for part in fields(self)})

    def at_query(self) -> Tensor:
        """Whether the iterate and its look-ahead are the query itself."""
        moved = (self.iterate != self.query) | (self.ahead != self.query)
        return ~moved.flatten(1).any(dim=1)


class CEM(Method):
    """Ink is only added: no pixel of a counterfactual that is found is below the query's.

    The release works on [-½, ½]; every term is one of differences, so [0, 1] gives the same.
    Extras: `elastic_net` (N,), the distance ‖δ‖² + β‖δ‖₁ in pixels summed, 0 where none is found.
    """

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.autoencoder: CemAutoencoder | None = None
        for name in options.generators():
            autoencoder = task.generators[name]
            if not isinstance(autoencoder, CemAutoencoder):
                raise UserError(f"generator '{name}' is no cem-autoencoder")
            self.autoencoder = autoencoder

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """The closest success of all search steps."""
        options = self.options
        counterfactual = torch.full_like(x, 0.5) if options.not_found == "grey" else x.clone()
        distance = torch.full_like(source, torch.inf, dtype=x.dtype)
        search = Search.start(x, source, target, options.initial_c)
        while len(search.row):
            self.advance(search)
            # from the query the later, shorter steps lead nowhere either
            ended = (search.iteration == options.iterations) | search.at_rest
            if options.patience is not None:
                ended |= search.succeeded & (search.since >= options.patience)
            if ended.any():
                next_step(search, ended)
            # nothing is closer than the query itself
            done = (search.step == options.search_steps) | (search.distance == 0)
            if done.any():
                left = search.select(done)
                found = left.distance.isfinite()
                counterfactual[left.row[found]] = left.best[found]
                distance[left.row] = left.distance
                search = search.select(~done)
        found = distance.isfinite()
        return Explanation(counterfactual, found, {"elastic_net": torch.where(found, distance, 0)})

    def bare(self, x: Tensor, target: Tensor) -> BarePasses:
        """The gradients of all iterations, without the classifier's answers to the iterates.

        A search whose steps end early makes fewer.
        """
        autoencoder, options = self.autoencoder, self.options
        count = options.search_steps * options.iterations
        leaf = x.detach().clone().requires_grad_(True)

        def run() -> None:
            for _ in range(count):
                value = self.task.classifier(leaf).sum()
                if autoencoder is not None:
                    value = value + autoencoder.reconstruct(leaf).sum()
                torch.autograd.grad(value, leaf)

        networks = "classifier" if autoencoder is None else "classifier and auto-encoder"
        return BarePasses(f"{count} x (forward and backward of the {networks})", run)

    def advance(self, search: Search) -> None:
        """One iteration of projected shrinkage with look-ahead, and its successes."""
        options, x = self.options, search.query
        began_at_query = search.at_query()
        done = search.iteration.to(x.dtype)[:, None, None, None]
        rate = options.lr * (1 - done / options.iterations).sqrt()
        descended = search.ahead - rate * self.gradient(search)
        moved = torch.maximum(shrink(descended, x, options.beta), x)
        momentum = (done + 1) / (done + 4)
        search.ahead = torch.maximum(moved + momentum * (moved - search.iterate), x)
        search.iterate = moved
        search.iteration = search.iteration + 1
        search.at_rest = began_at_query & search.at_query()

        change = (moved - x).flatten(1)
        distance = change.square().sum(dim=1) + options.beta * change.sum(dim=1)
        closer = distance < search.distance
        # the classifier's answer to the others would change nothing
        asked = (closer | ~search.succeeded).nonzero()[:, 0]
        succeeded = torch.zeros_like(search.succeeded)
        succeeded[asked] = self.succeeds(moved[asked], search.source[asked], search.target[asked])
        search.succeeded = search.succeeded | succeeded
        better = succeeded & closer
        search.since = torch.where(better, 0, search.since + 1)
        search.distance = torch.where(better, distance, search.distance)
        search.best = torch.where(better[:, None, None, None], moved, search.best)

    def gradient(self, search: Search) -> Tensor:
        """Of c·loss + ‖y - x0‖² + γ‖y - AE(y)‖² at the look-ahead y: (N, C, H, W)."""
        y = search.ahead.detach().requires_grad_(True)
        loss = (search.weight * self.losses(y, search.source, search.target)).sum()
        if self.autoencoder is not None:
            loss = loss + self.options.gamma * (y - self.autoencoder.reconstruct(y)).square().sum()
        (gradient,) = torch.autograd.grad(loss, y)
        return gradient + 2 * (search.ahead - search.query)

    def losses(self, y: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """How far the logits are from the wanted order: (N,)."""
        logits = self.task.classifier(y)
        wanted = logits.gather(1, target[:, None])[:, 0]
        if self.options.targeting == "pairwise":
            against = logits.gather(1, source[:, None])[:, 0]
        else:
            against = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
        return (against - wanted + self.options.kappa).clamp(min=0)

    @torch.inference_mode()
    def succeeds(self, images: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Whether the classifier answers as wanted, by the margin kappa: bool (N,)."""
        logits = self.task.classifier(images)
        if self.options.must_reach_target:
            margin = -self.options.kappa * functional.one_hot(target, logits.shape[1])
            return (logits + margin).argmax(dim=1) == target
        margin = self.options.kappa * functional.one_hot(source, logits.shape[1])
        return (logits + margin).argmax(dim=1) != source


def shrink(y: Tensor, x: Tensor, threshold: float) -> Tensor:
    """Pixels move back to x by the threshold, and not beyond it; at most 1 and at least 0."""
    return torch.where(
        y - x > threshold,
        (y - threshold).clamp(max=1),
        torch.where(y - x < -threshold, (y + threshold).clamp(min=0), x),
    )


def next_step(search: Search, ended: Tensor) -> None:
    """Bisect c of the rows whose search step ended, and set them back to the query.

    A success is the new upper bound, a failure the lower; without an upper bound c is tenfold.
    """
    succeeded = search.succeeded
    high = torch.where(succeeded, torch.minimum(search.high, search.weight), search.high)
    low = torch.where(succeeded, search.low, torch.maximum(search.low, search.weight))
    weight = torch.where(high.isfinite(), (low + high) / 2, 10 * search.weight)
    image = ended[:, None, None, None]
    search.high = torch.where(ended, high, search.high)
    search.low = torch.where(ended, low, search.low)
    search.weight = torch.where(ended, weight, search.weight)
    search.iterate = torch.where(image, search.query, search.iterate)
    search.ahead = torch.where(image, search.query, search.ahead)
    search.step = search.step + ended
    search.iteration = torch.where(ended, 0, search.iteration)
    search.since = torch.where(ended, 0, search.since)
    search.succeeded = search.succeeded & ~ended
