"""FID: Fréchet distance between counterfactuals and real images (Heusel et al. 2017, Eq. 6)."""

from __future__ import annotations

from typing import ClassVar

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, Metric


class Options(MetricOptions):
    """FID with the features of the oracle `extractor`.

    Only the oracle `inception` gives the column `fid`; any other gives `fid_oracle`.
    """

    paired: ClassVar[bool] = False

    extractor: str = "inception"

    def columns(self) -> tuple[Column, ...]:
        """`fid` or `fid_oracle`, one value per direction."""
        standard = self.extractor == "inception"
        return (
            Column(
                name="fid" if standard else "fid_oracle",
                label="FID" if standard else "FID-oracle",
                direction="down",
                per="set",
                decimals=2,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The feature extractor."""
        return (self.extractor,)


class Fid(Metric):
    """‖μ₁-μ₂‖² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½) of the features, by torch-fidelity.

    Set 1 is the counterfactuals of the direction, set 2 the training images of the target class,
    both as uint8. With fewer images than features the covariance is singular and the value biased
    upwards: compare only equal numbers of images.
    """

    def per_set(self, cf: CounterfactualSet) -> dict[str, float]:
        """The one column that the options declare.

        Raises:
            NotAvailable: the extractor's weights cannot be had.
            UserError: fewer than two images on one side.
        """
        from torch_fidelity.metric_fid import (
            KEY_METRIC_FID,
            fid_features_to_statistics,
            fid_statistics_to_metric,
        )

        extractor = self.options.extractor
        self.context.extractor(extractor)
        if len(cf) < 2:
            raise UserError(
                f"FID of {cf.experiment} {cf.method} {cf.source}_to_{cf.target}: needs at least 2 "
                f"images, there are {len(cf)}; raise `evaluation.images` or remove the metric"
            )
        real = self.context.reference_features(extractor, cf.target)
        if len(real) < 2:
            raise UserError(
                f"FID of {cf.experiment} {cf.method} {cf.source}_to_{cf.target}: needs at least 2 "
                f"training images of class {cf.target}, there are {len(real)}; remove the metric"
            )
        made = self.context.features(extractor, cf.counterfactual)
        result = fid_statistics_to_metric(
            fid_features_to_statistics(made), fid_features_to_statistics(real), verbose=False
        )
        return {self.options.columns()[0].name: result[KEY_METRIC_FID]}
