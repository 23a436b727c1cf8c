"""What generators of regions and style codes offer to methods: STEEX asks for nothing else.

A map of regions is one-hot, float32 (N, R, H, W); every region has a style code (N, R, d).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from counterlens.generators.base import Generator, Quality, Training, reconstruction_quality
from counterlens.generators.parts.region_options import RegionGeneratorOptions


class RegionGenerator(Generator):
    """A code alone says nothing, so that `encode` and `decode` are missing.

    Attributes:
        regions: R.
        code_dim: d.
    """

    code_dim: int

    def __init__(self, options: RegionGeneratorOptions, shape: tuple[int, int, int]) -> None:
        super().__init__(options, shape)
        self.gates: RegionGeneratorOptions = options
        self.regions = options.region_count()

    @abstractmethod
    def layout(self, x: Tensor) -> Tensor:
        """One-hot regions (N, R, H, W) of images (N, C, H, W) in [0, 1]."""

    @abstractmethod
    def codes(self, x: Tensor, layout: Tensor) -> Tensor:
        """Style codes (N, R, d) of images and their regions; 0 where a region is absent."""

    @abstractmethod
    def synthesise(self, layout: Tensor, codes: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of regions (N, R, H, W) and codes (N, R, d)."""

    @torch.inference_mode()
    def reconstructions(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) drawn from their own regions and codes, on the CPU, in batches."""
        device = next(self.parameters()).device
        drawn = []
        for part in x.split(256):
            part = part.to(device)
            layout = self.layout(part)
            drawn.append(self.synthesise(layout, self.codes(part, layout)).cpu())
        return torch.cat(drawn)

    def quality(self, training: Training) -> Quality:
        """Reconstruction and class kept, on test images."""
        gates, drawn = self.gates, self.reconstructions(training.test_images)
        return reconstruction_quality(
            drawn, training, gates.least_class_kept, gates.most_reconstruction_l1
        )

    def sheet(self, training: Training) -> Tensor:
        """Rows of test images, their regions in shades of grey, and their reconstructions."""
        x = training.test_images[:: max(1, len(training.test_images) // 16)][:16]
        with torch.inference_mode():
            labels = self.layout(x.to(training.device)).argmax(dim=1, keepdim=True).cpu()
        shades = (labels / (self.regions - 1)).expand_as(x)
        rows = [part.split(8) for part in (x, shades, self.reconstructions(x))]
        return torch.cat([row for rank in zip(*rows, strict=True) for row in rank])


def one_hot(labels: Tensor, regions: int) -> Tensor:
    """Labels (N, H, W) to float32 (N, R, H, W)."""
    return functional.one_hot(labels, regions).movedim(3, 1).float().contiguous()
