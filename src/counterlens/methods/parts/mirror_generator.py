"""The networks of Mirror-CFE (ICCV 2025): generator with skip connections, and discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

LARGEST_PATCH_MAP = 8
Size = tuple[int, int]


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU: (N, inputs, h, w) to (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Pooling(nn.Module):
    """Means over equal windows: (N, d, H, W) to (N, d, *size).

    Where none divide the map, those at its end are smaller, or what they give is resized.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        window = [-(-side // less) for side, less in zip(x.shape[2:], self.size, strict=True)]
        x = functional.avg_pool2d(x, window, ceil_mode=True)
        return resized(x, self.size)


class SpatialPattern(nn.Module):
    """SPE of one stage (Eq. 12): the skip features that belong to a moved feature map."""

    def __init__(self, channels: int, size: Size, last: int, last_size: Size, width: int) -> None:
        super().__init__()
        self.size = size
        self.inward = nn.Sequential(
            ConvBlock(channels, width), Pooling(last_size), ConvBlock(width, last)
        )
        self.mixed = ConvBlock(2 * last, width)
        self.outward = nn.Sequential(
            ConvBlock(width, width), nn.Conv2d(width, channels, 3, padding=1)
        )

    def forward(self, inward: Tensor, moved_map: Tensor) -> Tensor:
        """What `inward` gave and the moved map (N, d, h, w) to (N, channels, *size)."""
        mixed = self.mixed(torch.cat([inward, moved_map], dim=1))
        return self.outward(resized(mixed, self.size))


class MirrorGenerator(nn.Module):
    """U-Net decoder on the classifier's feature maps, with the skip connection controller.

    Args:
        channels, sizes: of the classifier's feature maps, first to last; heights and widths.
        shape: (C, H, W) of the images.
        ssc: the skip connection controller: `full`, `no-csp` or `skip`.
        least_width: channels of a stage, or as many as the classifier's if more.
    """

    def __init__(
        self,
        channels: Sequence[int],
        sizes: Sequence[Size],
        shape: tuple[int, int, int],
        ssc: str,
        least_width: int,
    ) -> None:
        super().__init__()
        self.ssc = ssc
        self.sizes = (*sizes[:-1][::-1], shape[1:])
        widths = [max(least_width, count) for count in channels]
        self.patterns = nn.ModuleList(
            SpatialPattern(count, size, channels[-1], sizes[-1], width)
            for count, size, width in zip(channels[:-1], sizes[:-1], widths, strict=False)
        )
        self.bottom = ConvBlock(channels[-1], widths[-1])
        self.stages = nn.ModuleList(
            ConvBlock(before + count, width)
            for before, count, width in zip(
                widths[:0:-1], channels[-2::-1], widths[-2::-1], strict=True
            )
        )
        self.top = nn.Sequential(
            ConvBlock(widths[0], least_width * 2 // 3),
            nn.Conv2d(least_width * 2 // 3, shape[0], 3, padding=1),
        )

    def inward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The part of every SPE that does not depend on k."""
        return [
            pattern.inward(skip)  # type: ignore[operator]
            for pattern, skip in zip(self.patterns, maps[:-1], strict=True)
        ]

    def forward(
        self, moved_map: Tensor, skips: Sequence[Tensor], inward: Sequence[Tensor], mask: Tensor
    ) -> Tensor:
        """Images (N, C, H, W) in [0, 1].

        Args:
            moved_map: the last feature map at k, (N, d, h, w).
            skips: the query's feature maps of the earlier stages.
            inward: what `inward` gives of them.
            mask: (N, 1, h, w), where the edited features replace the query's.
        """
        hidden = self.bottom(moved_map)
        edited = []
        for pattern, skip, inner in zip(self.patterns, skips, inward, strict=True):
            if self.ssc == "skip":
                edited.append(skip)
                continue
            drawn = pattern(inner, moved_map)
            if self.ssc == "full":
                chosen = functional.interpolate(mask, drawn.shape[2:], mode="nearest")
                drawn = torch.lerp(skip.to(drawn.dtype), drawn, chosen.to(drawn.dtype))
            edited.append(drawn)
        for stage, skip, size in zip(self.stages, edited[::-1], self.sizes, strict=False):
            hidden = resized(hidden, size)
            hidden = stage(torch.cat([hidden, skip.to(hidden.dtype)], dim=1))
        return (self.top(resized(hidden, self.sizes[-1])).float().tanh() + 1) / 2


def resized(x: Tensor, size: Size) -> Tensor:
    """Maps (N, d, h, w) in another size (N, d, *size), bilinear."""
    return x if x.shape[2:] == size else functional.interpolate(x, size, mode="bilinear")


def patch_discriminator(shape: tuple[int, int, int], width: int = 24) -> nn.Sequential:
    """Images in [0, 1] to a map of logits with 8 on the shorter side, or fewer.

    Spectral norm, no batch normalisation.
    """
    layers: list[nn.Module] = []
    channels, size = shape[0], min(shape[1:])
    while size > LARGEST_PATCH_MAP:
        layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels, width, size = width, 2 * width, size // 2
    layers += [nn.Conv2d(channels, 64, 3, 1, 1), nn.LeakyReLU(0.2, inplace=True)]
    layers.append(nn.Conv2d(64, 1, 3, 1, 1))
    return nn.Sequential(
        *(parametrizations.spectral_norm(m) if isinstance(m, nn.Conv2d) else m for m in layers)
    )
