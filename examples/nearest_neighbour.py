"""The nearest training image of the target class: an example of a method outside the package.

Among the images of the target class that the classifier recognises, the one closest to the query in
Euclidean distance. docs/add-a-method.md goes through this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens.config import MethodOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.methods.base import Explanation, Method, Task
from counterlens.runtime.training import Checkpoint, History


class Options(MethodOptions):
    """The first `per_class` training images of both classes are kept."""

    trainable: ClassVar[bool] = True

    per_class: int = Field(default=100, gt=0)


class NearestNeighbour(Method):
    """Always a real image, and so always realistic; seldom a small change."""

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.bank = nn.Module()
        self.bank.register_buffer("images", torch.zeros(2, options.per_class, *task.shape))
        self.bank.to(task.device)

    def trained(self) -> nn.Module:
        return self.bank

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Nothing is optimised: the images are kept."""
        least = min(int((data.labels == label).sum()) for label in self.task.pair)
        if least < self.options.per_class:
            raise UserError(
                f"per_class: {self.options.per_class} of classes {self.task.pair} are asked for, "
                f"the smaller has {least}; lower it"
            )
        for row, label in zip(self.bank.get_buffer("images"), self.task.pair, strict=True):
            row.copy_(data.images[data.labels == label][: self.options.per_class])
        return [{"epoch": 1.0, "images": 2.0 * self.options.per_class}]

    @torch.inference_mode()
    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Found, unless the classifier gives no kept image the target class."""
        bank = self.bank.get_buffer("images").flatten(0, 1)
        labels = torch.tensor(self.task.pair, device=x.device)
        labels = labels.repeat_interleave(self.options.per_class)
        recognised = self.task.classifier(bank).argmax(dim=1) == labels
        usable = (labels == target[:, None]) & recognised
        distance = torch.cdist(
            x.flatten(1), bank.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
        )
        distance, nearest = distance.masked_fill(~usable, torch.inf).min(dim=1)
        found = distance.isfinite()
        return Explanation(torch.where(found[:, None, None, None], bank[nearest], x), found)
