"""CVE's cells, search and composition, by hand and against the search of one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens.data.base import ImageSet
from counterlens.errors import UserError
from counterlens.methods.cve import CVE, search
from counterlens.methods.parts import cells
from counterlens.methods.parts.cells import AffineHead, WholeHead, Window
from counterlens.runtime.seeding import image_generators

CPU = torch.device("cpu")
SHAPE = (1, 28, 28)


@pytest.fixture
def lenet_method(models, create) -> Callable[..., CVE]:
    """CVE on LeNet, with every training image in its bank."""

    def make(**changes) -> CVE:
        template = create("cve")
        options = template.options.model_copy(update={"cell": 2, **changes})
        made = CVE(options, replace(template.task, classifier=models["lenet"]))
        noise = torch.Generator().manual_seed(1)
        made.bank.get_buffer("images").random_(0, 256, generator=noise)
        made.bank.get_buffer("count").fill_(12)
        return made

    return make


# Cells


def test_the_receptive_field_of_lenet_is_the_paper_s(models) -> None:
    """Pooled cell r sees rows 4r to 4r + 15."""
    seen = cells.receptive_field(models["lenet"].features, SHAPE, CPU)
    assert seen == (Window(0, 13, 2), Window(0, 13, 2))
    window = seen[0].through(2, 2, 0, 1)
    assert (window, window.size) == (Window(0, 15, 4), 16)
    assert window.centre(torch.arange(4)).tolist() == [7.5, 11.5, 15.5, 19.5]


def test_a_residual_branch_sees_what_its_longest_way_sees(models) -> None:
    """Stem 3; two 3x3 of stage 1: 7; 3x3 of stride 2, then 3x3 at stride 2: 13."""
    seen = cells.receptive_field(models["gap-resnet"].features, SHAPE, CPU)
    assert seen == (Window(-6, 6, 2), Window(-6, 6, 2))


def test_kernels_that_are_not_square_and_dilated() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 2, (3, 5), stride=(1, 2), padding=(0, 2)),
        nn.AvgPool2d(2, stride=1, padding=1),
        nn.Conv2d(2, 2, 3, dilation=2),
    )
    seen = cells.receptive_field(layers, (1, 20, 30), CPU)
    # rows: 3, then 2 with padding 1, then 3 of dilation 2; columns at stride 2
    assert seen == (Window(-1, 6, 1), Window(-4, 10, 2))


def test_only_pixels_inside_the_window_matter() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 3, 2)
    )
    for parameter in layers.parameters():
        parameter.data.abs_()  # so that nothing cancels
    window = cells.receptive_field(layers, (1, 24, 24), CPU)[0]
    x = torch.rand(1, 1, 24, 24)
    changing = []
    for row in range(24):
        other = x.clone()
        other[:, :, row] += 100
        changing.append(bool((layers(other) != layers(x))[:, :, 2].any()))
    first, last = window.low + 2 * window.step, window.high + 2 * window.step
    assert [row for row, found in enumerate(changing) if found] == list(range(first, last + 1))


def test_an_operation_that_is_not_known_is_told() -> None:
    with pytest.raises(UserError, match=r"through 'upsample_nearest2d'.*use composition: tile"):
        cells.receptive_field(nn.Upsample(scale_factor=2), SHAPE, CPU)


def test_what_follows_the_last_map_does_not_matter() -> None:
    """A user's network is run to its end, and gives its maps by hooks."""
    convolution, head = nn.Conv2d(1, 2, 3, 2, 1), nn.Linear(2, 3)

    def features(x: Tensor) -> Tensor:
        maps = convolution(x)
        head(maps.mean(dim=(2, 3))).relu()
        return maps

    assert cells.receptive_field(features, SHAPE, CPU) == (Window(-1, 1, 2), Window(-1, 1, 2))


