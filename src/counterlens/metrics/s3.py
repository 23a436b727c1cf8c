"""S3: similarity of query and counterfactual for a self-supervised encoder (ACE, CVPR 2023)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch.nn import functional

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, require_query


class Options(MetricOptions):
    """S3 with the SimSiam encoder `extractor`.

    Only the oracle `simsiam-resnet50` gives the column `s3`; any other gives `s3_oracle`.
    """

    paired: ClassVar[bool] = True

    extractor: str = "simsiam-resnet50"

    def columns(self) -> tuple[Column, ...]:
        """`s3` or `s3_oracle`, one value per image, in [-1, 1]."""
        if self.extractor == "simsiam-resnet50":
            return (Column(name="s3", label="S³", direction="up", decimals=4),)
        return (Column(name="s3_oracle", label="S³-oracle", direction="up", decimals=4),)

    def oracles(self) -> tuple[str, ...]:
        """The encoder."""
        return (self.extractor,)


class S3(Metric):
    """Cosine of the encoder's outputs, projector included, on 8-bit images."""

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """The one column that the options declare, (N,).

        Raises:
            NotAvailable: the encoder's weights cannot be had.
            UserError: another network has the standard name, or the reverse.
        """
        extractor = self.options.extractor
        self.context.extractor(extractor, standard="simsiam-resnet50")
        query = self.context.features(extractor, require_query(cf))
        made = self.context.features(extractor, cf.counterfactual)
        similarity = functional.cosine_similarity(query.double(), made.double(), dim=1)
        return {self.options.columns()[0].name: similarity.numpy()}
