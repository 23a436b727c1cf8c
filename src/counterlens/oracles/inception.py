"""Inception-v3 of the FID paper: the 2015 TensorFlow network, a named weight (Apache-2.0).

Nothing is trained. Where the weight cannot be had, the oracle says why and the metrics that need it
are printed as not available.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from counterlens import layout
from counterlens.config import OracleOptions
from counterlens.data.formats.weights import load_weight_record
from counterlens.oracles.base import Oracle
from counterlens.runtime.device import freeze

WEIGHT = "inception-v3-fid"


class Options(OracleOptions):
    """`batch_size` images of 299x299 per forward pass."""

    weights: ClassVar[tuple[str, ...]] = ("inception-v3-fid",)
    trained: ClassVar[bool] = False

    batch_size: int = Field(default=32, gt=0)


class Inception(Oracle):
    """The 2048 features after the last average pooling, by torch-fidelity."""

    standard: ClassVar[bool] = True
    cache_references: ClassVar[bool] = True

    unavailable: str | None = None
    fingerprint: str = ""
    file: Path | None = None
    network: torch.nn.Module | None = None
    device: torch.device = torch.device("cpu")

    def load(self, device: torch.device) -> None:
        """Learn whether the weight is there; the network is built when it is first used."""
        record = load_weight_record(layout.weight(WEIGHT))
        self.device = device
        self.fingerprint = record.sha256
        if record.file is None:
            self.unavailable = f"{WEIGHT}: {record.reason}"
        else:
            self.file = Path(record.file)

    def _build(self) -> torch.nn.Module:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if self.file is None:
            raise ValueError(f"{WEIGHT} is not loaded")
        # torch-fidelity would unpickle whatever the file has; it gets a copy that holds tensors
        # and nothing else
        buffer = io.BytesIO()
        torch.save(torch.load(self.file, map_location="cpu", weights_only=True), buffer)
        buffer.seek(0)
        network = FeatureExtractorInceptionV3(
            WEIGHT, ["2048"], feature_extractor_weights_path=buffer
        )
        return freeze(network, self.device)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8, C of 1 or 3, to (N, 2048) float32 on the CPU; grey is repeated."""
        if images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 with 1 or 3 channels, not {images.dtype} "
                f"{tuple(images.shape)}"
            )
        if self.network is None:
            self.network = self._build()
        features = [
            self.network(part.expand(-1, 3, -1, -1).to(self.device))[0].cpu()
            for part in images.split(self.options.batch_size)
        ]
        return torch.cat(features)
