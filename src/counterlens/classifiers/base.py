"""What every explained classifier offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn

from counterlens import layout, plugins
from counterlens.config import Models
from counterlens.runtime.device import freeze
from counterlens.runtime.training import load_model


class Classifier(nn.Module, ABC):
    """Images (N, C, H, W) in [0, 1] to logits (N, classes); normalises inside.

    Subclasses split the network into `maps` and `classify`, so that one pass gives both the
    feature maps and the logits. Where the options declare `has_gap`, `head` is the one linear
    layer after global average pooling.
    """

    head: nn.Module

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of every stage, first to last, each (N, channels, h, w)."""

    @abstractmethod
    def embed(self, last_map: Tensor) -> Tensor:
        """Penultimate features (N, d) from the last feature map."""

    def classify(self, last_map: Tensor) -> Tensor:
        """Logits (N, classes) from the last feature map."""
        return self.head(self.embed(last_map))

    def read_weights(self) -> None:
        """Take the parameters from a file, where the options say that nothing is trained.

        Raises:
            UserError: the file is missing or of another network.
        """
        raise TypeError(f"{type(self).__name__} has no weights of its own: it is trained")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.classify(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """The last feature map (N, channels, h, w)."""
        return self.maps(x)[-1]

    def embedding(self, x: Tensor) -> Tensor:
        """Penultimate features (N, d)."""
        return self.embed(self.features(x))

    @torch.inference_mode()
    def probabilities(self, x: Tensor, batch_size: int = 1024) -> Tensor:
        """Softmax probabilities (N, classes) on the CPU, in batches, without gradients."""
        device = next(self.parameters()).device
        answers = [
            self(part.to(device, memory_format=torch.channels_last)).softmax(dim=1).cpu()
            for part in x.split(batch_size)
        ]
        return torch.cat(answers) if answers else torch.empty(0, 0)


def create(models: Models, name: str) -> Classifier:
    """One of the classifiers with fresh parameters."""
    return plugins.create(
        "classifiers",
        models.classifiers[name],
        Classifier,
        shape=models.dataset.shape,
        classes=len(models.class_names(name)),
    )


def load(models: Models, name: str, device: torch.device) -> Classifier:
    """One of the trained classifiers, frozen."""
    model = create(models, name)
    load_model(model_file(models, name), model)
    freeze(model, device)
    return model


def model_file(models: Models, name: str) -> Path:
    """Where a trained classifier lies."""
    return layout.classifier(models.name, name) / "model.safetensors"
