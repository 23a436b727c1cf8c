"""COUT and its two areas under the probability curve (C3LT, CVPR 2022, §4.2).

Pixels of the counterfactual are copied into the query, the most changed first; the curves are the
classifier's probabilities of the source and target class along the way.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, require_query


class Options(MetricOptions):
    """COUT with `steps` requested steps.

    `scale`: "paper" weighs every step by 1/T; "code" by (pixels per step)/(pixels), as the authors'
    release does, so that a curve of ones integrates to 1.014 on 28x28 images. A curve over a
    method's edits has 1/T in both.
    """

    paired: ClassVar[bool] = True

    steps: int = Field(default=50, gt=0)
    scale: Literal["paper", "code"] = "paper"

    def columns(self) -> tuple[Column, ...]:
        """`aupc_source`, `aupc_target` and their difference `cout`."""
        return (
            Column(name="aupc_target", label="AUPC target", direction="up"),
            Column(name="aupc_source", label="AUPC source", direction="down"),
            Column(name="cout", label="COUT", direction="up"),
        )


def insertion_steps(mask: Tensor, steps: int) -> tuple[Tensor, int, int]:
    """The step at which each pixel is inserted.

    The order is descending in `mask`; equal pixels go in raster order. Only the order matters, so
    the mask needs no normalisation (the authors divide by its range, 0/0 for an unchanged image).

    Args:
        mask: (N, P) importance of each pixel.
        steps: requested number of steps.

    Returns:
        (N, P) int64 step of each pixel, 1…T; the number of steps T; the pixels per step s.
        s = max(1, floor(P / steps)) and T = ceil(P / s); the last step may have fewer pixels.
    """
    pixels = mask.shape[1]
    per_step = max(1, pixels // steps)
    order = mask.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels).expand_as(order))
    return rank // per_step + 1, -(-pixels // per_step), per_step


def area(curve: Tensor, weight: float) -> Tensor:
    """Trapezoid sum of (N, T+1) with the same weight for every step: (N,)."""
    return weight * (curve.sum(1) - (curve[:, 0] + curve[:, -1]) / 2)


def mean_over_edits(curve: Tensor, edits: Tensor) -> Tensor:
    """Trapezoid mean of each curve over its own number of edits; without any, its first value.

    Args:
        curve: (N, T+1); after its last edit a curve stays as it is.
        edits: (N,), at most T.
    """
    rest = (curve.shape[1] - 1 - edits) * curve[:, -1]
    return torch.where(edits > 0, (area(curve, 1.0) - rest) / edits.clamp(min=1), curve[:, 0])


class Cout(Metric):
    """COUT = AUPC of the target class - AUPC of the source class."""

    def insertion(self, cf: CounterfactualSet) -> tuple[Tensor, int]:
        """The step at which each pixel of x_cf is inserted, int64 (N, P), and the number of steps.

        A method that edits step by step gives `extras["edit_order"]` (N, 1, H, W), the number of
        the edit that changed each pixel, 0 for none, and `extras["edits"]` (N,), how many it made:
        the steps are these. Otherwise the order is that of the method's own mask
        (`extras["mask"]`) or of |x_cf - x|; colour channels are averaged.

        Raises:
            ValueError: the mask has NaN, no edit changed a pixel that differs, or a pixel's edit
                is beyond the number of edits.
        """
        query, counterfactual = require_query(cf), cf.counterfactual
        where = f"{cf.method} {cf.source}_to_{cf.target}"
        if "edit_order" in cf.extras:
            order = cf.extras["edit_order"].long().flatten(1)
            if ((query != counterfactual).any(1).flatten(1) & (order == 0)).any():
                raise ValueError(f"{where}: pixels differ that are in none of the edits")
            if (order.amax(dim=1) > cf.extras["edits"]).any():
                raise ValueError(f"{where}: a pixel's edit is beyond the number of edits")
            return order, int(cf.extras["edits"].max()) if len(order) else 0
        mask = cf.extras.get("mask")
        mask = (counterfactual - query).abs() if mask is None else mask.float()
        if mask.isnan().any():
            raise ValueError(f"{where}: the mask has NaN")
        inserted, steps, _ = insertion_steps(mask.mean(1).flatten(1), self.options.steps)
        return inserted, steps

    def curves(self, cf: CounterfactualSet) -> Tensor:
        """Probabilities of source and target along the insertion, (N, T+1, 2) float64.

        Step 0 is x, step T is x_cf, bit for bit. An image that equals the one before it (nothing
        changes at the inserted pixels) is not asked again.
        """
        query, counterfactual = require_query(cf), cf.counterfactual
        images, _, height, width = query.shape
        pixels = height * width
        inserted, steps = self.insertion(cf)
        changed = (query != counterfactual).any(1).reshape(images, pixels)
        new = torch.zeros(images, steps + 1, dtype=torch.bool)
        new[:, 0] = True
        rows = torch.arange(images).unsqueeze(1).expand(images, pixels)
        new[rows[changed], inserted[changed]] = True

        asked_image, asked_step = new.nonzero(as_tuple=True)
        answers = torch.empty(len(asked_image), 2, dtype=torch.float64)
        batch = self.context.batch_size
        for start in range(0, len(asked_image), batch):
            chosen = asked_image[start : start + batch]
            now = asked_step[start : start + batch]
            taken = inserted[chosen] <= now.unsqueeze(1)
            mixed = torch.where(
                taken.reshape(-1, 1, height, width), counterfactual[chosen], query[chosen]
            )
            answer = self.context.probabilities(mixed)
            answers[start : start + batch] = answer[:, [cf.source, cf.target]].double()
        # position of the latest asked step at or before each step
        latest = (new.flatten().cumsum(0) - 1).reshape(images, steps + 1)
        return answers[latest]

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`aupc_source`, `aupc_target`, `cout` (N,); `curve_source`, `curve_target` (N, T+1)."""
        source, target = self.curves(cf).unbind(2)
        if "edit_order" in cf.extras:
            edits = cf.extras["edits"]
            aupc_source, aupc_target = (mean_over_edits(curve, edits) for curve in (source, target))
        else:
            pixels = cf.counterfactual.shape[-2] * cf.counterfactual.shape[-1]
            per_step = max(1, pixels // self.options.steps)
            paper = self.options.scale == "paper"
            weight = 1 / (source.shape[1] - 1) if paper else per_step / pixels
            aupc_source, aupc_target = area(source, weight), area(target, weight)
        return {
            "aupc_target": aupc_target.numpy(),
            "aupc_source": aupc_source.numpy(),
            "cout": (aupc_target - aupc_source).numpy(),
            "curve_source": source.numpy(),
            "curve_target": target.numpy(),
        }
