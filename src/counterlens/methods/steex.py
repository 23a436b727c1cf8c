"""STEEX: steering counterfactual explanations with semantics (Jacob et al., ECCV 2022).

The map of an image's regions stays as it is; the style codes of the regions are moved until the
image that is drawn from map and codes is of the target class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.config import GeneratorOptions, MethodOptions
from counterlens.generators.parts.region_options import RegionGeneratorOptions
from counterlens.generators.parts.regions import RegionGenerator
from counterlens.methods.base import Explanation, Method, Task

PAPER_CODE_DIM = 512


class Options(MethodOptions):
    """Hyper-parameters; the defaults are the release's.

    Attributes:
        generator: id of the experiment's SEAN.
        distance: weight of the squared distance of codes of 512 numbers; multiplied by 512 / d
            for those of d numbers, so that it counts as much.
        regions: the regions whose codes may be moved, by number from 0; None is all.
    """

    label: ClassVar[str] = "STEEX (lite)"

    generator: str = "sean"
    steps: int = Field(default=100, gt=0)
    lr: float = Field(default=0.01, gt=0)
    distance: float = Field(default=0.3, ge=0)
    regions: tuple[int, ...] | None = Field(default=None, min_length=1)

    def generators(self) -> tuple[str, ...]:
        """The SEAN."""
        return (self.generator,)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Regions and their codes are SEAN's, and only so many."""
        chosen = generators[self.generator]
        if not isinstance(chosen, RegionGeneratorOptions):
            return f"'{self.generator}' has no regions; name a generator of kind sean"
        count = chosen.region_count()
        wrong = [number for number in self.regions or () if not 0 <= number < count]
        if wrong:
            return f"regions: {wrong[0]}, but '{self.generator}' has 0..{count - 1}"
        return None


class STEEX(Method):
    """Extras: `regions` (N, 1, H, W), the number of each pixel's region; `code_change` (N, R), how
    far each region's code has moved."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        sean = task.generators[options.generator]
        assert isinstance(sean, RegionGenerator)
        self.sean = sean
        self.free = torch.ones(sean.regions, 1, device=task.device)
        if options.regions is not None:
            self.free.zero_()[list(options.regions)] = 1

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator] = (),
    ) -> Explanation:
        """Adam on the codes for all steps: no early stop."""
        with torch.no_grad():
            layout = self.sean.layout(x)
            before = self.sean.codes(x, layout)
        codes = before.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([codes], self.options.lr)
        for _ in range(self.options.steps if len(x) else 0):
            loss = self.losses(layout, codes, before, target).sum()
            (gradient,) = torch.autograd.grad(loss, codes)
            codes.grad = gradient * self.free
            optimizer.step()
        with torch.inference_mode():
            counterfactual = self.sean.synthesise(layout, codes).clamp(0, 1)
            flipped = self.task.classifier(counterfactual).argmax(dim=1) == target
            regions = layout.argmax(dim=1, keepdim=True).float()
            change = (codes - before).norm(dim=2)
        return Explanation(counterfactual, flipped, {"regions": regions, "code_change": change})

    def losses(self, layout: Tensor, codes: Tensor, before: Tensor, target: Tensor) -> Tensor:
        """Of each image (N,): cross-entropy and squared distance of the codes (N, R, d)."""
        logits = self.task.classifier(self.sean.synthesise(layout, codes))
        weight = self.options.distance * PAPER_CODE_DIM / self.sean.code_dim
        distance = (codes - before).square().sum(dim=(1, 2))
        return functional.cross_entropy(logits, target, reduction="none") + weight * distance
