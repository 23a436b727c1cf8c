"""Auto-encoders for IM1 and IM2: one per class and one for all classes.

Van Looveren and Klaise 2021 (arXiv:1907.02584, §4.2) define the metrics on them. C3LT names no
architecture. `fc64`, a bottleneck of 64 numbers, is the one whose values on real images match
C3LT's "Original data" row; `vl` is the convolutional pair of the original work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import Models, OracleOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.oracles.base import Fitted, TrainedOracle
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import derive_seed
from counterlens.runtime.sizes import PaddedSequential
from counterlens.runtime.training import (
    Checkpoint,
    Losses,
    batches,
    load_model,
    train,
)

ALL = "all"


class Options(OracleOptions):
    """Adam on the squared error; `all_epochs` defaults to 15 for `fc64` and 4 for `vl`.

    `classes`: the labels that have an auto-encoder of their own; all by default.
    """

    classes: tuple[int, ...] | None = None
    family: Literal["fc64", "vl"] = "fc64"
    class_epochs: int = Field(default=30, gt=0)
    all_epochs: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)

    def epochs_of_all(self) -> int:
        """Epochs of the auto-encoder of all classes."""
        if self.all_epochs is not None:
            return self.all_epochs
        return 15 if self.family == "fc64" else 4


def fc64(shape: tuple[int, int, int]) -> nn.Sequential:
    """P → 128 → 64 → 128 → P with P = C·H·W; ReLU after both layers of 128, linear elsewhere."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, pixels),
        nn.Unflatten(1, shape),
    )


def vl_class(channels: int) -> nn.Sequential:
    """Convolutional auto-encoder of one class: code of 8 maps at a quarter of the resolution.

    Other sides than multiples of 4 are padded with black.
    """
    return PaddedSequential(
        4,
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(8, 8, 3, padding=1),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        nn.Conv2d(16, channels, 3, padding=1),
        value=-1.0,
    )


def vl_all(channels: int) -> nn.Sequential:
    """Convolutional auto-encoder of all classes: code of 1 map at half the resolution.

    Odd sides are padded with black.
    """
    return PaddedSequential(
        2,
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(16, channels, 3, padding=1),
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        nn.Conv2d(16, channels, 3, padding=1),
        value=-1.0,
    )


class Autoencoders(TrainedOracle):
    """Reconstructions in [-1, 1] by the auto-encoder of a class or of all classes.

    All auto-encoders lie in one file, with the keys `all.…` and `<class>.…`.
    """

    def __init__(self, options: Options, models: Models, name: str) -> None:
        super().__init__(options, models, name)
        chosen = options.classifier
        names = models.dataset.classes if chosen is None else models.class_names(chosen)
        self.classes = options.classes or tuple(range(len(names)))
        keys = [ALL, *map(str, self.classes)]
        self.networks = nn.ModuleDict({key: self._network(key) for key in keys})

    def _network(self, key: str) -> nn.Sequential:
        shape = self.models.dataset.shape
        if self.options.family == "fc64":
            return fc64(shape)
        return vl_all(shape[0]) if key == ALL else vl_class(shape[0])

    def fit(
        self,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> Fitted:
        """One epoch of every auto-encoder at a time; a class's own sees that class only."""
        options: Options = self.options
        epochs = dict.fromkeys(self.networks, options.class_epochs)
        epochs[ALL] = options.epochs_of_all()
        signed = (2 * train_set.images - 1).to(device)
        chosen = {
            key: (
                torch.arange(len(signed))
                if key == ALL
                else (train_set.labels == int(key)).nonzero().squeeze(1)
            )
            for key in self.networks
        }
        for key, index in chosen.items():
            if not len(index):
                raise UserError(f"oracle {self.name}: no training image of class {key}")
            # each starts from its own seed, so that another pair changes none of the others
            torch.manual_seed(derive_seed(seed, key))
            self.networks[key] = self._network(key)
        self.networks.to(device).train()
        optimizers = {
            key: torch.optim.Adam(model.parameters(), lr=options.lr)
            for key, model in self.networks.items()
        }

        def one_epoch(key: str, epoch: int) -> Tensor:
            model, optimizer, index = self.networks[key], optimizers[key], chosen[key]
            losses = []
            for batch in batches(len(index), options.batch_size, derive_seed(seed, key, epoch)):
                x = signed[index[batch].to(device)]
                loss = functional.mse_loss(model(x), x)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            return torch.stack(losses).mean()

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            yield {key: one_epoch(key, epoch) for key in self.networks if epoch < epochs[key]}

        parts = {
            "models": self.networks,
            **{f"optimizer {key}": optimizer for key, optimizer in optimizers.items()},
        }
        history = train(self.name, max(epochs.values()), epoch_losses, parts, checkpoint)
        self.networks.eval()  # not frozen yet: a frozen network is not for saving
        return Fitted(self.networks, history, {"reconstruction_mse": self._errors(test_set)})

    def _errors(self, test_set: ImageSet) -> dict[str, float]:
        """Mean squared error in [-1, 1] on the test images that each auto-encoder is for."""
        errors = {}
        for key in self.networks:
            label = None if key == ALL else int(key)
            images = test_set.images if label is None else test_set.images[test_set.labels == label]
            if len(images):
                error = self.reconstruct(images, label) - (2 * images - 1)
                errors[key] = error.double().square().mean().item()
        return errors

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, label: int | None, batch_size: int = 2048) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to their reconstructions in about [-1, 1], on the CPU.

        Args:
            images: float32.
            label: which class's auto-encoder; None is that of all classes.
            batch_size: images per forward pass.

        Raises:
            UserError: the class has no auto-encoder.
        """
        key = ALL if label is None else str(label)
        if key not in self.networks:
            raise UserError(
                f"oracle {self.name}: has no auto-encoder of class {label}, only of "
                f"{', '.join(map(str, self.classes))}; name the class under `classes`"
            )
        model = self.networks[key]
        device = next(model.parameters()).device
        made = [model(2 * part.to(device) - 1).cpu() for part in images.split(batch_size)]
        return torch.cat(made)

    def load(self, device: torch.device) -> None:
        load_model(self.model_file, self.networks)
        freeze(self.networks, device)
