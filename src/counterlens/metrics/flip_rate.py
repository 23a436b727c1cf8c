"""FR: how often the classifier's answer flips to the target (CECAS, section 5.1)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """Share of all queries, errors of the classifier included."""

    paired: ClassVar[bool] = False

    errors: bool = True

    def columns(self) -> tuple[Column, ...]:
        """`flip_rate`, 0 or 1 per image, printed in percent."""
        label = {"name": "flip_rate", "label": "FR", "unit": "%", "scale": 100.0, "decimals": 2}
        return (Column.model_validate({**label, "direction": "up"}),)


class FlipRate(Metric):
    """1[argmax f(x_cf) = target] on the 8-bit image, which is what a reader is shown."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`flip_rate`: (N,) of 0.0 and 1.0."""
        return {"flip_rate": self.context.flipped(cf).astype(np.float64)}
