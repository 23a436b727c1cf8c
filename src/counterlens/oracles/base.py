"""What every oracle offers: how it is trained, how it is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterlens import layout, plugins
from counterlens.config import Experiment
from counterlens.data.base import ImageSet
from counterlens.runtime.training import Checkpoint, History

__all__ = ["Fitted", "Oracle", "TrainedOracle", "answers_to_8_bit_images", "create", "load"]


@dataclass(frozen=True)
class Fitted:
    """What training an oracle gives: rows of `training.csv` and its own part of `card.json`."""

    history: History
    card: dict[str, Any] = field(default_factory=dict)


class Oracle(ABC):
    """An independent judge; metrics use it, methods never do.

    Args:
        options: the oracle's section of the experiment.
        experiment: which it belongs to.
        name: its id there.
    """

    def __init__(self, options: Any, experiment: Experiment, name: str) -> None:
        self.options = options
        self.experiment = experiment
        self.name = name

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load the trained or fetched networks, frozen.

        Raises:
            UserError: a file is missing or does not fit the options.
        """


class TrainedOracle(Oracle):
    """An oracle that the experiment trains itself, into one `model.safetensors`."""

    def settings(self) -> dict[str, Any]:
        """All of the configuration that shapes the result, as plain JSON values."""
        return self.experiment.settings("oracles", self.name)

    @property
    def model_file(self) -> Path:
        """Where the trained networks lie."""
        return layout.oracle(self.experiment.name, self.name) / "model.safetensors"

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

    @abstractmethod
    def save(self) -> None:
        """Write `model_file`."""


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
    found = [
        network((part.to(device).float() / 255).contiguous(memory_format=torch.channels_last)).cpu()
        for part in images.split(batch_size)
    ]
    return torch.cat(found)


def create(experiment: Experiment, name: str) -> Oracle:
    """The experiment's oracle, neither trained nor loaded."""
    return plugins.create("oracles", experiment.oracles[name], Oracle, experiment, name)


def load(experiment: Experiment, name: str, device: torch.device) -> Oracle:
    """The experiment's oracle, ready and frozen."""
    oracle = create(experiment, name)
    oracle.load(device)
    return oracle
