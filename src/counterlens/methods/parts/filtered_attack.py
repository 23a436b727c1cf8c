"""What ACE and CECAS share: the attack through the diffusion filter, the edit mask, the refinement.

ACE: Jeanneret et al., Adversarial Counterfactual Visual Explanations, CVPR 2023, sections 3.1-3.2.
CECAS: Qiao et al., Counterfactual Visual Explanation via Causally-Guided Adversarial Steering,
2025, Eq. 3-9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from counterlens.errors import UserError
from counterlens.generators.parts.diffusion import Diffusion, DiffusionFilter
from counterlens.methods.base import BarePasses, Task
from counterlens.methods.parts.filtered_attack_options import FilteredAttackOptions, FilterOptions
from counterlens.runtime.seeding import generator

Penalty = Callable[[Tensor, Tensor], Tensor]
"""Embeddings (n, d) of filtered images and the rows (n,) they are of, to a loss (n,)."""


@dataclass(frozen=True)
class Attacked:
    """The end of an attack on N images.

    Attributes:
        images: float32 (N, C, H, W) in [0, 1].
        target_probability: (N, iterations), the classifier's on the filtered image.
        penalty: (N, iterations), zeros where there is none.
    """

    images: Tensor
    target_probability: Tensor
    penalty: Tensor


def diffusion_of(options: FilterOptions, task: Task) -> Diffusion:
    """The diffusion model that the options name.

    Raises:
        UserError: it is none.
    """
    model = task.generators[options.ddpm]
    if not isinstance(model, Diffusion):
        raise UserError(f"generator '{options.ddpm}' is no diffusion model")
    return model


def children(randomness: Sequence[torch.Generator], count: int) -> list[list[torch.Generator]]:
    """`count` independent generators from each image's own, so that a stage can be left out."""
    seeds = [torch.randint(2**62, (count,), generator=one).tolist() for one in randomness]
    return [[generator(row[stage]) for row in seeds] for stage in range(count)]


class FilteredAttack:
    """Sign gradient descent on loss(f(F(x)), target), through classifier f and filter F."""

    def __init__(self, options: FilteredAttackOptions, task: Task) -> None:
        self.options = options
        self.classifier = task.classifier
        self.filter = DiffusionFilter(
            diffusion_of(options, task),
            options.schedule,
            options.steps,
            recompute=options.gradient == "checkpoint",
        )

    def run(
        self,
        x: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
        l1: float = 0.0,
        l2: float = 0.0,
        penalty: Penalty | None = None,
        penalty_weight: float = 0.0,
    ) -> Attacked:
        """Attack images (N, C, H, W) in [0, 1]; the last iterate is the answer.

        The losses are summed over the images, so that one image's gradient depends on no other.

        Args:
            x: queries.
            target: int64 (N,).
            randomness: one generator per image.
            l1: weight of the L1 distance to the query.
            l2: weight of the Euclidean distance to the query.
            penalty: a further loss on the embedding of the filtered image.
            penalty_weight: its weight.
        """
        options = self.options
        low = (x - options.epsilon).clamp(min=0)
        high = (x + options.epsilon).clamp(max=1)
        moved = x.clone(memory_format=torch.preserve_format)
        record = x.new_zeros(2, len(x), options.iterations)
        active = torch.arange(len(x), device=x.device)
        for iteration in range(options.iterations):
            if not len(active):
                break
            noise = self._noise([randomness[row] for row in active.tolist()], x)
            now = moved[active].requires_grad_(True)
            gradient, probability, extra = self._gradient(
                now, target[active], noise, active, penalty, penalty_weight
            )
            change = now.detach() - x[active]
            if l1:
                gradient = gradient + l1 * change.sign()
            if l2:
                length = change.flatten(1).norm(dim=1)[:, None, None, None]
                gradient = gradient + l2 * change / length.clamp(min=1e-12)
            step = now.detach() - options.step_size * gradient.sign()
            moved[active] = step.clamp(low[active], high[active])
            record[0, active, iteration], record[1, active, iteration] = probability, extra
            if options.stop_at is not None:
                done = probability >= options.stop_at
                record[0, active[done], iteration:] = probability[done][:, None]
                record[1, active[done], iteration:] = extra[done][:, None]
                active = active[~done]
        return Attacked(moved, record[0], record[1])

    def _noise(self, randomness: Sequence[torch.Generator], x: Tensor) -> Tensor:
        if self.options.stochastic:
            return self.filter.noise(randomness, x)
        return x.new_zeros(len(randomness), len(self.filter.levels), *x.shape[1:])

    def _gradient(
        self,
        now: Tensor,
        target: Tensor,
        noise: Tensor,
        rows: Tensor,
        penalty: Penalty | None,
        weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient (n, C, H, W); target probability and penalty (n,) at the filtered images."""
        shortcut = self.options.gradient == "shortcut"
        if shortcut:
            with torch.no_grad():
                filtered = self.filter(now, noise)
            filtered.requires_grad_(True)
        else:
            filtered = self.filter(now, noise)
        features = self.classifier.embedding(filtered)
        logits = self.classifier.head(features)
        loss = functional.cross_entropy(logits, target, reduction="sum")
        extra = logits.new_zeros(len(now))
        if penalty is not None:
            extra = penalty(features, rows)
            loss = loss + weight * extra.sum()
        (gradient,) = torch.autograd.grad(loss, filtered if shortcut else now)
        if shortcut:
            gradient = gradient / math.sqrt(self.filter.top.kept)
        probability = logits.detach().softmax(1).gather(1, target[:, None])[:, 0]
        return gradient, probability, extra.detach()

    def refine(
        self,
        edited: Tensor,
        original: Tensor,
        edit: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Tensor:
        """Regenerate an explanation inside its edit mask (N, 1, H, W), the query elsewhere."""
        return self.filter.inpaint(edited, original, 1 - edit, randomness, self.options.resamplings)

    def bare(self, x: Tensor, attacks: int) -> BarePasses:
        """The denoising steps of so many attacks and of one refinement of images (N, C, H, W)."""
        network, levels = self.filter.network, self.filter.levels
        leaf = x.detach().clone().requires_grad_(True)

        def predict(v: Tensor, step: int) -> Tensor:
            return network.predict(v, step)[0]

        def run() -> None:
            for _ in range(attacks * self.options.iterations):
                v = leaf
                for level in reversed(levels):
                    if self.filter.recompute:
                        v = checkpoint(predict, v, level.step, use_reentrant=False)
                    else:
                        v = predict(v, level.step)
                torch.autograd.grad(self.classifier(v).sum(), leaf)
            with torch.inference_mode():
                for level in reversed(levels):
                    predict(x, level.step)

        gradients = attacks * self.options.iterations
        return BarePasses(f"{gradients} x {len(levels)} denoising steps, with gradient", run)


def edit_mask(x: Tensor, changed: Tensor, threshold: float, dilation: int) -> Tensor:
    """Where an image may be edited (CECAS Eq. 8): (N, 1, H, W) of 0 and 1.

    A pixel is in the mask if the summed change of all channels, relative to the image's largest,
    is above the threshold somewhere in the square of `dilation` pixels around it. An image that
    is not changed has an empty mask.

    Args:
        x, changed: (N, C, H, W) in [0, 1].
    """
    change = (changed - x).abs().sum(dim=1, keepdim=True)
    largest = change.amax(dim=(1, 2, 3), keepdim=True)
    relative = torch.where(largest > 0, change / largest.clamp(min=1e-12), 0)
    grown = functional.max_pool2d(relative, dilation, stride=1, padding=dilation // 2)
    return (grown > threshold).float()
