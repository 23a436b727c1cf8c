"""sFID: FID between one half of the queries and counterfactuals of the other (ACE, CVPR 2023).

A counterfactual is close to its own query, which flatters FID; no image meets its own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable, require_query
from counterlens.metrics.fid import frechet_distance
from counterlens.runtime.seeding import derive_seed


class Options(MetricOptions):
    """sFID with the features of the oracle `extractor`, over `splits` random halves.

    Only the oracle `inception` gives the column `sfid`; any other gives `sfid_oracle`.
    """

    paired: ClassVar[bool] = True

    errors: bool = True
    flipped: bool = True
    extractor: str = "inception"
    splits: int = Field(default=10, gt=0)

    def columns(self) -> tuple[Column, ...]:
        """`sfid` or `sfid_oracle`, one value per pair."""
        standard = self.extractor == "inception"
        return (
            Column(
                name="sfid" if standard else "sfid_oracle",
                label="sFID" if standard else "sFID-oracle",
                direction="down",
                per="pair",
                size_biased=True,
                decimals=2,
            ),
        )

    def oracles(self) -> tuple[str, ...]:
        """The feature extractor."""
        return (self.extractor,)


class SFid(Metric):
    """Mean over the splits of (FID(x_A, cf_B) + FID(x_B, cf_A)) / 2, flipped counterfactuals only.

    Splits are drawn from the sorted numbers of the queries, so that the order of the files
    changes nothing.
    """

    def per_pair(self, sets: Sequence[CounterfactualSet]) -> dict[str, float]:
        """The one column that the options declare.

        Raises:
            NotAvailable: the extractor's weights cannot be had, or too few images have flipped.
        """
        extractor = self.options.extractor
        self.context.extractor(extractor)
        name = self.options.columns()[0].name
        real = torch.cat([self.context.features(extractor, require_query(cf)) for cf in sets])
        made = torch.cat([self.context.features(extractor, cf.counterfactual) for cf in sets])
        counts = np.concatenate([self.context.counted(cf, self.options) for cf in sets])
        keys = [
            f"{cf.source} {cf.target} {image:09}"
            for cf in sets
            for image in (cf.table["image"] if "image" in cf.table else range(len(cf)))
        ]
        order = np.argsort(np.array(keys), kind="stable")
        random = np.random.default_rng(derive_seed(0, "sfid"))
        distances = []
        for _ in range(self.options.splits):
            halves = np.array_split(order[random.permutation(len(order))], 2)
            for one, other in (halves, halves[::-1]):
                explained = other[counts[other]]
                if len(one) < 2 or len(explained) < 2:
                    raise NotAvailable("fewer than two images of a half have flipped")
                distances.append(frechet_distance(real[one], made[explained]))
        return {name: float(np.mean(distances))}
