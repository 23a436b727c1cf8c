"""Which attributes an image has, for CD and MNAC: a network trained on the data's own attributes.

Takes the place of the VGGFace2 networks of DiME and STEEX, which know faces alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.classifiers.gap_resnet import GapResNet
from counterlens.classifiers.gap_resnet import Options as NetworkOptions
from counterlens.classifiers.train import shift
from counterlens.config import OracleOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.oracles.base import Fitted, TrainedOracle, answers_to_8_bit_images
from counterlens.runtime.device import autocast, freeze, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import (
    Checkpoint,
    Losses,
    batches,
    load_model,
    step_decay,
    train,
)


class Options(OracleOptions):
    """A residual network with one sigmoid output per attribute; AdamW, rate halved."""

    widths: tuple[int, ...] = Field(default=(24, 48, 96), min_length=1)
    stem_stride: Literal[1, 2] = 2
    epochs: int = Field(default=15, gt=0)
    batch_size: int = Field(default=128, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    decay_every: int = Field(default=5, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    max_shift: int = Field(default=4, ge=0)
    flip: bool = True
    precision: Literal["fp32", "bf16"] = "bf16"


class AttributeNetwork(nn.Module):
    """Logits (N, A), and the correlations (A, A) of the training labels."""

    correlations: Tensor

    def __init__(self, options: Options, shape: tuple[int, int, int], attributes: int) -> None:
        super().__init__()
        wanted = NetworkOptions(
            kind="gap-resnet", widths=options.widths, stem_stride=options.stem_stride
        )
        self.network = GapResNet(wanted, shape, attributes)
        self.register_buffer("correlations", torch.zeros(attributes, attributes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, A)."""
        return self.network(x)


class Attributes(TrainedOracle):
    """Answers for 8-bit images."""

    model: AttributeNetwork | None = None

    def _build(self) -> AttributeNetwork:
        dataset = self.models.dataset
        if not dataset.attributes:
            raise UserError(
                f"oracle {self.name}: the dataset '{dataset.name}' names no attributes; remove "
                "the oracle and the metrics that use it"
            )
        return AttributeNetwork(self.options, dataset.shape, len(dataset.attributes))

    @property
    def correlations(self) -> Tensor:
        """Pearson correlations of the training labels: (A, A), 0 where one is constant."""
        assert self.model is not None
        return self.model.correlations.cpu().double()

    def fit(
        self,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> Fitted:
        """Binary cross-entropy on every attribute; the card tells each one's test accuracy."""
        options = self.options
        torch.manual_seed(seed)
        self.model = model = self._build()
        assert train_set.attributes is not None and test_set.attributes is not None
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations = np.corrcoef(train_set.attributes.double().numpy().T)
        model.correlations.copy_(torch.from_numpy(np.nan_to_num(correlations)))
        place(model, device).train()
        images, wanted = train_set.images.to(device), train_set.attributes.to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), options.lr, weight_decay=options.weight_decay, fused=True
        )
        scheduler = step_decay(optimizer, options.decay_every)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            epoch_seed = derive_seed(seed, "epoch", epoch)
            random = generator(derive_seed(epoch_seed, "augment"))
            for index in batches(len(wanted), options.batch_size, epoch_seed):
                x, y = images[index.to(device)], wanted[index.to(device)]
                if options.flip:
                    mirrored = torch.rand(len(x), generator=random).to(device) < 0.5
                    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
                if options.max_shift:
                    x = shift(x, options.max_shift, random)
                with autocast(device, options.precision):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                loss = functional.binary_cross_entropy_with_logits(logits.float(), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {"loss": loss.detach()}

        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        history = train(self.name, options.epochs, epoch_losses, parts, checkpoint, [scheduler])
        model.eval()
        right = self.answers((test_set.images * 255).round().byte()) == test_set.attributes.bool()
        accuracy = right.double().mean(dim=0).tolist()
        names = self.models.dataset.attributes
        card = {
            "test_images": len(test_set),
            "test_accuracy": float(np.mean(accuracy)),
            "test_accuracy_per_attribute": dict(zip(names, accuracy, strict=True)),
        }
        return Fitted(model, history, card)

    def answers(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """Which attributes images have: (N, C, H, W) uint8 to bool (N, A) on the CPU."""
        if self.model is None:
            raise ValueError("the attribute model is neither trained nor loaded")
        device = next(self.model.parameters()).device
        return answers_to_8_bit_images(self.model, images, device, batch_size) > 0

    def load(self, device: torch.device) -> None:
        self.model = self._build()
        load_model(self.model_file, self.model)
        freeze(self.model, device)
