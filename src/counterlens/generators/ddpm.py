"""A small denoising diffusion model, the UNet of diffusers (Ho et al., NeurIPS 2020).

Predicts the noise; the variance is fixed to beta. What is saved is the moving average of the
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel

from counterlens.config import GeneratorOptions
from counterlens.generators.base import Training
from counterlens.generators.parts.diffusion import Diffusion
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.runtime.device import autocast, place
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.sizes import Padding
from counterlens.runtime.training import (
    History,
    Losses,
    batches,
    moving_average,
    train,
)


class Options(DiffusionOptions):
    """Network and training.

    Attributes:
        channels: of each resolution, the highest first; each halves the side of the one before.
        layers: residual blocks per resolution.
        attention: whether the lowest resolution attends.
        epoch_steps: training steps of an epoch.
        warm_up: steps in which the learning rate rises; it then falls to a tenth.
        ema: decay of the moving average of the weights.
        flip: mirror every second training image, for classes that look the same mirrored.
        precision: of the training.
    """

    channels: tuple[int, ...] = Field(default=(32, 64, 64), min_length=1)
    layers: int = Field(default=1, gt=0)
    attention: bool = False
    epochs: int = Field(default=80, gt=0)
    epoch_steps: int = Field(default=100, gt=0)
    batch_size: int = Field(default=32, gt=0)
    lr: float = Field(default=3e-4, gt=0)
    warm_up: int = Field(default=200, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Channels come in groups of eight."""
        if any(width % 8 for width in self.channels):
            return f"channels {list(self.channels)} must be multiples of 8"
        return super().conflict(generators)


class DDPM(Diffusion):
    """Images of all of the scope's classes; sides are padded to fit the resolutions."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__(options, shape)
        self.options: Options = options
        count = len(options.channels)
        blocks = ["DownBlock2D"] * (count - 1)
        lowest = "AttnDownBlock2D" if options.attention else "DownBlock2D"
        self.padding = Padding(shape[1:], 2 ** (count - 1))
        self.unet = UNet2DModel(
            sample_size=self.padding.padded,
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=options.layers,
            block_out_channels=options.channels,
            down_block_types=(*blocks, lowest),
            up_block_types=(lowest.replace("Down", "Up"), *["UpBlock2D"] * (count - 1)),
            norm_num_groups=8,
            attention_head_dim=8,
            add_attention=options.attention,
        )

    def predict(self, v: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor | None]:
        options = self.options
        precision = options.precision if self.training else options.explanation_precision
        with autocast(v.device, precision):
            noise = self.unet(self.padding.pad(v).contiguous(), step).sample.float()
        return self.padding.crop(noise), None

    def fit(self, training: Training) -> History:
        """Predict the noise of random levels: the simple loss of Ho et al., Eq. 14."""
        options, device = self.options, training.device
        place(self, device).train()
        averaged = AveragedModel(self.unet, multi_avg_fn=moving_average(options.ema))
        images = training.images.to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(self.unet.parameters(), options.lr, fused=True)
        last = options.epochs * options.epoch_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / max(1, options.warm_up)) * (1 - 0.9 * step / last),
        )
        alpha_bar = self.alpha_bar.float().to(device)

        def epoch_losses(epoch: int) -> Iterator[Losses]:
            seed = derive_seed(training.seed, "epoch", epoch)
            random = generator(derive_seed(seed, "noise"))
            for index in self.epoch_batches(len(images), training.seed, epoch):
                v = 2 * images[index.to(device)] - 1
                if options.flip:
                    mirrored = torch.rand(len(v), generator=random).to(device) < 0.5
                    v = torch.where(mirrored[:, None, None, None], v.flip(3), v)
                noise = torch.randn(v.shape, generator=random).to(device)
                steps = torch.randint(options.steps, (len(v),), generator=random).to(device)
                kept = alpha_bar[steps][:, None, None, None]
                predicted, _ = self.predict(kept.sqrt() * v + (1 - kept).sqrt() * noise, steps)
                loss = functional.mse_loss(predicted, noise)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                clip_grad_norm_(self.unet.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                averaged.update_parameters(self.unet)
                yield {"loss": loss.detach()}

        parts = {
            "unet": self.unet,
            "averaged": averaged,
            "optimizer": optimizer,
            "scheduler": scheduler,
        }
        history = train("ddpm", options.epochs, epoch_losses, parts, training.checkpoint)
        self.unet.load_state_dict(averaged.module.state_dict())
        self.eval()
        return history

    def epoch_batches(self, count: int, seed: int, epoch: int) -> Iterator[Tensor]:
        """The epoch's batches of a walk through all images, again and again in a new order."""
        size, steps = min(self.options.batch_size, count), self.options.epoch_steps
        per_pass = count // size
        order: list[Tensor] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            turn, position = divmod(step, per_pass)
            if not order or position == 0:
                order = list(batches(count, size, derive_seed(seed, "pass", turn)))
            yield order[position]
