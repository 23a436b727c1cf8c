"""Diversity of several counterfactuals of one query (ECED, WACV 2025, supplement, Figure 4)."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable, quantise


class Options(MetricOptions):
    """Over the variants of a query that reach the target class as 8-bit images.

    `extractor` is the oracle whose perceptual distance is taken: LPIPS of `perceptual`, another
    network's under its own name.
    """

    paired: ClassVar[bool] = True

    extractor: str = "feature-extractor"

    def columns(self) -> tuple[Column, ...]:
        """Per set: mean distance and mask IoU of the pairs, share of images with two or more."""
        name = "diversity" if self.extractor == "perceptual" else "diversity_oracle"
        label = "LPIPS" if self.extractor == "perceptual" else "LPIPS-oracle"
        return (
            Column(name=name, label=f"pairwise {label}", direction="up", per="set"),
            Column(name=f"{name}_iou", label="mask IoU", direction="down", per="set"),
            Column(
                name=f"{name}_share",
                label="≥ 2 valid",
                direction="up",
                unit="%",
                scale=100.0,
                per="set",
                decimals=1,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The network."""
        return (self.extractor,)


class Diversity(Metric):
    """A method keeps `variants` (N, V, C, H, W) and `variant_masks` (N, V, 1, H, W)."""

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """The three columns.

        Raises:
            NotAvailable: the method keeps no variants, no image has two valid ones, or the
                network's weights cannot be had.
        """
        if not {"variants", "variant_masks"} <= {*cf.extras}:
            raise NotAvailable("the method gives one counterfactual per query")
        judge = self.context.oracle(self.options.extractor)
        if judge.unavailable is not None:
            raise NotAvailable(judge.unavailable)
        variants, masks = cf.extras["variants"], cf.extras["variant_masks"]
        shown = quantise(variants.flatten(0, 1)).float() / 255
        answers = self.context.probabilities(shown).argmax(dim=1)
        valid = (answers == cf.target).unflatten(0, variants.shape[:2])
        first, second = valid_pairs(valid)
        if not len(first):
            raise NotAvailable("no query has two variants that reach the target class")
        images, regions = variants.flatten(0, 1), masks.flatten(0, 1)
        distance = judge.perceptual_distance(images[first], images[second])
        name = self.options.columns()[0].name
        return {
            name: float(distance.mean()),
            f"{name}_iou": float(intersection_over_union(regions[first], regions[second]).mean()),
            f"{name}_share": float((valid.sum(dim=1) >= 2).float().mean()),
        }


def valid_pairs(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the flattened (N, V) of both variants of every pair of one image, both valid."""
    count, variants = valid.shape
    parts = [
        torch.stack([row * variants + a, row * variants + b], dim=1)
        for a, b in combinations(range(variants), 2)
        for row in [torch.arange(count)[valid[:, a] & valid[:, b]]]
    ]
    pairs = torch.cat(parts) if parts else torch.zeros(0, 2, dtype=torch.long)
    return pairs[:, 0], pairs[:, 1]


def intersection_over_union(one: Tensor, other: Tensor) -> Tensor:
    """Of masks (n, 1, H, W) of 0 and 1: (n,); 1 for two empty ones."""
    both = (one * other).flatten(1).sum(dim=1)
    either = torch.maximum(one, other).flatten(1).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
