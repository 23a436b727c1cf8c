"""LPIPS with its published weights: SqueezeNet 1.1 on ImageNet, a named weight (BSD-3-Clause).

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018.
The linear layers come with the package `lpips`; where the network's own weight cannot be had, the
oracle says why and the metric that needs it is printed as not available.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens import layout
from counterlens.config import OracleOptions
from counterlens.data.formats.weights import load_weight_record
from counterlens.oracles.base import Oracle
from counterlens.runtime.device import freeze

WEIGHT = "squeezenet-1.1-imagenet"


class Options(OracleOptions):
    """`least_size`: to which a shorter side is enlarged; `batch_size`: pairs per pass."""

    weights: ClassVar[tuple[str, ...]] = ("squeezenet-1.1-imagenet",)
    trained: ClassVar[bool] = False

    least_size: int = Field(default=64, ge=32)
    batch_size: int = Field(default=64, gt=0)


class Perceptual(Oracle):
    """LPIPS 0.1 on SqueezeNet features."""

    standard: ClassVar[bool] = True

    unavailable: str | None = None
    file: Path | None = None
    network: torch.nn.Module | None = None
    device: torch.device = torch.device("cpu")

    def load(self, device: torch.device) -> None:
        """Learn whether the weight is there; the network is built when it is first used."""
        record = load_weight_record(layout.weight(WEIGHT))
        self.device = device
        if record.file is None:
            self.unavailable = f"{WEIGHT}: {record.reason}"
        else:
            self.file = Path(record.file)

    def _build(self) -> torch.nn.Module:
        from lpips import LPIPS

        if self.file is None:
            raise ValueError(f"{WEIGHT} is not loaded")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torchvision the old way
            network = LPIPS(net="squeeze", pnet_rand=True, verbose=False)
        weights = torch.load(self.file, map_location="cpu", weights_only=True)
        # lpips cuts torchvision's `features` into slices and keeps the numbers of the layers
        names = {
            name: f"features.{name.split('.', 1)[1]}"
            for name in network.net.state_dict()  # type: ignore[union-attr]
        }
        network.net.load_state_dict({name: weights[old] for name, old in names.items()})  # type: ignore[union-attr]
        return freeze(network, self.device)

    @torch.inference_mode()
    def perceptual_distance(self, first: Tensor, second: Tensor) -> Tensor:
        """LPIPS (N,) float64 on the CPU of images (N, C, H, W) in [0, 1], C of 1 or 3."""
        if self.network is None:
            self.network = self._build()
        size = self.options.least_size
        distances = []
        for pair in zip(
            first.split(self.options.batch_size),
            second.split(self.options.batch_size),
            strict=True,
        ):
            shown = [2 * part.expand(-1, 3, -1, -1).to(self.device) - 1 for part in pair]
            if (shorter := min(first.shape[2:])) < size:
                sides = [round(side * size / shorter) for side in first.shape[2:]]
                shown = [functional.interpolate(x, sides, mode="bilinear") for x in shown]
            distances.append(self.network(*shown).flatten().cpu().double())
        return torch.cat(distances)