def test_cells_come_back_and_are_those_of_the_pooling() -> None:
    maps = torch.rand(3, 4, 6, 8)
    parts = cells.split(maps, 2)
    assert parts.shape == (3, 12, 16)
    for side in (2, 3, 5, 9):
        assert torch.equal(cells.join(cells.split(maps, side), (4, 6, 8), side), maps)
    pooled = functional.max_pool2d(maps, 2).flatten(2).transpose(1, 2)
    assert torch.equal(parts.unflatten(2, (4, 4)).amax(dim=3), pooled)


@pytest.mark.parametrize(("name", "side"), [("lenet", 2), ("gap-resnet", 2), ("gap-resnet", 7)])
def test_a_head_that_begins_affine_gives_what_the_whole_head_gives(
    name: str, side: int, models, shapes
) -> None:
    classifier = models[name]
    with torch.inference_mode():
        maps, others = classifier.features(shapes(8, (4, 9)).images).chunk(2)
        fast = cells.exchange(classifier, maps, others, side)
        slow = WholeHead(classifier, maps, others, side)
        assert isinstance(fast, AffineHead)
        targets = torch.tensor([9, 4, 9, 4])
        count = maps.shape[2] * maps.shape[3] // side**2
        free = torch.ones(4, count, dtype=torch.bool)  # a cell is exchanged once
        for step in range(3):
            assert fast.candidates(targets).shape == (4 - step, count, count)
            torch.testing.assert_close(fast.logits(), slow.logits(), atol=1e-3, rtol=1e-3)
            found, wanted = (way.candidates(targets)[free] for way in (fast, slow))
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
            rows = torch.arange(4 - step)
            into, of = (rows + 2 * step) % count, (3 * rows) % count
            free[rows, into] = False
            for way in (fast, slow):
                way.copy(into, of)
                way.keep(rows > 0)
            targets, free = targets[1:], free[1:]


def test_other_cells_go_through_the_whole_head(models, shapes) -> None:
    maps = models["lenet"].features(shapes(2).images)
    for side in (1, 3):
        assert isinstance(cells.exchange(models["lenet"], maps, maps, side), WholeHead)


