"""Background loss: how well what may not be edited is reproduced (ECED, WACV 2025, Eq. 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from counterlens.config import Column, MetricOptions
from counterlens.metrics.base import CounterfactualSet, Metric, NotAvailable, require_query


class Options(MetricOptions):
    """`samples`: at most so many images of a pair, drawn at random, give the interval.

    Attributes:
        samples: 100 in the paper.
        seed: of the draw.
    """

    paired: ClassVar[bool] = True

    samples: int = Field(default=100, gt=1)
    seed: int = 0

    def columns(self) -> tuple[Column, ...]:
        """The loss with the noise of the lowest level in the latents and without, times 1000.

        `background_loss` and `background_loss_clean` per image; per pair `background_loss_sampled`
        over the drawn images, and `background_interval`, half the width of its 95 % interval.
        """

        def column(name: str, label: str, per: str = "image") -> Column:
            content = {"name": name, "label": label, "direction": "down", "unit": "x1000"}
            content |= {"scale": 1000.0, "per": per}
            return Column.model_validate(content)

        return (
            column("background_loss", "L_bg"),
            column("background_loss_clean", "L_bg, no noise"),
            column("background_loss_sampled", "L_bg, sampled", "pair"),
            column("background_interval", "± 95 %", "pair"),
        )


class BackgroundLoss(Metric):
    """Mean over the background's pixels of the squared error, mean over channels; images in [0, 1].

    Of the reconstruction before the attack: the method keeps it, and its mask.
    """

    def per_image(self, cf: CounterfactualSet) -> dict[str, np.ndarray]:
        """Both columns, (N,); 0 for an image without background.

        Raises:
            NotAvailable: the method keeps no reconstruction, or no image has a background.
        """
        return {
            "background_loss": self.loss(cf, "reconstruction").numpy(),
            "background_loss_clean": self.loss(cf, "reconstruction_clean").numpy(),
        }

    def per_pair(self, sets: Sequence[CounterfactualSet]) -> dict[str, float]:
        """Mean over the drawn images, and 1.96 s / sqrt(n).

        Raises:
            NotAvailable: the method keeps no reconstruction, no image has a background, or there
                are not two images.
        """
        losses = torch.cat(
            [
                self.loss(cf.select(self.context.counted(cf, self.options)), "reconstruction")
                for cf in sets
            ]
        )
        if len(losses) < 2:
            raise NotAvailable("an interval needs two images")
        random = torch.Generator().manual_seed(self.options.seed)
        drawn = losses[torch.randperm(len(losses), generator=random)[: self.options.samples]]
        return {
            "background_loss_sampled": float(drawn.mean()),
            "background_interval": 1.96 * float(drawn.std()) / math.sqrt(len(drawn)),
        }

    def loss(self, cf: CounterfactualSet, name: str) -> Tensor:
        """Eq. 12 of each image, (N,) float64."""
        if not {name, "edit_mask"} <= {*cf.extras}:
            raise NotAvailable("the method keeps no reconstruction of its queries")
        error = (cf.extras[name].double() - require_query(cf).double()).square().mean(dim=1)
        background = 1 - cf.extras["edit_mask"][:, 0].double()
        if len(background) and not background.any():
            raise NotAvailable("the whole image may be edited: there is no background")
        total = (error * background).flatten(1).sum(dim=1)
        return total / background.flatten(1).sum(dim=1).clamp(min=1)
