"""LeNet-style network of C3LT: two 5x5 convolutions and two linear layers.

Khorram and Fuxin, CVPR 2022 (layer sizes: the paper's released classifier). 317,066 parameters on
28x28x1 with ten classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from counterlens.classifiers.base import Classifier
from counterlens.config import ClassifierOptions, DatasetOptions, too_small


class Options(ClassifierOptions):
    """The recipe that reaches the paper's 99.4 % on MNIST and 91.5 % on Fashion-MNIST."""

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """Of smaller images the two convolutions and poolings leave nothing."""
        return too_small(dataset, 16)


class LeNet(Classifier):
    """Feature maps: both convolutions after ReLU and before pooling (32x24x24, 64x8x8)."""

    def __init__(self, options: Options, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 32, 5)
        self.conv2 = nn.Conv2d(32, 64, 5)
        cells = (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        self.hidden = nn.Linear(64 * cells, 256)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(256, classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        first = functional.relu(self.conv1(2 * x - 1))
        second = functional.relu(self.conv2(functional.max_pool2d(first, 2)))
        return [first, second]

    def embed(self, last_map: Tensor) -> Tensor:
        pooled = functional.max_pool2d(last_map, 2)
        return functional.relu(self.hidden(pooled.flatten(1)))

    def classify(self, last_map: Tensor) -> Tensor:
        return self.head(self.dropout(self.embed(last_map)))
