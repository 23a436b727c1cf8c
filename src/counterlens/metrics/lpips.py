"""LPIPS: perceptual distance of query and counterfactual (Zhang et al., CVPR 2018, Eq. 1)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable, require_query


class Options(MetricOptions):
    """LPIPS with the network of the oracle `extractor`.

    Only the oracle `perceptual` gives the column `lpips`; any other gives `lpips_oracle`.
    """

    paired: ClassVar[bool] = True

    extractor: str = "perceptual"

    def columns(self) -> tuple[Column, ...]:
        """`lpips` or `lpips_oracle`, one value per image."""
        if self.extractor == "perceptual":
            return (Column(name="lpips", label="LPIPS", direction="down"),)
        return (Column(name="lpips_oracle", label="LPIPS-oracle", direction="down"),)

    def oracles(self) -> tuple[str, ...]:
        """The network."""
        return (self.extractor,)


class Lpips(Metric):
    """The oracle's distance of each pair."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """The one column that the options declare, (N,).

        Raises:
            NotAvailable: the network's weights cannot be had.
            UserError: another network has the standard name, or the reverse.
        """
        name = self.options.extractor
        judge = self.context.oracle(name)
        if judge.standard != (name == "perceptual"):
            raise UserError(
                f"oracle {name}: only an oracle of kind 'perceptual' may have the id "
                "'perceptual', and it must, so that LPIPS keeps its meaning"
            )
        if judge.unavailable is not None:
            raise NotAvailable(judge.unavailable)
        distance = judge.perceptual_distance(require_query(cf), cf.counterfactual)
        return {self.options.columns()[0].name: distance.numpy()}
