"""A small network as a user may have it: plain PyTorch, with nothing of Counterlens in it."""

from torch import nn


class SmallNet(nn.Module):
    """Grey images (N, 1, 28, 28) in [-1, 1] to three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean(dim=(2, 3)))


def build() -> SmallNet:
    """The network without its weights."""
    return SmallNet()
