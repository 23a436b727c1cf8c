"""What every method keeps to, whatever it does inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from counterlens import plugins
from counterlens.methods.base import Explanation, Method
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import image_generators
from counterlens.runtime.training import load_model, save_model

KINDS = plugins.known("methods")
EPOCHS = {"cve": 1}  # nothing is optimised: its one epoch keeps images
ENDS_EARLY = ("cem",)  # its bare passes are those of a search that goes to the end


@dataclass
class Queries:
    """A batch of both classes, half each, towards the other class."""

    x: Tensor
    source: Tensor
    target: Tensor
    index: list[int]

    def part(self, chosen: list[int]) -> Queries:
        return Queries(
            self.x[chosen],
            self.source[chosen],
            self.target[chosen],
            [self.index[number] for number in chosen],
        )

    def ask(self, method: Method) -> Explanation:
        randomness = image_generators(85, "tiny", "explain", self.index)
        return method.explain(self.x, self.source, self.target, randomness)


@pytest.fixture
def queries(shapes) -> Queries:
    data = shapes(6, (4, 9), seed=5)
    return Queries(data.images, data.labels, 13 - data.labels, [10, 3, 7, 8, 1, 30])


@pytest.fixture(params=KINDS)
def method(request: pytest.FixtureRequest, create, shapes) -> Method:
    """Ready to explain: trained, where there is something to train."""
    made = create(request.param)
    if made.options.trainable:
        made.fit(shapes(24, (4, 9)))
        freeze(made.trained(), made.task.device)
    return made


def everything(answer: Explanation) -> dict[str, Tensor]:
    return {"counterfactual": answer.counterfactual, "found": answer.found, **answer.extras}


@pytest.fixture
def alike(mismatch) -> Callable[[Explanation, Explanation, list[int]], None]:
    """That an answer is that of some images of another answer."""

    def check(found: Explanation, whole: Explanation, chosen: list[int]) -> None:
        first, second = everything(found), everything(whole)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert mismatch(value, second[name][chosen]) <= 0.02, name

    return check


@pytest.mark.parametrize("count", [6, 1, 0])
def test_shape_range_and_type(method: Method, queries: Queries, count: int) -> None:
    part = queries.part(list(range(count)))
    answer = part.ask(method)
    x = answer.counterfactual
    assert x.shape == part.x.shape and x.dtype == torch.float32
    assert ((x >= 0) & (x <= 1)).all()  # false of NaN too
    assert answer.found.shape == (count,) and answer.found.dtype == torch.bool
    for extra in answer.extras.values():
        assert len(extra) == count and extra.isfinite().all()
    mask = answer.extras.get("mask")
    if mask is not None:
        assert mask.shape == (count, 1, *x.shape[2:]) and ((mask >= 0) & (mask <= 1)).all()
    assert not any(value.requires_grad for value in everything(answer).values())


def test_it_changes_something(method: Method, queries: Queries) -> None:
    moved = (queries.ask(method).counterfactual - queries.x).abs().amax((1, 2, 3))
    assert (moved > 1e-3).all()


def test_the_same_question_gets_the_same_answer(method: Method, queries: Queries, create) -> None:
    first, second = queries.ask(method), queries.ask(method)
    for name, value in everything(first).items():
        assert torch.equal(value, everything(second)[name])


def test_global_randomness_is_neither_used_nor_changed(method: Method, queries: Queries) -> None:
    answers, rest = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(queries.ask(method).counterfactual)
        rest.append(torch.rand(3))
        torch.manual_seed(seed)
        assert torch.equal(torch.rand(3), rest[-1])
    assert torch.equal(*answers)


def test_questions_and_networks_stay_as_they_are(method: Method, queries: Queries, states) -> None:
    before = states()
    whole = queries.part(list(range(6)))
    queries.ask(method)
    for name in ("x", "source", "target"):
        assert torch.equal(getattr(queries, name), getattr(whole, name))
    assert queries.x.grad is None and not queries.x.requires_grad
    assert states() == before


def test_an_answer_does_not_depend_on_the_batch(method: Method, queries: Queries, alike) -> None:
    whole = queries.ask(method)
    for chosen in ([4, 2, 0, 5, 1, 3], [0, 1], [2], [5, 3, 4]):
        alike(queries.part(chosen).ask(method), whole, chosen)


def test_targets_may_be_mixed(method: Method, queries: Queries, alike) -> None:
    """An image towards 9 gets the same answer beside one towards 4 and beside its like."""
    whole = queries.ask(method)
    for target in (4, 9):
        chosen = (queries.target == target).nonzero().flatten().tolist()
        assert len(chosen) == 3
        alike(queries.part(chosen).ask(method), whole, chosen)


def test_the_target_matters(method: Method, queries: Queries) -> None:
    turned = Queries(queries.x, queries.target, queries.source, queries.index)
    moved = (turned.ask(method).counterfactual - queries.ask(method).counterfactual).abs()
    assert (moved.amax((1, 2, 3)) > 1e-4).all()


def test_the_memory_format_does_not_matter(method: Method, queries: Queries, alike) -> None:
    expected, everyone = queries.ask(method), list(range(6))
    last = queries.part(list(range(6)))
    last.x = last.x.contiguous(memory_format=torch.channels_last)
    alike(last.ask(method), expected, everyone)
    turned = queries.part(list(range(6)))
    turned.x = turned.x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.x.is_contiguous()
    alike(turned.ask(method), expected, everyone)


def test_the_counterfactual_stands_on_its_path(method: Method, queries: Queries) -> None:
    """At the end, or where the method's `position` says: its path then goes beyond."""
    walk = method.path(queries.x, queries.source, queries.target)
    if walk is None:
        assert type(method).path is Method.path  # it says so by leaving it out
        return
    steps, classes = len(walk.position), method.task.classifier(queries.x).shape[1]
    assert steps >= 2 and walk.images.shape == (6, steps, *queries.x.shape[1:])
    assert ((walk.images >= 0) & (walk.images <= 1)).all()
    assert walk.position.tolist() == sorted({*walk.position.tolist()})  # one step after another
    assert (walk.position[0], walk.position[-1]) == (0, 1)
    if walk.intended is not None:
        assert walk.intended.shape == (6, steps, classes) and (walk.intended >= 0).all()
        torch.testing.assert_close(walk.intended.sum(dim=2), torch.ones(6, steps))
    if walk.features is not None:
        assert walk.features.shape[:2] == (6, steps) and walk.features.isfinite().all()
    answer = queries.ask(method)
    at = answer.extras.get("position", torch.ones(6))
    nearest = (walk.position - at[:, None]).abs().argmin(dim=1)
    torch.testing.assert_close(
        walk.images[torch.arange(6), nearest], answer.counterfactual, atol=1e-5, rtol=0
    )


