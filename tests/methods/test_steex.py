"""Loss and steps by hand; fixed regions; targeted regions; success."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from counterlens.methods.steex import STEEX


def ask(method: STEEX, data):
    return method.explain(data.images, data.labels, 13 - data.labels)


def test_the_loss_by_hand(create, shapes) -> None:
    """Cross-entropy and 0.3 x 512 / 8 of the squared distance, image by image."""
    method: STEEX = create("steex")
    data = shapes(3, (4, 9))
    layout = method.sean.layout(data.images)
    before = method.sean.codes(data.images, layout)
    codes = before + 0.1 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([9, 4, 9])
    found = method.losses(layout, codes, before, target)
    for image in range(3):
        drawn = method.sean.synthesise(layout[image : image + 1], codes[image : image + 1])
        answers = method.task.classifier(drawn).softmax(dim=1)[0]
        squares = sum(
            float((codes[image, region] - before[image, region]).square().sum())
            for region in range(3)
        )
        expected = -math.log(float(answers[target[image]])) + 0.3 * 512 / 8 * squares
        assert float(found[image]) == pytest.approx(expected, rel=1e-4)


def test_the_steps_are_adam_s_and_there_are_all_of_them(create, shapes) -> None:
    method: STEEX = create("steex", steps=7, lr=0.05)
    data = shapes(2, (4, 9))
    target = 13 - data.labels
    layout = method.sean.layout(data.images)
    before = method.sean.codes(data.images, layout).detach()
    codes = before.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([codes], 0.05)
    for _ in range(7):
        logits = method.task.classifier(method.sean.synthesise(layout, codes))
        distance = 0.3 * 64 * (codes - before).square().sum()
        loss = functional.cross_entropy(logits, target, reduction="sum") + distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        expected = method.sean.synthesise(layout, codes)
    torch.testing.assert_close(ask(method, data).counterfactual, expected, rtol=1e-3, atol=1e-4)


def test_the_regions_are_the_query_s(create, shapes) -> None:
    method: STEEX = create("steex")
    data = shapes(4, (4, 9))
    answer = ask(method, data)
    labels = method.sean.layout(data.images).argmax(dim=1, keepdim=True)
    assert torch.equal(answer.extras["regions"], labels.float())
    assert answer.extras["code_change"].shape == (4, 3)


def test_only_the_listed_regions_move(create, shapes) -> None:
    data = shapes(4, (4, 9))
    everywhere = ask(create("steex"), data).extras["code_change"]
    targeted = ask(create("steex", regions=(2,)), data).extras["code_change"]
    assert (everywhere > 0).all()
    assert (targeted[:, 2] > 0).all() and (targeted[:, :2] == 0).all()


def test_it_finds_counterfactuals(on_trained, shapes) -> None:
    """Every image moves towards the target, and some reach it: the regions do not change."""
    method: STEEX = on_trained("steex", "sean", steps=40, lr=0.1, distance=0.0)
    data = shapes(8, (4, 9), seed=5)
    answer = ask(method, data)
    classifier, target = method.task.classifier, 13 - data.labels
    assert torch.equal(answer.found, classifier(answer.counterfactual).argmax(dim=1) == target)
    assert answer.found.float().mean() >= 0.4
    layout = method.sean.layout(data.images)
    with torch.no_grad():
        drawn = method.sean.synthesise(layout, method.sean.codes(data.images, layout))
        before, after = (
            functional.cross_entropy(classifier(images), target, reduction="none")
            for images in (drawn, answer.counterfactual)
        )
    assert (after < before).all()


def test_a_heavy_distance_keeps_the_codes(create, shapes) -> None:
    data = shapes(4, (4, 9))
    light, heavy = (
        ask(create("steex", steps=40, lr=0.01, distance=weight), data).extras["code_change"]
        for weight in (0.0, 1000.0)
    )
    assert heavy.sum() < 0.2 * light.sum()
