"""MNAC: how many attributes change with the explanation (DiVE, ICCV 2021; ACE, CVPR 2023)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, quantise, require_query


class Options(MetricOptions):
    """Mean number of attributes changed, the asked one included, over what has flipped.

    The oracle is trained in-domain, so the column is `mnac_oracle`.
    """

    paired: ClassVar[bool] = True

    errors: bool = True
    flipped: bool = True
    attributes: str = "attributes"

    def columns(self) -> tuple[Column, ...]:
        """`mnac_oracle`, a count per image."""
        return (Column(name="mnac_oracle", label="MNAC-oracle", direction="down", decimals=2),)

    def oracles(self) -> tuple[str, ...]:
        """The attribute model."""
        return (self.attributes,)


class Mnac(Metric):
    """Sum over the attributes of 1[o(x) != o(x_cf)], o the oracle's answers on 8-bit images."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """`mnac_oracle`: (N,)."""
        oracle = self.context.oracle(self.options.attributes)
        before, after = (
            oracle.answers(quantise(images)) for images in (require_query(cf), cf.counterfactual)
        )
        return {"mnac_oracle": (before != after).sum(1).double().numpy()}
