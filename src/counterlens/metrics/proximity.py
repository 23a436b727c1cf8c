"""Proximity: mean absolute change per pixel (C3LT, CVPR 2022, §4.3 "Prox")."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, require_query


class Options(MetricOptions):
    """Mean absolute difference of query and counterfactual, in both units in use."""

    paired: ClassVar[bool] = True

    def columns(self) -> tuple[Column, ...]:
        """`proximity` on images in [0, 1]; `proximity_pm1` on images in [-1, 1], twice as large."""
        return (
            Column(name="proximity", label="Prox", direction="down", unit="[0, 1]"),
            Column(name="proximity_pm1", label="Prox", direction="down", unit="[-1, 1]"),
        )


class Proximity(Metric):
    """‖x - x_cf‖₁ / (C·H·W) with x the real image."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`proximity` (N,) in [0, 1] and `proximity_pm1` (N,) in [0, 2]."""
        change = (require_query(cf).double() - cf.counterfactual.double()).abs()
        mean = change.flatten(1).mean(1).numpy()
        return {"proximity": mean, "proximity_pm1": 2 * mean}
