"""What a trained model is measured by: values and the gates that they must pass."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Quality:
    """What the card says of a trained generator: measured values and the gates they must pass."""

    values: dict[str, float]
    at_least: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)

    def gates(self) -> dict[str, dict[str, float | bool | str]]:
        """Each gate with its value, threshold and whether it passed."""
        found: dict[str, dict[str, float | bool | str]] = {}
        for name, threshold in self.at_least.items():
            value = self.values[name]
            found[name] = {
                "value": value,
                "threshold": threshold,
                "bound": "at least",
                "passed": value >= threshold,
            }
        for name, threshold in self.at_most.items():
            value = self.values[name]
            found[name] = {
                "value": value,
                "threshold": threshold,
                "bound": "at most",
                "passed": value <= threshold,
            }
        return found
