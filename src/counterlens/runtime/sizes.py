"""Images of any height and width for networks that halve them: padding to a multiple, cropping."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Padding:
    """Sides are padded to a multiple, half of what is missing (rounded down) before the image.

    Attributes:
        before: rows above and columns left of the image.
        padded: height and width of padded images.
    """

    def __init__(self, size: Sequence[int], multiple: int) -> None:
        self.height, self.width = size
        missing = [-side % multiple for side in size]
        self.before = (missing[0] // 2, missing[1] // 2)
        self.padded = (self.height + missing[0], self.width + missing[1])

    def pad(self, x: Tensor, value: float | None = None) -> Tensor:
        """Images (N, C, H, W) to (N, C, *padded); the border is `value` or repeats the edge."""
        if x.shape[2:] == self.padded:
            return x
        above, left = self.before
        below, right = (
            whole - side - before
            for whole, side, before in zip(self.padded, x.shape[2:], self.before, strict=True)
        )
        border = [left, right, above, below]
        if value is None:
            return functional.pad(x, border, mode="replicate")
        return functional.pad(x, border, value=value)

    def crop(self, x: Tensor) -> Tensor:
        """The inverse of `pad`."""
        above, left = self.before
        return x[:, :, above : above + self.height, left : left + self.width]


class Crop(nn.Module):
    """The first rows and columns of images (N, C, h, w): (N, C, *size)."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.height, : self.width]


class PaddedSequential(nn.Sequential):
    """Layers from images to images that see them padded; what they make is cropped again.

    Args:
        multiple: that the sides are padded to.
        layers: they keep the size of images whose sides are such multiples.
        value: of the border; None repeats the edge.
    """

    def __init__(self, multiple: int, *layers: nn.Module, value: float | None = None) -> None:
        super().__init__(*layers)
        self.multiple, self.value = multiple, value

    def forward(self, input: Tensor) -> Tensor:
        padding = Padding(input.shape[2:], self.multiple)
        return padding.crop(super().forward(padding.pad(input, self.value)))
