"""The cells of a classifier's last feature map, as CVE exchanges them between two images.

A cell is a square of `side` positions of the map. Which pixels it sees follows from the layers that
run; what one exchange does to the logits needs no pass of the whole head where the head begins with
a layer that is affine in the cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from counterlens.classifiers.base import Classifier
from counterlens.classifiers.lenet import LeNet
from counterlens.errors import UserError

FLOATS = 2**20  # of one tensor of candidates: what a processor's cache holds


@dataclass(frozen=True)
class Window:
    """The pixels that position 0 of a map sees, along one side: `low` to `high`, both included.

    Position p sees them `p * step` pixels further. Pixels outside the image are padding.
    """

    low: int = 0
    high: int = 0
    step: int = 1

    def through(self, kernel: int, stride: int, padding: int, dilation: int) -> Window:
        """After a convolution or a pooling."""
        reach = dilation * (kernel - 1) - padding
        return Window(
            self.low - padding * self.step, self.high + reach * self.step, self.step * stride
        )

    @property
    def size(self) -> int:
        """How many pixels."""
        return self.high - self.low + 1

    def centre(self, positions: Tensor) -> Tensor:
        """Where the windows of some positions have their middle; a pixel's middle is whole."""
        return (self.low + self.high) / 2 + positions * self.step


class _Trace(TorchDispatchMode):
    """The windows of every map that is computed from x, by what each layer does to the sides.

    A map behind an operation of which that is not known has the operation's name in their place.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, tuple[Window, Window] | str]] = {}
        self.known[id(x)] = (x, (Window(), Window()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        listed = [part for arg in args for part in (arg if isinstance(arg, list) else [arg])]
        seen = [part for part in listed if id(part) in self.known]
        maps = output[0] if isinstance(output, tuple | list) else output
        if seen and isinstance(maps, Tensor):
            self.known[id(maps)] = (maps, self.windows(func, args, seen, maps))
        return output

    def windows(
        self, func: Any, args: Any, seen: list[Tensor], maps: Tensor
    ) -> tuple[Window, Window] | str:
        before: list[tuple[Window, Window]] = []
        for part in seen:
            behind = self.known[id(part)][1]
            if isinstance(behind, str):
                return behind
            before.append(behind)
        name = func.overloadpacket.__name__
        if name == "convolution" and not args[6]:
            kernel, (stride, padding, dilation) = args[1].shape[2:], args[3:6]
        elif name in ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d"):
            kernel, stride, padding, dilation = (*args[1:5], *[[], [0], [1]][len(args) - 2 :])[:4]
            stride = stride or kernel
            dilation = dilation if name != "avg_pool2d" else [1]
        elif all(part.shape[2:] == maps.shape[2:] for part in seen):
            pairs = [[windows[axis] for windows in before] for axis in (0, 1)]
            first, second = (
                Window(min(w.low for w in one), max(w.high for w in one), one[0].step)
                for one in pairs
            )
            return first, second
        else:
            return name
        first, second = (
            before[0][axis].through(
                *(int(value[axis % len(value)]) for value in (kernel, stride, padding, dilation))
            )
            for axis in (0, 1)
        )
        return first, second


def receptive_field(
    features: Callable[[Tensor], Tensor], shape: tuple[int, int, int], device: torch.device
) -> tuple[Window, Window]:
    """What the positions of features(x) see of images (C, H, W), vertically and horizontally.

    Found from the convolutions, poolings and elementwise operations that run.

    Raises:
        UserError: another operation changes the sides of a map.
    """
    with torch.inference_mode(False), torch.no_grad():  # inference mode hides the operations
        x = torch.zeros(1, *shape, device=device)
        with _Trace(x) as trace:
            maps = features(x)
    windows = trace.known[id(maps)][1]
    if isinstance(windows, str):
        raise UserError(
            f"the classifier computes its last feature map through '{windows}': the pixels that a "
            "cell sees are not known; use composition: tile"
        )
    return windows


def split(maps: Tensor, side: int) -> Tensor:
    """Maps (N, C, h, w) to cells (N, P, C·side²), in raster order.

    Where the side does not divide the map, its edge is repeated to fill the last cells.
    """
    below, right = (-size % side for size in maps.shape[2:])
    if below or right:
        maps = functional.pad(maps, [0, right, 0, below], mode="replicate")
    cells = maps.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # N C gh s gw s
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def join(cells: Tensor, shape: tuple[int, int, int], side: int) -> Tensor:
    """The inverse of `split` for maps of the shape (C, h, w)."""
    channels, height, width = shape
    rows, columns = -(-height // side), -(-width // side)
    parts = cells.view(len(cells), rows, columns, channels, side, side)
    maps = parts.permute(0, 3, 1, 4, 2, 5).reshape(
        len(cells), channels, rows * side, columns * side
    )
    return maps[:, :, :height, :width]


class Exchange(ABC):
    """A batch of N maps into which cells of their distractors' maps are copied, P cells each.

    A cell is copied into at most once: the candidates of one that was are not of any use.
    """

    @abstractmethod
    def logits(self) -> Tensor:
        """Of the maps as they are: (N, classes)."""

    @abstractmethod
    def candidates(self, targets: Tensor) -> Tensor:
        """log f_target after copying cell j of the distractor into cell i: (N, P, P), [i, j]."""

    @abstractmethod
    def copy(self, into: Tensor, of: Tensor) -> None:
        """Copy one cell of each distractor: (N,), (N,) of positions."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Go on with the rows of a mask."""


