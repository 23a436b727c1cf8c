"""Validity: how often the classifier gives the target class (C3LT, CVPR 2022, §4.3 "Val")."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """Share of counterfactuals that the classifier gives the target class."""

    paired: ClassVar[bool] = False

    def columns(self) -> tuple[Column, ...]:
        """`validity`, 0 or 1 per image."""
        return (Column(name="validity", label="Val", direction="up"),)


class Validity(Metric):
    """1[argmax f(x_cf) = target], on the float image without quantisation."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`validity`: (N,) of 0.0 and 1.0."""
        predicted = self.context.probabilities(cf.counterfactual).argmax(1)
        return {"validity": (predicted == cf.target).double().numpy()}
