"""What every oracle offers: how it is trained, how it is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterlens import layout, plugins
from counterlens.config import Models
from counterlens.data.base import ImageSet
from counterlens.runtime.training import Checkpoint, History

__all__ = ["Fitted", "Oracle", "TrainedOracle", "answers_to_8_bit_images", "create", "load"]


@dataclass(frozen=True)
class Fitted:
    """What training an oracle gives: its networks, the curve, and its own part of `card.json`."""

    module: nn.Module
    history: History
    card: dict[str, Any] = field(default_factory=dict)


class Oracle(ABC):
    """An independent judge; metrics use it, methods never do.

    Args:
        options: those of the oracle.
        models: which it belongs to.
        name: its id there.
    """

    def __init__(self, options: Any, models: Models, name: str) -> None:
        self.options = options
        self.models = models
        self.name = name

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load the trained or fetched networks, frozen.

        Raises:
            UserError: a file is missing or does not fit the options.
        """


class TrainedOracle(Oracle):
    """An oracle that is trained here, into one `model.safetensors`."""

    @property
    def model_file(self) -> Path:
        """Where the trained networks lie."""
        return layout.oracle(self.models.name, self.name) / "model.safetensors"

    @abstractmethod
    def fit(
        self,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> Fitted:
        """Train on the train split, of all classes; `test_set` is only for the card."""


@torch.inference_mode()
def answers_to_8_bit_images(
    network: Callable[[Tensor], Tensor], images: Tensor, device: torch.device, batch_size: int
) -> Tensor:
    """A network's answers, on the CPU, to images (N, C, H, W) of uint8 that it sees in [0, 1].

    Raises:
        ValueError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    answers = [
        network((part.to(device).float() / 255).contiguous(memory_format=torch.channels_last)).cpu()
        for part in images.split(batch_size)
    ]
    return torch.cat(answers)


def create(models: Models, name: str) -> Oracle:
    """One of the oracles, neither trained nor loaded."""
    return plugins.create("oracles", models.oracles[name], Oracle, models, name)


def load(models: Models, name: str, device: torch.device) -> Oracle:
    """One of the oracles, ready and frozen."""
    oracle = create(models, name)
    oracle.load(device)
    return oracle
