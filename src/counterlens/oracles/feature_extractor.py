"""In-domain features for FID-oracle, KID-oracle and LPIPS-oracle: an independent classifier.

Same architecture and recipe as a classifier that is explained, another seed; features are its
penultimate layer after ReLU. The explained classifier itself would reward adversarial images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.classifiers import base as classifiers
from counterlens.classifiers import train as training
from counterlens.config import OracleOptions
from counterlens.data.base import ImageSet
from counterlens.oracles.base import Fitted, TrainedOracle, answers_to_8_bit_images
from counterlens.runtime import files
from counterlens.runtime.device import freeze
from counterlens.runtime.training import Checkpoint, load_model


class Options(OracleOptions):
    """Trained as the named classifier is; `epochs` replaces its number of epochs."""

    uses_classifier: ClassVar[bool] = True

    epochs: int | None = Field(default=None, gt=0)


class FeatureExtractor(TrainedOracle):
    """Penultimate features of uint8 images."""

    standard: ClassVar[bool] = False
    cache_references: ClassVar[bool] = False

    unavailable: str | None = None
    fingerprint: str = ""
    model: classifiers.Classifier | None = None

    def fit(
        self,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> Fitted:
        """Train the second classifier; the card tells its test accuracy."""
        torch.manual_seed(seed)
        self.model = classifiers.create(self.models, self.options.classifier)
        options = self.models.classifiers[self.options.classifier]
        if self.options.epochs is not None:
            options = options.model_copy(update={"epochs": self.options.epochs})
        history = training.fit(
            self.model, train_set, options, seed, device, checkpoint, name=self.name
        )
        self.model.eval()  # not frozen yet: a frozen network is not for saving
        predicted = self.model.probabilities(test_set.images).argmax(1)
        accuracy = (predicted == test_set.labels).double().mean().item()
        return Fitted(
            self.model, history, {"test_accuracy": accuracy, "test_images": len(test_set)}
        )

    def features(self, images: Tensor, batch_size: int = 1024) -> Tensor:
        """(N, C, H, W) uint8 to (N, D) float32 on the CPU."""
        if self.model is None:
            raise ValueError("the feature extractor is neither trained nor loaded")
        device = next(self.model.parameters()).device
        return answers_to_8_bit_images(self.model.embedding, images, device, batch_size)

    def probabilities(self, images: Tensor) -> Tensor:
        """Answers (N, classes) on the CPU of the second classifier to images in [0, 1]."""
        if self.model is None:
            raise ValueError("the feature extractor is neither trained nor loaded")
        return self.model.probabilities(images)

    @torch.inference_mode()
    def perceptual_distance(self, first: Tensor, second: Tensor, batch_size: int = 512) -> Tensor:
        """LPIPS (Eq. 1) with this network's feature maps and no learned weights.

        Args:
            first, second: (N, C, H, W) in [0, 1].

        Returns:
            (N,) float64 on the CPU.
        """
        if self.model is None:
            raise ValueError("the feature extractor is neither trained nor loaded")
        device = next(self.model.parameters()).device
        distances = []
        for pair in zip(first.split(batch_size), second.split(batch_size), strict=True):
            maps = [
                self.model.maps(part.to(device, memory_format=torch.channels_last)) for part in pair
            ]
            distance = torch.zeros(len(pair[0]), dtype=torch.float64, device=device)
            for one, other in zip(*maps, strict=True):
                difference = functional.normalize(one, dim=1) - functional.normalize(other, dim=1)
                distance += difference.square().sum(dim=1).mean(dim=(1, 2))
            distances.append(distance.cpu())
        return torch.cat(distances)

    def load(self, device: torch.device) -> None:
        self.model = classifiers.create(self.models, self.options.classifier)
        load_model(self.model_file, self.model)
        freeze(self.model, device)
        recipe = self.models.classifiers[self.options.classifier]
        self.fingerprint = f"{recipe.kind} {files.sha256(self.model_file)}"
