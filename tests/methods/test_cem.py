"""CEM's equations by hand, and the batched search against the published loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterlens.classifiers.base import Classifier
from counterlens.config import GeneratorOptions
from counterlens.generators.cem_autoencoder import CemAutoencoder
from counterlens.generators.cem_autoencoder import Options as AutoencoderOptions
from counterlens.methods.base import Explanation, Task
from counterlens.methods.cem import CEM, Options, Search, next_step, shrink

SOURCE, TARGET, OTHER = 0, 1, 2


class Linear(Classifier):
    """Logits W x + b of images of two pixels; counts the images that it is asked with gradient."""

    def __init__(self, weight: list[list[float]], bias: list[float]) -> None:
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.head.weight.data = torch.tensor(weight, dtype=torch.float32)
        self.head.bias.data = torch.tensor(bias, dtype=torch.float32)
        self.requires_grad_(False).eval()
        self.asked: list[int] = []

    def maps(self, x: Tensor) -> list[Tensor]:
        if x.requires_grad:
            self.asked.append(len(x))
        return [x]

    def embed(self, last_map: Tensor) -> Tensor:
        return last_map.flatten(1)


def method(classifier: Classifier, **changes: Any) -> CEM:
    options = Options.model_validate({"kind": "cem", "gamma": 0, **changes})
    task = Task(classifier, {}, (1, 1, 2), ((SOURCE, TARGET),), torch.device("cpu"), 0)
    return CEM(options, task)


def ask(made: CEM, x: Tensor) -> Explanation:
    count = len(x)
    return made.explain(x, torch.full((count,), SOURCE), torch.full((count,), TARGET))


@pytest.fixture
def towards() -> Linear:
    """Source until the first pixel is above 0.9."""
    return Linear([[-1, 0], [1, 0], [0, 0]], [1.8, 0, -9])


def test_shrinkage_by_hand() -> None:
    x = torch.full((5,), 0.5)
    y = torch.tensor([0.59, 0.75, 1.3, 0.3, 0.05])
    expected = torch.tensor([0.5, 0.65, 1.0, 0.4, 0.15])
    torch.testing.assert_close(shrink(y, x, 0.1), expected)
    assert shrink(torch.tensor([-0.3]), x[:1], 0.1).item() == 0


def test_two_iterations_by_hand(towards: Linear) -> None:
    made = method(towards, iterations=4, lr=0.1, initial_c=2, beta=0.1)
    x = torch.tensor([0.2, 0.5]).view(1, 1, 1, 2)
    search = Search.start(x, torch.tensor([SOURCE]), torch.tensor([TARGET]), 2.0)
    made.advance(search)
    # gradient 2 · (-1 - 1) = -4: y = 0.2 + 0.1 · 4, shrunk by 0.1; look-ahead 1/4 of the step
    torch.testing.assert_close(search.iterate.flatten(), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(search.ahead.flatten(), torch.tensor([0.575, 0.5]))
    made.advance(search)
    # gradient -4 + 2 · (0.575 - 0.2), step 0.1 · √(3/4); look-ahead 2/5
    moved = 0.575 + 0.1 * 0.75**0.5 * 3.25 - 0.1
    torch.testing.assert_close(search.iterate.flatten(), torch.tensor([moved, 0.5]))
    ahead = moved + 0.4 * (moved - 0.5)
    torch.testing.assert_close(search.ahead.flatten(), torch.tensor([ahead, 0.5]))
    assert search.iteration.tolist() == [2] and not search.succeeded.any()


def test_the_gradient_has_the_auto_encoder_s_term(create, shapes) -> None:
    made = create("cem", gamma=3.0, initial_c=2.0)
    x = shapes(2, (4, 9)).images
    source, target = torch.tensor([4, 9]), torch.tensor([9, 4])
    search = Search.start(x, source, target, 2.0)
    search.ahead = (x + 0.1).clamp(max=1)
    y = search.ahead.clone().requires_grad_(True)
    logits = made.task.classifier(y)
    others = logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)
    loss = 2 * (others - logits.gather(1, target[:, None])[:, 0]).clamp(min=0).sum()
    residual = (y - made.autoencoder.reconstruct(y)).square().sum()
    total = loss + (y - x).square().sum() + 3 * residual
    (expected,) = torch.autograd.grad(total, y)
    torch.testing.assert_close(made.gradient(search), expected, atol=1e-4, rtol=1e-4)


def test_the_weight_is_searched_by_bisection() -> None:
    x = torch.zeros(4, 1, 1, 2)
    search = Search.start(x, torch.zeros(4).long(), torch.ones(4).long(), 10.0)
    search.iterate = search.ahead = x + 1
    search.iteration = torch.full((4,), 5)
    search.succeeded = torch.tensor([False, True, False, True])
    search.high[2], search.low[2], search.weight[2] = 16.0, 4.0, 10.0
    next_step(search, torch.tensor([True, True, True, False]))
    assert search.weight.tolist() == [100, 5, 13, 10]
    assert search.low.tolist() == [10, 0, 10, 0]
    assert search.high.tolist() == [torch.inf, 10, 16, torch.inf]
    assert search.step.tolist() == [1, 1, 1, 0]
    assert search.iteration.tolist() == [0, 0, 0, 5]
    assert search.succeeded.tolist() == [False, False, False, True]
    assert search.iterate.flatten(1).sum(dim=1).tolist() == [0, 0, 0, 2]


def test_each_failure_makes_the_weight_tenfold() -> None:
    never = Linear([[0, 0], [0, 0], [0, 0]], [5.0, 0, 0])
    made = method(never, search_steps=3, iterations=1)
    x = torch.rand(2, 1, 1, 2)
    weights: list[list[float]] = []
    original = made.advance

    def advance(search: Search) -> None:
        weights.append(search.weight.tolist())
        original(search)

    made.advance = advance  # type: ignore[method-assign]
    answer = ask(made, x)
    assert weights == [[10, 10], [100, 100], [1000, 1000]]
    assert not answer.found.any() and (answer.counterfactual == 0.5).all()
    assert answer.extras["elastic_net"].tolist() == [0, 0]
    kept = ask(method(never, search_steps=1, iterations=1, not_found="query"), x)
    assert torch.equal(kept.counterfactual, x)


def test_an_image_that_is_no_longer_of_the_source_class_leaves_at_once(towards: Linear) -> None:
    made = method(towards, search_steps=1, iterations=6, initial_c=6)
    x = torch.tensor([[0.95, 0.1], [0.2, 0.1]]).view(2, 1, 1, 2)
    answer = ask(made, x)
    assert torch.equal(answer.counterfactual[0], x[0]) and answer.found.tolist() == [True, False]
    assert towards.asked == [2, 1, 1, 1, 1, 1]


def test_a_search_step_ends_when_it_cannot_leave_the_query_any_more(towards: Linear) -> None:
    # the gradient at the query is -2 c: a step of the rate r moves the image if 2 c r > beta
    made = method(towards, iterations=50, search_steps=4, lr=0.1, initial_c=0.01, beta=0.1)
    answer = ask(made, torch.tensor([0.2, 0.5]).view(1, 1, 1, 2))
    # c = 0.01 and 0.1 stay; 1 moves it until r = 0.1 sqrt(1 - 38/50), and the look-ahead comes back
    # a little later; 10 flips it and moves it to the end
    assert 38 <= len(towards.asked) - (1 + 1 + 50) < 45
    assert answer.found.item()


def test_the_closest_success_is_kept(towards: Linear) -> None:
    x = torch.tensor([0.2, 0.5]).view(1, 1, 1, 2)
    distances = []
    for steps in (2, 4, 9):
        made = method(towards, search_steps=steps, iterations=60, lr=0.02, initial_c=1)
        answer = ask(made, x)
        first, second = answer.counterfactual.flatten().tolist()
        assert answer.found.all() and second == 0.5 and first > 0.9
        distance = (first - 0.2) ** 2 + 0.1 * (first - 0.2)
        assert answer.extras["elastic_net"].item() == pytest.approx(distance, rel=1e-4)
        distances.append(distance)
    assert distances == sorted(distances, reverse=True)


def test_found_is_not_valid() -> None:
    """Pairwise: more ink raises the target over the source, and a third class over both."""
    third = Linear([[0, 0], [1, 0], [3, 0]], [0.5, 0, -0.5])
    x = torch.tensor([0.1, 0.1]).view(1, 1, 1, 2)
    loose = ask(method(third, search_steps=4, iterations=50), x)
    assert loose.found.all() and third(loose.counterfactual).argmax(dim=1).item() == OTHER
    strict = {"targeting": "full", "search_steps": 4, "iterations": 50}
    assert not ask(method(third, **strict), x).found.any()
    assert not ask(
        method(third, **strict | {"targeting": "pairwise"}, success="reach-target"), x
    ).found.any()


def test_kappa_asks_for_a_margin(towards: Linear) -> None:
    x = torch.tensor([0.2, 0.5]).view(1, 1, 1, 2)
    for targeting in ("pairwise", "full"):
        made = method(towards, kappa=0.15, targeting=targeting, search_steps=6, iterations=80)
        answer = ask(made, x)
        logits = towards(answer.counterfactual)[0]
        assert answer.found.all() and logits[TARGET] - logits[SOURCE] >= 0.15 - 1e-5


def in_double_precision(made: CEM) -> CEM:
    """The same search: its iteration enlarges rounding until single pixels differ."""
    task = replace(
        made.task,
        classifier=copy.deepcopy(made.task.classifier).double(),
        generators={k: copy.deepcopy(v).double() for k, v in made.task.generators.items()},
    )
    return CEM(made.options, task)


@pytest.mark.parametrize(
    "changes",
    [
        {"targeting": "full"},
        {"targeting": "pairwise", "initial_c": 0.5},
        {"targeting": "full", "kappa": 0.01, "gamma": 0},
        {"targeting": "full", "gamma": 100},  # not every image is found
        {"targeting": "full", "success": "leave-source", "beta": 0.02},
    ],
)
def test_the_batch_gives_what_the_published_loops_give(
    changes: dict, create, shapes, references
) -> None:
    settings = {"search_steps": 2, "iterations": 30, "beta": 0.005, **changes}
    made = in_double_precision(create("cem", **settings))
    x = shapes(4, (4, 9), seed=5).images.double()
    source = made.task.classifier(x).argmax(dim=1)
    target = (source + torch.tensor([1, 2, 3, 4])) % 10
    answer = made.explain(x, source, target)
    expected = references.of("cem")(made, x, source, target, ())
    torch.testing.assert_close(answer.counterfactual, expected, atol=1e-6, rtol=0)
    assert answer.found.any()


def test_ink_is_only_added(create, shapes) -> None:
    made = create("cem", targeting="pairwise", iterations=20)
    data = shapes(8, (4, 9), seed=6)
    answer = made.explain(data.images, data.labels, 13 - data.labels)
    assert answer.found.any()
    assert (answer.counterfactual >= data.images)[answer.found].all()


def test_patience_ends_a_step_early_and_only_after_a_success(towards: Linear) -> None:
    x = torch.tensor([0.2, 0.5]).view(1, 1, 1, 2)
    settings = {"search_steps": 4, "iterations": 60, "lr": 0.02}
    whole = ask(method(towards, **settings), x)
    asked = len(towards.asked)
    same = ask(method(towards, **settings, patience=60), x)
    assert torch.equal(same.counterfactual, whole.counterfactual)
    before = len(towards.asked)
    short = ask(method(towards, **settings, patience=5), x)
    assert short.found.all() and len(towards.asked) - before < asked


def test_what_cannot_work_is_told(create, models) -> None:
    known: dict[str, GeneratorOptions] = {
        name: model.options for name, model in models.items() if hasattr(model, "latent_dim")
    }
    options: Callable[..., Options] = lambda **given: Options.model_validate(  # noqa: E731
        {"kind": "cem", **given}
    )
    assert options(autoencoder="cem-autoencoder").conflict(known) is None
    assert options(gamma=0).conflict(known) is None and options(gamma=0).generators() == ()
    assert "name a cem-autoencoder" in str(options().conflict(known))
    assert options(autoencoder="vae").conflict(known) == "'vae' is no cem-autoencoder"


def test_other_sizes_and_colours(models) -> None:
    class Colour(Linear):
        def embed(self, last_map: Tensor) -> Tensor:
            return last_map.mean(dim=(1, 2))[:, :2]

    autoencoder = CemAutoencoder(AutoencoderOptions(kind="cem-autoencoder"), (3, 11, 14))
    autoencoder.requires_grad_(False).eval()
    options = Options(kind="cem", autoencoder="a", search_steps=2, iterations=5)
    classifier = Colour([[-1, 0], [1, 0], [0, 0]], [1.0, 0, -9])
    task = Task(
        classifier, {"a": autoencoder}, (3, 11, 14), ((SOURCE, TARGET),), torch.device("cpu"), 0
    )
    answer = ask(CEM(options, task), torch.rand(2, 3, 11, 14))
    assert answer.counterfactual.shape == (2, 3, 11, 14)