def test_the_whole_head_in_parts(models, shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, others = models["lenet"].features(shapes(6).images).chunk(2)
    targets = torch.tensor([1, 2, 3])
    whole = WholeHead(models["lenet"], maps, others, 2).candidates(targets)
    monkeypatch.setattr(cells, "FLOATS", 1)
    parts = WholeHead(models["lenet"], maps, others, 2).candidates(targets)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    affine = cells.exchange(models["lenet"], maps, others, 2).candidates(targets)
    torch.testing.assert_close(affine, whole, atol=1e-3, rtol=1e-3)


# Search


class Sums(cells.Exchange):
    """The target's logit is the sum of the cells, the other's 0: the best exchange is known."""

    def __init__(self, ours: Tensor, others: Tensor) -> None:
        self.ours, self.others = ours.clone(), others

    def logits(self) -> Tensor:
        total = self.ours.sum(dim=1)
        return torch.stack([0 * total, total], dim=1)

    def candidates(self, targets: Tensor) -> Tensor:
        return self.others[:, None] - self.ours[:, :, None]

    def copy(self, into: Tensor, of: Tensor) -> None:
        rows = torch.arange(len(into))
        self.ours[rows, into] = self.others[rows, of]

    def keep(self, rows: Tensor) -> None:
        self.ours, self.others = self.ours[rows], self.others[rows]


def test_the_search_by_hand() -> None:
    ours = torch.tensor([[-5.0, -1, -3], [1, 1, 1], [-9, -9, -9]])
    others = torch.tensor([[1.0, 3, 2], [0, 0, 0], [1, 1, 2]])
    into, of, found = search(Sums(ours, others), torch.ones(3).long(), 3, 3)
    # -9: cell 0 gets 3, total -1; cell 2 gets 2, total 4
    assert into.tolist() == [[0, 2, -1], [-1, -1, -1], [0, 1, 2]]
    assert of.tolist() == [[1, 2, -1], [-1, -1, -1], [2, 0, 1]]
    assert found.tolist() == [True, True, True]
    few = search(Sums(ours, others), torch.ones(3).long(), 3, 1)
    assert few[0].tolist() == [[0], [-1], [0]] and few[2].tolist() == [False, True, False]


def test_no_cell_is_used_twice(lenet_method, shapes) -> None:
    made = lenet_method()
    data = shapes(8, (4, 9), seed=5)
    targets = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    features = made.task.classifier.features
    with torch.inference_mode():
        way = cells.exchange(
            made.task.classifier, features(data.images), features(data.images.flip(0)), 2
        )
        into, of, _ = search(way, targets, 16, 16)
    assert (into >= 0).sum() > 4
    for row in (*into.tolist(), *of.tolist()):
        used = [cell for cell in row if cell >= 0]
        assert len(used) == len(set(used)) and row == used + [-1] * (len(row) - len(used))


@pytest.mark.parametrize("cell", [2, 4])
def test_the_batch_gives_what_the_search_of_one_image_gives(
    cell: int, lenet_method, shapes, mismatch, references
) -> None:
    made = lenet_method(cell=cell)
    data = shapes(6, (4, 9), seed=5)

    def ask(function):
        randomness = image_generators(85, "tiny", "explain", list(range(6)))
        return function(data.images, data.labels, 13 - data.labels, randomness)

    answer = ask(made.explain)
    expected = ask(partial(references.of("cve"), made))
    assert mismatch(answer.counterfactual, expected) <= 0.02
    assert answer.extras["edits"].max() >= 1


def test_the_same_on_global_average_pooling(create, shapes, mismatch, references) -> None:
    made = create("cve", cell=2)
    made.fit(shapes(24, (4, 9)))
    data = shapes(6, (4, 9), seed=5)

    def ask(function):
        randomness = image_generators(85, "tiny", "explain", list(range(6)))
        return function(data.images, data.labels, 13 - data.labels, randomness)

    answer = ask(made.explain)
    assert answer.extras["edits"].max() >= 1
    expected = ask(partial(references.of("cve"), made))
    assert mismatch(answer.counterfactual, expected) <= 0.02


# Composition


def test_a_patch_by_hand(lenet_method) -> None:
    made = lenet_method()
    x, distractor = torch.zeros(2, *SHAPE), torch.rand(2, *SHAPE) + 0.1
    into, of = torch.tensor([[0, 15], [6, -1]]), torch.tensor([[6, 1], [15, -1]])
    image, order = made.compose(x, distractor, into, of)
    expected, numbers = torch.zeros(2, *SHAPE), torch.zeros(2, 28, 28).long()
    # cell (r, s) has its 4x4 patch at 4r + 6, 4s + 6
    expected[0, :, 6:10, 6:10] = distractor[0, :, 10:14, 14:18]
    expected[0, :, 18:22, 18:22] = distractor[0, :, 6:10, 10:14]
    expected[1, :, 10:14, 14:18] = distractor[1, :, 18:22, 18:22]
    numbers[0, 6:10, 6:10], numbers[0, 18:22, 18:22], numbers[1, 10:14, 14:18] = 1, 2, 1
    assert torch.equal(image, expected) and torch.equal(order, numbers)


def test_the_sides_and_places_of_all_compositions(lenet_method) -> None:
    for changes, side, tops in (
        ({}, 4, [6, 10, 14, 18]),
        ({"patch_size": 6}, 6, [5, 9, 13, 17]),
        ({"patch_size": 26}, 26, [0, 0, 2, 2]),  # shifted inside
        ({"composition": "tile"}, 7, [0, 7, 14, 21]),
        ({"composition": "receptive-field"}, 16, [0, 4, 8, 12]),
        ({"cell": 1, "patch_size": 4}, 4, [5, 7, 9, 11, 13, 15, 17, 19]),
        ({"cell": 1, "composition": "tile"}, 4, [0, 3, 7, 10, 14, 17, 21, 24]),
    ):
        made = lenet_method(**changes)
        assert made.patch_sides == (side, side)
        assert all(found.tolist() == tops for found in made.patch_tops)


def test_a_pixel_keeps_what_its_first_edit_gave_it(lenet_method) -> None:
    made = lenet_method(composition="receptive-field")
    x = torch.zeros(1, *SHAPE)
    into, of = torch.tensor([[0, 1]]), torch.tensor([[15, 0]])
    image, order = made.compose(x, torch.rand(1, *SHAPE) + 0.1, into, of)
    first, _ = made.compose(x, image * 0 + 2, into[:, :1], of[:, :1])
    assert ((order == 1) == (first[:, 0] == 2)).all() and (order == 2).sum() == 16 * 4


def test_an_image_that_has_the_target_s_answer_stays(lenet_method, shapes) -> None:
    made = lenet_method()
    x = shapes(3, (4, 9)).images
    target = made.task.classifier(x).argmax(dim=1)
    answer = made.explain(x, torch.full((3,), 4), target, image_generators(1, "t", "e", [1, 2, 3]))
    assert answer.found.all() and torch.equal(answer.counterfactual, x)
    assert (answer.extras["edits"] == 0).all() and (answer.extras["edit_order"] == 0).all()


# Distractors


def test_only_images_that_are_recognised_are_kept(create, shapes) -> None:
    made = create("cve", per_class=5)
    data = shapes(40, (4, 9))
    wrong = ImageSet(
        torch.cat([data.images, data.images]),
        torch.cat([13 - data.labels, data.labels]),
        torch.arange(80),
    )
    made.fit(wrong)
    answers = made.task.classifier(made.bank.get_buffer("images").flatten(0, 1) / 255)
    kept = made.bank.get_buffer("count").tolist()
    assert kept == [5, 5]
    assert answers.argmax(dim=1).tolist() == [4] * 5 + [9] * 5
    with pytest.raises(UserError, match="recognises no training image of class"):
        made.fit(ImageSet(data.images[:0], data.labels[:0], torch.arange(0)))


def test_a_distractor_is_of_the_target_class_and_of_its_image_s_own_choice(create, shapes) -> None:
    made = create("cve", per_class=10)
    made.fit(shapes(40, (4, 9)))
    x, target = shapes(6, (4, 9), seed=5).images, torch.tensor([9, 4, 9, 4, 9, 4])
    numbers = [3, 1, 4, 1, 5, 9]
    whole = made.distractors(x, target, image_generators(85, "t", "e", numbers))
    assert torch.equal(made.task.classifier(whole).argmax(dim=1), target)
    assert torch.equal(whole[1], whole[3])  # the same generator
    alone = made.distractors(x[2:3], target[2:3], image_generators(85, "t", "e", numbers[2:3]))
    assert torch.equal(alone[0], whole[2])


def test_the_nearest_is_the_nearest_in_the_embedding(create, shapes) -> None:
    made = create("cve", per_class=10, distractor="nearest")
    made.fit(shapes(40, (4, 9)))
    bank = made.bank.get_buffer("images")[1, : made.bank.get_buffer("count")[1]] / 255
    wanted = bank[[7, 2]]
    found = made.distractors(wanted, torch.tensor([9, 9]), [])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("cell", "cells"), [(3, 9), (5, 4), (9, 1)])
def test_cells_that_do_not_divide_the_map(cell: int, cells: int, lenet_method, shapes) -> None:
    """Of 8x8 positions; those at the border are smaller."""
    made = lenet_method(cell=cell)
    assert made.grid[0] * made.grid[1] == cells
    data = shapes(4, (4, 9), seed=5)
    randomness = image_generators(85, "tiny", "explain", range(4))
    answer = made.explain(data.images, data.labels, 13 - data.labels, randomness)
    assert answer.counterfactual.shape == data.images.shape
    assert (answer.extras["edits"] <= cells).all()
