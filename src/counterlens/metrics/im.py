"""IM1 and IM2: is the counterfactual like its target class (Van Looveren and Klaise 2021, §4.2)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """IM1 and IM2 with the auto-encoders of the oracle `autoencoders`.

    The standard column names stand for the oracle of that id; any other oracle's id is part of its
    column names, so that two families can stand side by side.
    """

    paired: ClassVar[bool] = False
    asks_classes: ClassVar[bool] = True

    autoencoders: str = "autoencoders"
    epsilon: float = Field(default=1e-12, gt=0)

    def suffix(self) -> str:
        """What the column names end with."""
        return "" if self.autoencoders == "autoencoders" else f"_{self.autoencoders}"

    def columns(self) -> tuple[Column, ...]:
        """`im1` and `im2`, printed as IM2x10."""
        mark = "" if self.autoencoders == "autoencoders" else f" ({self.autoencoders})"
        return (
            Column(name=f"im1{self.suffix()}", label=f"IM1{mark}", direction="down", decimals=2),
            Column(
                name=f"im2{self.suffix()}",
                label=f"IM2×10{mark}",  # noqa: RUF001
                direction="down",
                scale=10,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The auto-encoders."""
        return (self.autoencoders,)


class InterpretabilityMetrics(Metric):
    """Reconstruction errors of auto-encoders trained on the target, the source and all classes.

    IM1 = ‖x - AE_target(x)‖² / (‖x - AE_source(x)‖² + ε),
    IM2 = ‖AE_target(x) - AE(x)‖² / (‖x‖₁ + ε), with x the counterfactual in [-1, 1]. IM2 depends on
    that range. The target is the wanted class, so that an invalid counterfactual is punished.
    """

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`im1` and `im2`, (N,) each."""
        oracle = self.context.oracle(self.options.autoencoders)
        epsilon = self.options.epsilon
        images = cf.counterfactual
        signed = (2 * images - 1).double().flatten(1)
        of_target, of_source, of_all = (
            oracle.reconstruct(images, label).double().flatten(1)
            for label in (cf.target, cf.source, None)
        )
        error_target = (signed - of_target).square().sum(1)
        error_source = (signed - of_source).square().sum(1)
        disagreement = (of_target - of_all).square().sum(1)
        suffix = self.options.suffix()
        return {
            f"im1{suffix}": (error_target / (error_source + epsilon)).numpy(),
            f"im2{suffix}": (disagreement / (signed.abs().sum(1) + epsilon)).numpy(),
        }
