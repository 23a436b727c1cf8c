"""Small residual network that ends in global average pooling and one linear layer.

The shape Mirror-CFE needs (Looking in the Mirror, ICCV 2025, section 3): logits are exactly
`W z + b` on the pooled last feature map z.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions


class Options(ClassifierOptions):
    """Stage widths, each stage after the first at half the resolution; AdamW training.

    `stem_stride` is that of the first convolution: 2 halves the resolution of every stage.
    """

    has_gap: ClassVar[bool] = True

    widths: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    stem_stride: Literal[1, 2] = 1
    epochs: int = Field(default=6, gt=0)
    decay_every: int = Field(default=2, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_shift: int = Field(default=2, ge=0)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
            if stride != 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h/stride, w/stride)."""
        return functional.relu(self.residual(x) + self.shortcut(x))


class GapResNet(Classifier):
    """Feature maps: the output of each residual stage; embedding: their spatial mean."""

    def __init__(self, options: Options, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        widths = options.widths
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], widths[0], 3, options.stem_stride, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList([Block(widths[0], widths[0], 1)])
        for before, after in pairwise(widths):
            self.stages.append(Block(before, after, 2))
        self.head = nn.Linear(widths[-1], classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        hidden = self.stem(2 * x - 1)
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.mean(dim=(2, 3))
