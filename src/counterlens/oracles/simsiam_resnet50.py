"""SimSiam's released ResNet-50 (Chen and He, CVPR 2021), the encoder that S3 is defined with.

Its checkpoint (100 epochs, batch size 256) is CC BY-NC 4.0: download it from its authors and name
the file. Nothing is trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens.config import OracleOptions
from counterlens.errors import UserError
from counterlens.oracles.base import Oracle
from counterlens.runtime import files
from counterlens.runtime.device import freeze
from counterlens.runtime.images import IMAGENET_DEVIATION, IMAGENET_MEAN

PREFIX = "module.encoder."


class Options(OracleOptions):
    """`file`: path of the checkpoint (`checkpoint_0099.pth.tar`), and its `sha256`."""

    trained: ClassVar[bool] = False

    file: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    batch_size: int = Field(default=64, gt=0)


def encoder() -> nn.Module:
    """ResNet-50 with SimSiam's three-layer projector in the place of its last layer."""
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    wide = network.fc.in_features
    network.fc = nn.Sequential(  # type: ignore[assignment]
        nn.Linear(wide, wide, bias=False),
        nn.BatchNorm1d(wide),
        nn.ReLU(inplace=True),
        nn.Linear(wide, wide, bias=False),
        nn.BatchNorm1d(wide),
        nn.ReLU(inplace=True),
        nn.Linear(wide, wide),
        nn.BatchNorm1d(wide, affine=False),
    )
    return network


class SimSiamResNet50(Oracle):
    """The 2048 outputs of the projector, at the images' own size."""

    standard: ClassVar[bool] = True
    cache_references: ClassVar[bool] = False

    unavailable: str | None = None
    fingerprint: str = ""
    network: nn.Module | None = None
    device: torch.device = torch.device("cpu")

    def load(self, device: torch.device) -> None:
        """Read the checkpoint, where one is named.

        Raises:
            UserError: it is missing, changed, or no such checkpoint.
        """
        options = self.options
        if options.file is None or options.sha256 is None:
            self.unavailable = (
                f"{self.name}: no file named; download SimSiam's checkpoint and set `file` and "
                "`sha256` of the oracle"
            )
            return
        path = Path(options.file)
        if not path.is_file():
            raise UserError(f"{path}: no such file; download SimSiam's checkpoint there")
        digest = files.sha256(path)
        if digest != options.sha256:
            raise UserError(f"{path}: its SHA-256 is {digest}, not {options.sha256}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        except Exception as error:
            raise UserError(f"{path}: no checkpoint of tensors alone ({error})") from None
        network = encoder()
        wanted = {
            name.removeprefix(PREFIX): value
            for name, value in state.items()
            if name.startswith(PREFIX)
        }
        try:
            network.load_state_dict(wanted)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: is no SimSiam encoder: {reason}") from None
        self.network, self.device = freeze(network, device), device
        self.fingerprint = digest

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8, C of 1 or 3, to (N, 2048) float32 on the CPU; grey is repeated."""
        if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 with 1 or 3 channels, not {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if self.network is None:
            raise ValueError("the encoder is not loaded")
        mean, deviation = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
        )
        features = [
            self.network((part.to(self.device).float() / 255 - mean) / deviation).cpu()
            for part in images.expand(-1, 3, -1, -1).split(self.options.batch_size)
        ]
        return torch.cat(features)
