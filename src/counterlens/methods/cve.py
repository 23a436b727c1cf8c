"""CVE: counterfactual visual explanations by greedy search (Goyal et al., ICML 2019).

Cells of the query's last feature map are replaced by cells of a distractor's, an image that the
classifier takes for the target class: at each step by the exchange that raises the target's
probability most, until the classifier answers with the target class. The counterfactual is the
query with pixels of the distractor pasted where its cells went; how, neither that paper nor C3LT
(CVPR 2022), which compares with it, says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from counterlens.config import MethodOptions
from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.methods.base import Explanation, Method, Task
from counterlens.methods.parts import cells
from counterlens.runtime.training import Checkpoint, History


class Options(MethodOptions):
    """The search and the composition.

    Attributes:
        cell: side, in positions of the last feature map, of what is exchanged; 2 on LeNet are the
            16 cells after its pooling. Where it does not divide the map the last cells are smaller.
        distractor: a random one of the kept training images of the target class, or the one whose
            embedding is nearest to the query's.
        per_class: how many training images of each class are kept: the first that the classifier
            gives their class.
        composition: the pixels pasted for an exchange are a square in the middle of the cell's
            receptive field, the cell's tile in a grid over the image, or the receptive field.
        patch_size: side of that square; None is the distance between two cells.
        max_edits: exchanges after which the search gives up; None is as many as there are cells.
    """

    label: ClassVar[str] = "CVE"
    trainable: ClassVar[bool] = True
    requires_maps: ClassVar[bool] = True
    explaining: ClassVar[tuple[str, ...]] = (
        "cell",
        "distractor",
        "composition",
        "patch_size",
        "max_edits",
    )

    cell: int = Field(default=1, gt=0)
    distractor: Literal["random", "nearest"] = "random"
    per_class: int = Field(default=1000, gt=0)
    composition: Literal["patch", "tile", "receptive-field"] = "patch"
    patch_size: int | None = Field(default=None, gt=0)
    max_edits: int | None = Field(default=None, gt=0)


class CVE(Method):
    """Found means that the search turned the answer to the exchanged map; the composed image may
    still be answered otherwise.

    Extras: `edit_order` (N, 1, H, W), the number of the edit that pasted each pixel, 0 where none
    did; `edits` (N,), their count.
    """

    def __init__(self, options: Options, task: Task) -> None:
        super().__init__(options, task)
        self.options: Options = options
        self.bank = nn.Module()
        kept = torch.zeros(2, options.per_class, *task.shape, dtype=torch.uint8)
        self.bank.register_buffer("images", kept)
        self.bank.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.bank.to(task.device)
        with torch.no_grad():
            maps = task.classifier.features(torch.zeros(1, *task.shape, device=task.device))
        height, width = maps.shape[2:]
        self.grid = (-(-height // options.cell), -(-width // options.cell))
        self.patch_sides, self.patch_tops = self.patches()

    def trained(self) -> nn.Module:
        return self.bank

    def fit(self, data: ImageSet, checkpoint: Checkpoint | None = None) -> History:
        """Nothing is optimised: images of both classes that the classifier recognises are kept.

        Raises:
            UserError: it recognises none of a class.
        """
        images, count = self.bank.get_buffer("images"), self.bank.get_buffer("count")
        for side, label in enumerate(self.task.pair):
            own = data.images[data.labels == label]
            if len(own):
                answers = self.task.classifier.probabilities(own).argmax(dim=1)
                own = own[answers == label][: self.options.per_class]
            if not len(own):
                raise UserError(
                    f"cve: the classifier recognises no training image of class {label}; train it "
                    "for longer"
                )
            images[side, : len(own)] = (own * 255).round().byte().to(images.device)
            count[side] = len(own)
        return [{"epoch": 1.0, "images": float(count.sum())}]

    @torch.inference_mode()
    def explain(
        self,
        x: Tensor,
        source: Tensor,
        target: Tensor,
        randomness: Sequence[torch.Generator],
    ) -> Explanation:
        """Search, then compose."""
        distractor = self.distractors(x, target, randomness)
        classifier, side = self.task.classifier, self.options.cell
        maps, others = (classifier.features(part) for part in (x, distractor))
        way = cells.exchange(classifier, maps, others, side)
        most = self.options.max_edits or self.grid[0] * self.grid[1]
        into, of, found = search(way, target, self.grid[0] * self.grid[1], most)
        counterfactual, order = self.compose(x, distractor, into, of)
        extras = {"edit_order": order[:, None].float(), "edits": (into >= 0).sum(dim=1).float()}
        return Explanation(counterfactual, found, extras)

    def distractors(
        self, x: Tensor, target: Tensor, randomness: Sequence[torch.Generator]
    ) -> Tensor:
        """One kept image of the target class for each query: (N, C, H, W)."""
        images, count = self.bank.get_buffer("images"), self.bank.get_buffer("count")
        side = (target == self.task.pair[1]).long()
        if self.options.distractor == "random":
            drawn = [
                int(torch.randint(most, (1,), generator=one))
                for most, one in zip(count[side].tolist(), randomness, strict=True)
            ]
            chosen = torch.tensor(drawn, dtype=torch.int64, device=x.device)
        else:
            chosen = torch.zeros_like(side)
            queries = self.task.classifier.embedding(x)
            for half in side.unique().tolist():
                kept = images[half, : count[half]].float() / 255
                known = [self.task.classifier.embedding(part) for part in kept.split(512)]
                distance = torch.cdist(
                    queries[side == half],
                    torch.cat(known),
                    compute_mode="donot_use_mm_for_euclid_dist",
                )
                chosen[side == half] = distance.argmin(dim=1)
        return images[side, chosen].float() / 255

    def compose(
        self, x: Tensor, distractor: Tensor, into: Tensor, of: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Paste pixels of the distractors into the queries, edit by edit.

        A pixel that an edit has pasted stays as it is under the patches of later ones.

        Args:
            into, of: (N, edits) positions of cells, -1 after the last edit.

        Returns:
            The images, and for each pixel (N, H, W) the number of its edit, 0 for none.
        """
        composed = x.clone()
        order = torch.zeros(len(x), *x.shape[2:], dtype=torch.int64, device=x.device)
        rows = torch.arange(len(x), device=x.device)[:, None, None]

        def pixels(cell: Tensor) -> tuple[Tensor, Tensor]:
            down, along = (
                top.to(x.device)[at][:, None] + torch.arange(side, device=x.device)
                for top, at, side in zip(
                    self.patch_tops,
                    (cell // self.grid[1], cell % self.grid[1]),
                    self.patch_sides,
                    strict=True,
                )
            )
            return down[:, :, None], along[:, None, :]

        for edit in range(into.shape[1]):
            there, here = pixels(into[:, edit].clamp(min=0)), pixels(of[:, edit].clamp(min=0))
            free = (order[rows, *there] == 0) & (into[:, edit] >= 0)[:, None, None]
            # an index between two slices puts the channels last
            pasted, before = distractor[rows, :, *here], composed[rows, :, *there]
            composed[rows, :, *there] = torch.where(free[..., None], pasted, before)
            order[rows, *there] = torch.where(free, edit + 1, order[rows, *there])
        return composed, order

    def patches(self) -> tuple[tuple[int, int], tuple[Tensor, Tensor]]:
        """Height and width of a patch, and where that of each cell begins, inside the image."""
        options = self.options
        image = self.task.shape[1:]
        at = [torch.arange(count) for count in self.grid]
        if options.composition == "tile":
            sides = [-(-whole // count) for whole, count in zip(image, self.grid, strict=True)]
            tops = [at[axis] * image[axis] // self.grid[axis] for axis in (0, 1)]
        else:
            task = self.task
            seen = cells.receptive_field(task.classifier.features, task.shape, task.device)
            windows = [window.through(options.cell, options.cell, 0, 1) for window in seen]
            sides = [
                window.size
                if options.composition == "receptive-field"
                else options.patch_size or window.step
                for window in windows
            ]
            sides = [min(side, whole) for side, whole in zip(sides, image, strict=True)]
            tops = [
                (window.centre(place) - (side - 1) / 2 + 0.5).floor().long()
                for window, place, side in zip(windows, at, sides, strict=True)
            ]
        first, second = (
            top.clamp(min=0).clamp(max=whole - side)
            for top, whole, side in zip(tops, image, sides, strict=True)
        )
        return (sides[0], sides[1]), (first, second)


def search(
    way: cells.Exchange, target: Tensor, count: int, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy exchange of cells until the answer is the target: Goyal et al., Algorithm 1.

    No cell is used twice, neither of the queries nor of the distractors. Of equal candidates the
    first in raster order is taken. Images that are done leave the batch.

    Args:
        way: N maps and their distractors'.
        target: (N,).
        count: cells of a map.
        most: exchanges per image.

    Returns:
        The cells copied into and those copied (N, E), -1 after the last; whether the answer is
        the target in the end (N,).
    """
    into = torch.full((len(target), min(most, count)), -1, device=target.device)
    of = into.clone()
    found = torch.zeros_like(target, dtype=torch.bool)
    active = torch.arange(len(target), device=target.device)
    used = torch.zeros(len(target), count, count, dtype=torch.bool, device=target.device)
    for edit in range(into.shape[1] + 1):
        reached = way.logits().argmax(dim=1) == target[active]
        found[active] = reached
        if reached.any():
            way.keep(~reached)
            active, used = active[~reached], used[~reached]
        if edit == into.shape[1] or not len(active):
            break
        scores = way.candidates(target[active]).masked_fill(used, -torch.inf)
        best = scores.flatten(1).argmax(dim=1)
        query_cell, distractor_cell = best // count, best % count
        way.copy(query_cell, distractor_cell)
        into[active, edit], of[active, edit] = query_cell, distractor_cell
        rows = torch.arange(len(active), device=target.device)
        used[rows, query_cell] = True
        used[rows, :, distractor_cell] = True
    edits = int((into >= 0).sum(dim=1).max()) if len(into) else 0
    return into[:, :edits], of[:, :edits], found
