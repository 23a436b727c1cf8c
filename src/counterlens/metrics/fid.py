"""FID: Fréchet distance between counterfactuals and real images (Heusel et al. 2017, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable, require_query


class Options(MetricOptions):
    """FID with the features of the oracle `extractor`.

    Only the oracle `inception` gives the column `fid`; any other gives `fid_oracle`. `against`:
    each direction's counterfactuals and the training images of its target class, or the
    counterfactuals of all directions of a pair and all their queries, as ACE does.
    """

    paired: ClassVar[bool] = False

    extractor: str = "inception"
    against: Literal["training", "queries"] = "training"

    def columns(self) -> tuple[Column, ...]:
        """`fid` or `fid_oracle`, one value per direction or pair."""
        standard = self.extractor == "inception"
        return (
            Column(
                name="fid" if standard else "fid_oracle",
                label="FID" if standard else "FID-oracle",
                direction="down",
                per="set" if self.against == "training" else "pair",
                size_biased=True,
                decimals=2,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The feature extractor."""
        return (self.extractor,)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between features (N, d) and (M, d), each of at least two images."""
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


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
        if self.options.against != "training":
            return {}
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
        return {self.options.columns()[0].name: frechet_distance(made, real)}

    def per_pair(self, sets: Sequence[CounterfactualSet]) -> dict[str, float]:
        """The one column that the options declare.

        Raises:
            NotAvailable: the extractor's weights cannot be had, or too few images count.
        """
        extractor = self.options.extractor
        self.context.extractor(extractor)
        if not all(cf.paired for cf in sets):
            raise NotAvailable("compares with the queries, and these images have none")
        real = torch.cat([self.context.features(extractor, require_query(cf)) for cf in sets])
        chosen = [cf.counterfactual[self.context.counted(cf, self.options)] for cf in sets]
        made = torch.cat([self.context.features(extractor, part) for part in chosen if len(part)])
        if len(made) < 2:
            raise NotAvailable("fewer than two counterfactuals count")
        return {self.options.columns()[0].name: frechet_distance(made, real)}
