"""Projected gradient descent against a plain loop over images, steps and pixels' bounds."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from counterlens.methods.pgd import PGD, Options
from counterlens.runtime.seeding import generator, image_generators


@pytest.fixture
def x(shapes) -> Tensor:
    images = shapes(5, (4, 9), seed=6).images
    images[0] = 0  # at the border of the range everywhere
    images[1] = 1
    return images


SOURCE, TARGET = torch.full((5,), 4), torch.tensor([9, 9, 9, 4, 0])
INDEX = [5, 6, 7, 8, 9]


def attack(method: PGD, x: Tensor) -> Tensor:
    randomness = image_generators(85, "tiny", "explain", INDEX)
    return method.explain(x, SOURCE, TARGET, randomness).counterfactual


def plain(model, x: Tensor, options: Options, starts: Tensor | None) -> Tensor:
    """Madry et al. (2018), written for one image at a time, in [0, 1]."""
    found = []
    for number in range(len(x)):
        query = x[number : number + 1]
        moved = query.clone()
        if starts is not None:
            moved = (query + starts[number]).clamp(0, 1)
        for _ in range(options.steps):
            moved = moved.clone().requires_grad_(True)
            logits = model(moved)
            loss = -torch.log_softmax(logits, 1)[0, int(TARGET[number])]
            gradient = torch.autograd.grad(loss, moved)[0]
            step = moved.detach() - options.step_size * torch.sign(gradient)
            change = torch.maximum(
                torch.minimum(step - query, torch.tensor(options.epsilon)),
                torch.tensor(-options.epsilon),
            )
            moved = (query + change).clamp(0, 1)
        found.append(moved.detach())
    return torch.cat(found)


def starts(epsilon: float) -> Tensor:
    """A uniform point of each image's box, from the image's own generator."""
    drawn = [
        torch.rand(1, 28, 28, generator=one)
        for one in image_generators(85, "tiny", "explain", INDEX)
    ]
    return torch.stack(drawn) * 2 * epsilon - epsilon


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize(("epsilon", "step_size", "steps"), [(0.1, 0.03, 6), (0.02, 0.5, 3)])
def test_against_a_plain_loop(
    create, mismatch, x: Tensor, epsilon: float, step_size: float, steps: int, random_start: bool
) -> None:
    method = create(
        "pgd", epsilon=epsilon, step_size=step_size, steps=steps, random_start=random_start
    )
    model = method.task.classifier
    expected = plain(model, x, method.options, starts(epsilon) if random_start else None)
    assert mismatch(attack(method, x), expected) <= 0.02


def test_the_unnormalised_variant_feeds_the_network_raw_images(create, mismatch, x: Tensor) -> None:
    """Spec 4.4: [0, 1] images where [-1, 1] is expected: the layers see x, not 2x - 1."""
    method = create("pgd", feed_unnormalised=True)
    net = method.task.classifier

    def raw(images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(net.conv1(images).clamp(min=0), 2)
        hidden = functional.max_pool2d(net.conv2(hidden).clamp(min=0), 2)
        return net.head(net.hidden(hidden.flatten(1)).clamp(min=0))

    found = attack(method, x)
    expected = plain(raw, x, method.options, starts(method.options.epsilon))
    assert mismatch(found, expected) <= 0.04
    assert mismatch(found, attack(create("pgd"), x)) > 0.15


@pytest.mark.parametrize("epsilon", [1 / 255, 64 / 255, 0.9])
@pytest.mark.parametrize("steps", [1, 12])
def test_it_stays_in_the_box(create, x: Tensor, epsilon: float, steps: int) -> None:
    found = attack(create("pgd", epsilon=epsilon, step_size=0.1, steps=steps), x)
    assert (found - x).abs().max() <= epsilon + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    assert (found - x).abs().max() > 0.5 * epsilon  # and uses it


def test_it_comes_closer_to_its_target(create, x: Tensor) -> None:
    method = create("pgd", steps=20, step_size=0.02)
    model = method.task.classifier
    before = functional.cross_entropy(model(x), TARGET, reduction="none")
    after = functional.cross_entropy(model(attack(method, x)), TARGET, reduction="none")
    assert (after < before).all()
    few = functional.cross_entropy(
        model(attack(create("pgd", steps=2, step_size=0.02), x)), TARGET, reduction="none"
    )
    assert after.mean() < few.mean()
    assert (model(attack(method, x)).argmax(1) == TARGET).float().mean() >= 0.6


def test_an_image_starts_where_its_own_generator_says(create, x: Tensor) -> None:
    still = create("pgd", steps=1, step_size=1e-12, epsilon=0.1)
    expected = (x + starts(0.1)).clamp(0, 1)
    torch.testing.assert_close(attack(still, x), expected, atol=1e-6, rtol=0)
    other = still.explain(x, SOURCE, TARGET, [generator(n) for n in range(5)]).counterfactual
    assert ((other - expected).abs().amax((1, 2, 3)) > 0.05).all()
    # each image its own: equal images start at different points
    same = attack(still, x[2:3].expand(5, -1, -1, -1).contiguous())
    assert ((same[0] - same[1:]).abs().amax((1, 2, 3)) > 0.05).all()


def test_without_random_start_no_randomness_is_needed(create, x: Tensor) -> None:
    method = create("pgd", random_start=False)
    found = method.explain(x, SOURCE, TARGET, []).counterfactual
    assert torch.equal(found, attack(method, x))


def test_it_always_says_that_it_found_one(create, x: Tensor) -> None:
    method = create("pgd", steps=1, step_size=1e-12, random_start=False)
    answer = method.explain(x, SOURCE, TARGET, [])
    assert answer.found.all() and torch.equal(
        answer.counterfactual.round(decimals=6), x.round(decimals=6)
    )
    assert answer.extras == {}


@pytest.mark.parametrize(
    "change", [{"epsilon": 0}, {"epsilon": -0.1}, {"step_size": 0}, {"steps": 0}]
)
def test_options_that_make_no_sense(change: dict) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({"kind": "pgd", "epsilon": 0.1, **change})


def test_options_as_the_paper_writes_them() -> None:
    options = Options.model_validate({"kind": "pgd", "epsilon": "64/255"})
    assert (options.epsilon, options.step_size, options.steps) == (64 / 255, 1 / 255, 1000)
    assert options.random_start and not options.feed_unnormalised