def test_its_bare_passes_are_among_those_it_makes(method: Method, queries: Queries, states) -> None:
    """Counted in images that each layer of a network sees."""
    same = queries.part((queries.target == 9).nonzero().flatten().tolist())
    bare, x, before = method.bare(same.x, same.target), same.x.clone(), states()
    if bare is None:
        assert type(method).bare is Method.bare  # it says so by leaving it out
        return
    networks = [method.task.classifier, *method.task.generators.values()]
    made, needed = images_seen(networks, lambda: same.ask(method)), images_seen(networks, bare.run)
    assert needed
    if method.options.kind not in ENDS_EARLY:
        assert all(made[layer] >= count for layer, count in needed.items())
    assert torch.equal(same.x, x) and not same.x.requires_grad and states() == before


def images_seen(networks: Sequence[nn.Module], run: Callable[[], object]) -> Counter[nn.Module]:
    """How many images each convolution or linear layer saw."""
    seen: Counter[nn.Module] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] += len(output)

    layers = {
        layer
        for network in networks
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    hooks = [layer.register_forward_hook(count) for layer in layers]
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_training(kind: str, create, shapes, queries: Queries, tmp_path: Path, states) -> None:
    made = create(kind)
    data = shapes(24, (4, 9))
    before = states()
    if not made.options.trainable:
        for use in (made.trained, lambda: made.fit(data)):
            with pytest.raises(TypeError, match="is not trainable"):
                use()
        return
    images = data.images.clone()
    history = made.fit(data)
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS.get(kind, 2) + 1))
    assert torch.equal(data.images, images) and states() == before
    module = made.trained()
    assert isinstance(module, nn.Module)
    # what is saved is all that it has learnt
    save_model(tmp_path / "model.safetensors", module)
    loaded = create(kind, seed=8)
    load_model(tmp_path / "model.safetensors", loaded.trained())
    for module in (made.trained(), loaded.trained()):
        freeze(module, made.task.device)
    expected, found = queries.ask(made), queries.ask(loaded)
    assert torch.equal(found.counterfactual, expected.counterfactual)
