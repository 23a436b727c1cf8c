"""What a trained model is measured by: values and the gates that they must pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

ROUNDING = 1e-6


@dataclass(frozen=True)
class Quality:
    """What the card says of a trained model: measured values and the gates they must pass.

    Shares are often means in float32, where 95 of 100 is a little less than 0.95: a value that is
    the threshold but for such rounding passes.
    """

    values: dict[str, float]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)

    def gates(self) -> dict[str, dict[str, float | bool | str]]:
        """Each gate with its value, threshold and whether it passed."""
        gates: dict[str, dict[str, float | bool | str]] = {}
        for name, threshold in self.at_least.items():
            value = self.values[name]
            gates[name] = {
                "value": value,
                "threshold": threshold,
                "bound": "at least",
                "passed": value >= threshold or math.isclose(value, threshold, rel_tol=ROUNDING),
            }
        for name, threshold in self.at_most.items():
            value = self.values[name]
            gates[name] = {
                "value": value,
                "threshold": threshold,
                "bound": "at most",
                "passed": value <= threshold or math.isclose(value, threshold, rel_tol=ROUNDING),
            }
        return gates
