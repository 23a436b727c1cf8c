"""SimSiam trained on the data itself, for S3-oracle (Chen and He, CVPR 2021).

Two random views of an image must predict each other's projection, whose gradient is stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.classifiers.gap_resnet import GapResNet
from counterlens.classifiers.gap_resnet import Options as NetworkOptions
from counterlens.config import OracleOptions
from counterlens.data.base import ImageSet
from counterlens.oracles.base import Fitted, TrainedOracle, answers_to_8_bit_images
from counterlens.runtime import files
from counterlens.runtime.device import autocast, freeze, place
from counterlens.runtime.quality import Quality
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import (
    Checkpoint,
    Losses,
    batches,
    cosine_decay,
    load_model,
    train,
)


class Options(OracleOptions):
    """Encoder, heads and views.

    Attributes:
        widths, stem_stride: of the residual encoder.
        dim: of the projection; the predictor's hidden layer has a quarter.
        least_scale: smallest share of the side that a view shows.
        jitter: largest change of brightness and contrast of a view.
        flip: whether half of the views are mirrored.
        least_deviation: of the normalised outputs, times the root of `dim`; 0 is a collapse, 1
            the ideal.
    """

    widths: tuple[int, ...] = Field(default=(24, 48, 96), min_length=1)
    stem_stride: Literal[1, 2] = 2
    dim: int = Field(default=128, gt=3)
    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=128, gt=1)
    lr: float = Field(default=0.05, gt=0)
    least_scale: float = Field(default=0.6, gt=0, le=1)
    jitter: float = Field(default=0.3, ge=0, lt=1)
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"
    least_deviation: float = 0.3


class Siamese(nn.Module):
    """Encoder with three-layer projector; the two-layer predictor is for training only."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        super().__init__()
        wanted = NetworkOptions(
            kind="gap-resnet", widths=options.widths, stem_stride=options.stem_stride
        )
        self.encoder = GapResNet(wanted, shape, classes=1)
        self.encoder.head = nn.Identity()  # type: ignore[assignment]
        features, dim = options.widths[-1], options.dim
        self.projector = nn.Sequential(
            nn.Linear(features, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(inplace=True),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, dim // 4, bias=False),
            nn.BatchNorm1d(dim // 4),
            nn.ReLU(inplace=True),
            nn.Linear(dim // 4, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to projections (N, dim)."""
        return self.projector(self.encoder.embedding(x))


def view(x: Tensor, options: Options, random: torch.Generator) -> Tensor:
    """A random crop, brought back to the size of x (N, C, H, W), and other brightness."""
    count = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    scale = uniform(options.least_scale, 1)
    grid = torch.zeros(count, 2, 3)
    mirrored = torch.where(uniform(0, 1) < 0.5 * options.flip, -1.0, 1.0)
    grid[:, 0, 0], grid[:, 1, 1] = scale * mirrored, scale
    for axis in range(2):
        grid[:, axis, 2] = (1 - scale) * uniform(-1, 1)
    placed = functional.affine_grid(grid.to(x.device), list(x.shape), align_corners=False)
    seen = functional.grid_sample(x, placed, padding_mode="border", align_corners=False)
    contrast, brightness = (
        uniform(-options.jitter, options.jitter).to(x.device)[:, None, None, None] for _ in range(2)
    )
    return ((1 + contrast) * (seen - 0.5) + 0.5 + brightness / 2).clamp(0, 1)


class SimSiam(TrainedOracle):
    """Projections of 8-bit images."""

    standard: ClassVar[bool] = False
    cache_references: ClassVar[bool] = False

    unavailable: str | None = None
    fingerprint: str = ""
    model: Siamese | None = None

    def fit(
        self,
        train_set: ImageSet,
        test_set: ImageSet,
        seed: int,
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> Fitted:
        """Negative cosine of prediction and stopped projection, both ways round (Eq. 2)."""
        options = self.options
        torch.manual_seed(seed)
        self.model = model = Siamese(options, self.models.dataset.shape)
        place(model, device).train()
        images = train_set.images.to(device)
        optimizer = torch.optim.SGD(
            model.parameters(),
            options.lr * options.batch_size / 256,
            momentum=0.9,
            weight_decay=1e-4,
        )
        scheduler = cosine_decay(optimizer, options.epochs)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            epoch_seed = derive_seed(seed, "epoch", epoch)
            random = generator(derive_seed(epoch_seed, "views"))
            for index in batches(len(images), options.batch_size, epoch_seed):
                if len(index) == 1:
                    continue
                x = images[index.to(device)]
                views = [view(x, options, random) for _ in range(2)]
                with autocast(device, options.precision):
                    one, other = (
                        model(shown.contiguous(memory_format=torch.channels_last))
                        for shown in views
                    )
                    guesses = model.predictor(one), model.predictor(other)
                similar = functional.cosine_similarity(guesses[0].float(), other.detach().float())
                similar = similar + functional.cosine_similarity(
                    guesses[1].float(), one.detach().float()
                )
                loss = -similar.mean() / 2
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                yield {"loss": loss.detach()}

        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        history = train(self.name, options.epochs, epoch_losses, parts, checkpoint, [scheduler])
        model.eval()
        outputs = functional.normalize(self.features((test_set.images * 255).round().byte()))
        deviation = float(outputs.std(dim=0).mean() * options.dim**0.5)
        quality = Quality(
            {"output_deviation": deviation}, at_least={"output_deviation": options.least_deviation}
        )
        return Fitted(model, history, {"quality": quality.values, "gates": quality.gates()})

    def features(self, images: Tensor, batch_size: int = 512) -> Tensor:
        """(N, C, H, W) uint8 to projections (N, dim) float32 on the CPU."""
        if self.model is None:
            raise ValueError("the encoder is neither trained nor loaded")
        device = next(self.model.parameters()).device
        return answers_to_8_bit_images(self.model, images, device, batch_size)

    def load(self, device: torch.device) -> None:
        self.model = Siamese(self.options, self.models.dataset.shape)
        load_model(self.model_file, self.model)
        freeze(self.model, device)
        self.fingerprint = files.sha256(self.model_file)