class WholeHead(Exchange):
    """Every candidate map goes through the whole head."""

    def __init__(
        self, classifier: Classifier, maps: Tensor, distractors: Tensor, side: int
    ) -> None:
        channels, height, width = maps.shape[1:]
        self.classifier, self.side, self.shape = classifier, side, (channels, height, width)
        self.cells, self.others = split(maps, side), split(distractors, side)

    def classify(self, cells: Tensor) -> Tensor:
        return self.classifier.classify(join(cells, self.shape, self.side))

    def logits(self) -> Tensor:
        return self.classify(self.cells)

    def candidates(self, targets: Tensor) -> Tensor:
        count = self.cells.shape[1]
        at = torch.arange(count, device=targets.device)
        rows = max(1, FLOATS // (count * count * self.cells[0].numel()))
        scores = []
        for cells, others, wanted in zip(
            *(part.split(rows) for part in (self.cells, self.others, targets)), strict=True
        ):
            changed = cells[:, None, None].repeat(1, count, count, 1, 1)
            changed[:, at, :, at] = others
            answers = self.classify(changed.flatten(0, 2)).log_softmax(dim=1)
            wanted = wanted.repeat_interleave(count * count)[:, None]
            scores.append(answers.gather(1, wanted).view(-1, count, count))
        return torch.cat(scores)

    def copy(self, into: Tensor, of: Tensor) -> None:
        rows = torch.arange(len(into), device=into.device)
        self.cells = self.cells.clone()
        self.cells[rows, into] = self.others[rows, of]

    def keep(self, rows: Tensor) -> None:
        self.cells, self.others = self.cells[rows], self.others[rows]


@dataclass(frozen=True)
class AffineStart:
    """A head that begins with a layer affine in its cells: rest(bias + Σ_i summary_i · weight_i).

    Attributes:
        summary: cells (N, P, C, side²) to what the layer sees of each (N, P, U).
        weight: (P, U, V).
        bias: (V,).
        rest: (M, V) to logits (M, classes).
    """

    summary: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor
    rest: Callable[[Tensor], Tensor]


def affine_start(classifier: Classifier, maps: Tensor, side: int) -> AffineStart | None:
    """How the head begins, where that is known: with global average pooling, or as LeNet's does.

    Args:
        maps: some last feature maps (N, C, h, w).
        side: of a cell.
    """
    channels, height, width = maps.shape[1:]
    if height % side or width % side:
        return None  # what is copied into a cell at the border is cut
    head, cells = classifier.head, height * width // side**2
    if isinstance(classifier, LeNet):
        hidden = classifier.hidden
        if side != 2:
            return None  # other cells than those of its pooling
        return AffineStart(
            summary=lambda part: part.amax(dim=3),
            weight=hidden.weight.view(-1, channels, cells).permute(2, 1, 0),
            bias=hidden.bias,
            rest=lambda mixed: head(functional.relu(mixed)),
        )
    if not isinstance(head, nn.Linear) or head.bias is None:
        return None
    averaged = head(maps.mean(dim=(2, 3))) if head.in_features == channels else None
    if averaged is None or not torch.allclose(classifier.classify(maps), averaged, atol=1e-4):
        return None
    return AffineStart(
        summary=lambda part: part.mean(dim=3),
        weight=(head.weight.T / cells).expand(cells, -1, -1),
        bias=head.bias,
        rest=lambda mixed: mixed,
    )


class AffineHead(Exchange):
    """What every exchange adds to the head's first layer is computed once."""

    def __init__(self, start: AffineStart, maps: Tensor, distractors: Tensor, side: int) -> None:
        self.rest = start.rest
        ours, others = (
            start.summary(split(part, side).unflatten(2, (-1, side * side)))
            for part in (maps, distractors)
        )
        within = torch.einsum("niu,iuv->niv", ours, start.weight)
        self.mixed = start.bias + within.sum(dim=1)
        across = start.weight.transpose(0, 1).flatten(1)  # U, P·V
        moved = (others @ across).unflatten(2, within.shape[1:])
        self.gain = moved.sub_(within[:, None])  # N, P of the distractor, P of the query, V

    def logits(self) -> Tensor:
        return self.rest(self.mixed)

    def candidates(self, targets: Tensor) -> Tensor:
        scores = []
        rows = max(1, FLOATS // self.gain[0].numel()) if len(self.gain) else 1
        for gain, mixed, wanted in zip(
            *(part.split(rows) for part in (self.gain, self.mixed, targets)), strict=True
        ):
            answers = self.rest(mixed[:, None, None] + gain).log_softmax(dim=3)
            wanted = wanted[:, None, None, None].expand(*answers.shape[:3], 1)
            scores.append(answers.gather(3, wanted)[..., 0].transpose(1, 2))
        return torch.cat(scores)

    def copy(self, into: Tensor, of: Tensor) -> None:
        rows = torch.arange(len(into), device=into.device)
        self.mixed = self.mixed + self.gain[rows, of, into]

    def keep(self, rows: Tensor) -> None:
        self.mixed, self.gain = self.mixed[rows], self.gain[rows]


def exchange(classifier: Classifier, maps: Tensor, distractors: Tensor, side: int) -> Exchange:
    """The fastest way to exchange cells between maps (N, C, h, w) that the classifier allows."""
    start = affine_start(classifier, maps, side) if len(maps) else None
    if start is not None:
        return AffineHead(start, maps, distractors, side)
    return WholeHead(classifier, maps, distractors, side)
