"""The contract of every shipped classifier, and each architecture against its source."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from counterlens import plugins
from counterlens.classifiers.base import Classifier
from counterlens.classifiers.gap_resnet import GapResNet
from counterlens.classifiers.gap_resnet import Options as GapOptions
from counterlens.classifiers.lenet import LeNet
from counterlens.classifiers.lenet import Options as LeNetOptions
from counterlens.runtime.device import freeze

CPU = torch.device("cpu")
# one that loads weights of a fixed shape is tested by itself
KINDS = [
    kind
    for kind in plugins.known("classifiers")
    if plugins.options_class("classifiers", kind).trained
]


def create(kind: str, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10) -> Classifier:
    """A fresh network that has seen some images, so that batch statistics are not the default."""
    torch.manual_seed(3)
    options = plugins.options_class("classifiers", kind).model_validate({"kind": kind})
    model = plugins.create("classifiers", options, Classifier, shape=shape, classes=classes)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.rand(16, *shape))
    return model.eval()


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Classifier:
    return create(request.param)


def images(count: int, channels: int = 1, side: int = 28) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


# Contract


def test_one_pass_gives_maps_and_logits(model: Classifier) -> None:
    x = images(3)
    maps = model.maps(x)
    assert len(maps) >= 2
    for feature_map in maps:
        assert feature_map.ndim == 4 and len(feature_map) == 3
    logits = model(x)
    assert logits.shape == (3, 10)
    assert torch.equal(model.classify(maps[-1]), logits)
    assert torch.equal(model.features(x), maps[-1])
    assert torch.equal(model.embedding(x), model.embed(maps[-1]))
    assert torch.equal(model.head(model.embedding(x)), logits)
    assert logits.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_has_gap_means_what_it_says(kind: str) -> None:
    model = create(kind)
    last = model.features(images(2))
    pooled = last.mean((2, 3))
    declared = plugins.options_class("classifiers", kind).has_gap  # type: ignore[attr-defined]
    embedded = model.embed(last)
    assert (embedded.shape == pooled.shape and torch.allclose(embedded, pooled)) == declared
    if declared:
        assert isinstance(model.head, nn.Linear)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (16, 16), (17, 23), (28, 40)], ids=str)
def test_other_shapes_and_classes(kind: str, size: tuple[int, int]) -> None:
    model = create(kind, shape=(3, *size), classes=4)
    assert model(torch.rand(2, 3, *size)).shape == (2, 4)


def test_a_frozen_classifier_lets_gradients_through_to_images_only(model: Classifier) -> None:
    model.train()
    freeze(model, CPU)
    assert not any(module.training for module in model.modules())
    x = images(2).requires_grad_(True)
    model(x)[:, 3].sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_answers_do_not_depend_on_the_batch(model: Classifier) -> None:
    x = images(7)
    whole = model.probabilities(x)
    assert whole.shape == (7, 10) and not whole.requires_grad
    torch.testing.assert_close(whole, model(x).softmax(1).detach())
    torch.testing.assert_close(whole.sum(1), torch.ones(7))
    for size in (1, 3):
        torch.testing.assert_close(model.probabilities(x, batch_size=size), whole)
    torch.testing.assert_close(model.probabilities(x.flip(0)), whole.flip(0))
    assert model.probabilities(x[:0]).shape[0] == 0


# LeNet


def test_lenet_has_the_paper_s_size() -> None:
    model = create("lenet")
    assert sum(p.numel() for p in model.parameters()) == 317_066
    maps = model.maps(images(2))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 24, 24), (64, 8, 8)]
    assert all((m >= 0).all() for m in maps)  # after ReLU, before pooling
    assert model.embedding(images(2)).shape == (2, 256)


def test_lenet_against_its_table() -> None:
    """Spec 3.1, written out: conv 5x5, ReLU, pool, twice; 1024 to 256, ReLU, 256 to 10."""
    model = create("lenet")
    p = dict(model.named_parameters())
    hidden = images(4) / 0.5 - 1  # mean 0.5, std 0.5
    for layer in ("conv1", "conv2"):
        hidden = functional.conv2d(hidden, p[f"{layer}.weight"], p[f"{layer}.bias"]).clamp(min=0)
        n, c, h, w = hidden.shape
        hidden = hidden.reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
    assert hidden.shape == (4, 64, 4, 4)
    hidden = (hidden.flatten(1) @ p["hidden.weight"].T + p["hidden.bias"]).clamp(min=0)
    expected = hidden @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(model(images(4)), expected)


def test_lenet_drops_out_in_training_only() -> None:
    model = LeNet(LeNetOptions(kind="lenet"), (1, 28, 28), 10)
    x = images(4)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# Residual network


def test_the_residual_network_s_logits_are_exactly_linear_in_the_pooled_map() -> None:
    model = create("gap-resnet")
    maps = model.maps(images(3))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 28, 28), (32, 14, 14), (64, 7, 7)]
    head = model.head
    assert isinstance(head, nn.Linear)
    z = maps[-1].mean((2, 3))
    assert torch.equal(model(images(3)), functional.linear(z, head.weight, head.bias))


@pytest.mark.parametrize("widths", [(4,), (4, 8), (4, 8, 8, 12)])
def test_the_residual_network_has_a_stage_per_width(widths: tuple[int, ...]) -> None:
    options = GapOptions(kind="gap-resnet", widths=widths)
    model = GapResNet(options, (1, 28, 28), 5).eval()
    sides = [28, 14, 7, 4]
    assert [tuple(m.shape[1:]) for m in model.maps(images(2))] == [
        (width, side, side) for width, side in zip(widths, sides, strict=False)
    ]
    assert model(images(2)).shape == (2, 5)


def test_a_residual_block_adds_its_input() -> None:
    """With the second normalisation at zero a block is the ReLU of its shortcut."""
    model = GapResNet(GapOptions(kind="gap-resnet", widths=(4,)), (1, 28, 28), 5).eval()
    block = model.stages[0]
    nn.init.zeros_(block.residual[-1].weight)  # type: ignore[index, union-attr, arg-type]
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.clamp(min=0))
