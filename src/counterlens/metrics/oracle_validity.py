"""Validity by an independent classifier: how often the oracle gives the target class.

It tells what the explained classifier takes for the class from what is one, as the rigged
classifier of C3LT (CVPR 2022, Figure 7) needs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """`classifier`: id of an oracle that answers, one of kind `feature-extractor`."""

    paired: ClassVar[bool] = False
    asks_classes: ClassVar[bool] = True

    classifier: str = "feature-extractor"

    def columns(self) -> tuple[Column, ...]:
        """`oracle_validity`, 0 or 1 per image."""
        return (Column(name="oracle_validity", label="Val-oracle", direction="up"),)

    def oracles(self) -> tuple[str, ...]:
        """The independent classifier."""
        return (self.classifier,)


class OracleValidity(Metric):
    """1[argmax o(x_cf) = target], on the float image."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`oracle_validity`: (N,) of 0.0 and 1.0."""
        oracle = self.context.oracle(self.options.classifier)
        predicted = oracle.probabilities(cf.counterfactual).argmax(1)
        return {"oracle_validity": (predicted == cf.target).double().numpy()}
