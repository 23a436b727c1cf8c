"""L1 and L2 norm of the change (ECED, WACV 2025, Eq. 13-14): sums over pixels, not means."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, quantise, require_query


class Options(MetricOptions):
    """Of 8-bit images in units of [0, 1]."""

    paired: ClassVar[bool] = True

    def columns(self) -> tuple[Column, ...]:
        """`l1_norm` and `l2_norm`, one value per image."""
        return (
            Column(name="l1_norm", label="L1", direction="down", decimals=2),
            Column(name="l2_norm", label="L2", direction="down", decimals=2),
        )


class Norms(Metric):
    """(Sum over channels and pixels of |x - x_cf|^p)^(1/p)."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`l1_norm` (N,) and `l2_norm` (N,)."""
        query, made = (
            quantise(images).double().flatten(1) / 255
            for images in (require_query(cf), cf.counterfactual)
        )
        return {f"l{order}_norm": (query - made).norm(p=order, dim=1).numpy() for order in (1, 2)}
