"""DiME: diffusion models for counterfactual explanations (Jeanneret et al., ACCV 2022).

Guided sampling from a noised query. At every level an unguided run down to a clean image tells the
classifier's gradient there, which moves the next level's mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.config import GeneratorOptions
from counterlens.generators.parts.diffusion import diffuse, draw
from counterlens.methods.base import Explanation, Method, Task
from counterlens.methods.parts.filtered_attack import children, diffusion_of
from counterlens.methods.parts.filtered_attack_options import FilterOptions


class Options(FilterOptions):
    """Guidance at each of the `steps` lowest levels of the schedule; settings of CelebA.

    Attributes:
        guidance: weights of the classifier's loss, tried in this order on what has not flipped yet.
        perceptual: weight of the squared difference of feature maps.
        l1: weight of the distance to the query.
        use_logits: the loss is minus the target's logit; otherwise the cross-entropy.
    """

    label: ClassVar[str] = "DiME"
    requires_maps: ClassVar[bool] = True

    schedule: int = Field(default=200, ge=2)
    steps: int = Field(default=60, gt=0)
    guidance: tuple[float, ...] = Field(default=(8.0, 10.0, 15.0), min_length=1)
    perceptual: float = Field(default=30.0, ge=0)
    l1: float = Field(default=0.05, ge=0)
    use_logits: bool = True

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The query is noised to the level above the highest that is denoised."""
        if self.steps >= self.schedule:
            return f"steps {self.steps} must be less than schedule {self.schedule}"
        return super().conflict(generators)


class DiME(Method):
    """Images in [-1, 1] inside.

    The perceptual distance compares the maps of the explained classifier's stages but the last:
    VGG-19, which the paper takes, is not at hand for every kind of image.
    """

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.network = diffusion_of(options, task)
        # one more level than is denoised: the noising is one level above (the release's way)
        *self.levels, self.start = self.network.levels(options.schedule, options.steps + 1)

    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Every image is tried with one guidance after the other, each time from the same noise.

        An image whose answer is the target leaves the batch; the last try of the others is kept.
        """
        of_start, *of_tries = children(randomness, 1 + len(self.options.guidance))
        noised = diffuse(2 * x - 1, self.start, draw(of_start, x.shape[1:], x))
        counterfactual = x.clone(memory_format=torch.preserve_format)
        flipped = torch.zeros_like(target, dtype=torch.bool)
        for weight, random in zip(self.options.guidance, of_tries, strict=True):
            left = (~flipped).nonzero().flatten()
            if not len(left):
                break
            chosen = [random[row] for row in left.tolist()]
            tried = self.guided(x[left], target[left], noised[left], weight, chosen)
            counterfactual[left] = tried
            with torch.inference_mode():
                flipped[left] = self.task.classifier(tried).argmax(dim=1) == target[left]
        return Explanation(counterfactual, flipped)

    def guided(
        self,
        x: Tensor,
        target: Tensor,
        noised: Tensor,
        weight: float,
        randomness: Sequence[torch.Generator],
    ) -> Tensor:
        """One guided run from noised queries (n, C, H, W) in [-1, 1], to [0, 1]."""
        query, v = 2 * x - 1, noised
        clean = query
        with torch.no_grad():
            wanted = self.task.classifier.maps(x)[:-1]
        for place in reversed(range(len(self.levels))):
            level = self.levels[place]
            with torch.no_grad():
                mean, deviation = self.network.statistics(v, level)
            gradient = self.gradient(clean, target, wanted, weight) / math.sqrt(level.kept)
            gradient = gradient + self.options.l1 * (v - query).sign()
            v = mean - deviation.square() * gradient
            if place:
                v = v + deviation * draw(randomness, v.shape[1:], v)
                clean = self.network.sample(v, self.levels[:place], randomness).clone()
        return ((v + 1) / 2).clamp(0, 1)

    def gradient(
        self, clean: Tensor, target: Tensor, wanted: Sequence[Tensor], weight: float
    ) -> Tensor:
        """Of the classifier's and the perceptual loss at clean images in [-1, 1]."""
        clean = clean.detach().requires_grad_(True)
        maps = self.task.classifier.maps((clean + 1) / 2)
        logits = self.task.classifier.classify(maps[-1])
        if self.options.use_logits:
            loss = -weight * logits.gather(1, target[:, None]).sum()
        else:
            loss = weight * functional.cross_entropy(logits, target, reduction="sum")
        for actual, other in zip(maps[:-1], wanted, strict=True):
            distance = (actual - other).square().flatten(1).mean(dim=1).sum()
            loss = loss + self.options.perceptual / len(wanted) * distance
        return torch.autograd.grad(loss, clean)[0]
