"""Targeted projected gradient descent, the adversarial attack that the papers compare with.

Madry et al., ICLR 2018, in the L-infinity form and with the settings of C3LT (step 1/255, 1000
steps, epsilon 64/255 on MNIST and 72/255 on Fashion-MNIST).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.config import MethodOptions, Ratio
from counterlens.methods.base import BarePasses, Explanation, Method, Task


class Options(MethodOptions):
    """Hyper-parameters, in units of [0, 1] pixels.

    Attributes:
        epsilon: largest change of a pixel.
        step_size: change of a pixel per step.
        random_start: start from a uniform point of the epsilon box.
        feed_unnormalised: give the network [0, 1] images where it was trained on [-1, 1]. A
            mistake, but the reading that matches the paper's MNIST row.
    """

    label: ClassVar[str] = "PGD"

    epsilon: Ratio = Field(gt=0)
    step_size: Ratio = Field(default=1 / 255, gt=0)
    steps: int = Field(default=1000, gt=0)
    random_start: bool = True
    feed_unnormalised: bool = False


class PGD(Method):
    """The last iterate is the counterfactual: no early stop, no best-of."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Descend the cross-entropy to the target inside the epsilon box around each query."""
        options = self.options
        low = (x - options.epsilon).clamp(min=0)
        high = (x + options.epsilon).clamp(max=1)
        moved = x.clone(memory_format=torch.channels_last)
        if options.random_start and len(x):
            noise = torch.stack([torch.rand(x.shape[1:], generator=one) for one in randomness])
            moved += options.epsilon * (2 * noise.to(x.device) - 1)
            moved = torch.clamp(moved, low, high)
        moved.requires_grad_(True)
        for _ in range(options.steps):
            seen = (moved + 1) / 2 if options.feed_unnormalised else moved
            loss = functional.cross_entropy(self.task.classifier(seen), target, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            with torch.no_grad():
                moved.sub_(gradient.sign_(), alpha=options.step_size).clamp_(low, high)
        return Explanation(moved.detach(), torch.ones_like(target, dtype=torch.bool))

    def bare(self, x: Tensor, target: Tensor) -> BarePasses:
        """One gradient of the classifier for each step."""
        leaf = x.detach().clone().requires_grad_(True)

        def run() -> None:
            for _ in range(self.options.steps):
                torch.autograd.grad(self.task.classifier(leaf).sum(), leaf)

        words = f"{self.options.steps} x (forward and backward of the classifier)"
        return BarePasses(words, run)
