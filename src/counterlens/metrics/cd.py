"""CD: whether attributes change together as they occur together (DiME, ACCV 2022, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from counterlens.config import Column, MetricOptions
from counterlens.errors import UserError
from counterlens.metrics.base import (
    CounterfactualSet,
    Metric,
    NotAvailable,
    quantise,
    require_query,
)


class Options(MetricOptions):
    """CD over what has flipped in all directions of a pair.

    The oracle is trained in-domain, so the column is `cd_oracle`.
    """

    paired: ClassVar[bool] = True

    errors: bool = True
    flipped: bool = True
    attributes: str = "attributes"

    def columns(self) -> tuple[Column, ...]:
        """`cd_oracle`, one value per pair."""
        return (
            Column(name="cd_oracle", label="CD-oracle", direction="down", per="pair", decimals=2),
        )

    def oracles(self) -> tuple[str, ...]:
        """The attribute model."""
        return (self.attributes,)


def correlation(values: Tensor, other: Tensor) -> Tensor:
    """Pearson correlation of each column of (N, A) with (N,), float64; 0 where one is constant."""
    centred = values.double() - values.double().mean(dim=0)
    beside = other.double() - other.double().mean()
    spread = centred.norm(dim=0) * beside.norm()
    return torch.where(spread > 1e-12, centred.T @ beside / spread.clamp(min=1e-12), 0)


def correlation_difference(change: Tensor, asked: int, expected: Tensor) -> float:
    """Sum over attributes a of |corr(change of a, change of the asked one) - corr in the data|.

    Args:
        change: (N, A) of -1, 0 and 1, what the oracle's answers do.
        asked: index of the attribute that should change.
        expected: (A,), correlations with the asked one over the training labels.
    """
    return float((correlation(change, change[:, asked]) - expected).abs().sum())


class Cd(Metric):
    """Changes of the oracle's answers, on 8-bit images."""

    def per_pair(self, sets: Sequence[CounterfactualSet]) -> dict[str, float]:
        """`cd_oracle`.

        Raises:
            NotAvailable: nothing has flipped.
            UserError: the classes do not differ in one of the dataset's attributes.
        """
        asked = self.context.attribute
        if asked is None:
            raise UserError("metric cd: needs a classifier of one of the dataset's attributes")
        oracle = self.context.oracle(self.options.attributes)
        changes = []
        for cf in sets:
            seen = cf.select(self.context.counted(cf, self.options))
            if len(seen):
                before = oracle.answers(quantise(require_query(seen)))
                changes.append(oracle.answers(quantise(seen.counterfactual)).int() - before.int())
        if not changes:
            raise NotAvailable("no counterfactual reaches its target class")
        expected = oracle.correlations[asked]
        return {"cd_oracle": correlation_difference(torch.cat(changes), asked, expected)}
