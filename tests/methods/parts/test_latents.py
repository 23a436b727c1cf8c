"""C3LT without an encoder: codes drawn class by class, and codes optimised for an image."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterlens.config import GeneratorOptions
from counterlens.errors import UserError
from counterlens.methods.parts import latents
from counterlens.methods.parts.latent_options import InversionOptions, SamplingOptions
from counterlens.methods.parts.latents import draw_banks, draw_each, invert
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator, image_generators

CPU = torch.device("cpu")
PAIR = (4, 9)


class Conditional(GeneratorOptions):
    conditional = True


class Linear:
    """G(z) = (tanh(z A) + 1) / 2, images of six pixels; counts what it decodes."""

    latent_dim = 4
    shape = (1, 2, 3)

    def __init__(self, options: GeneratorOptions | None = None) -> None:
        self.options = options or GeneratorOptions(kind="linear")
        self.matrix = torch.randn(4, 6, generator=generator(3)) / 2
        self.decoded = 0

    def draw(self, count: int, random: torch.Generator, label: int) -> Tensor:
        z = torch.randn(count, 4, generator=random)
        return z + 10 * label if self.options.conditional else z

    def decode(self, z: Tensor) -> Tensor:
        self.decoded += len(z)
        return ((z @ self.matrix).tanh().reshape(-1, 1, 2, 3) + 1) / 2


class Threshold(nn.Module):
    """Class 1 above a brightness of the first pixel, else class 0; the other classes never."""

    def __init__(self, at: float = 0.5, sharpness: float = 8.0) -> None:
        super().__init__()
        self.at, self.sharpness = at, sharpness

    def maps(self, x: Tensor) -> list[Tensor]:
        return [3 * x, x[:, :, :1].square()]

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0, 0, 0]
        logit = self.sharpness * (first - self.at)
        return torch.stack([-logit, logit, torch.full_like(logit, -99.0)], dim=1)


def banks(labels: tuple[int, ...] = (0, 1), seed: int = 5, **options: Any):
    classifier = options.pop("classifier", Threshold())
    chosen = SamplingOptions.model_validate({"count": 40, "batch_size": 16, **options})
    drawn_from = Linear(options.pop("of", None))
    return draw_banks(drawn_from, classifier, labels, chosen, seed, CPU)  # type: ignore[arg-type]


# Drawing


def test_codes_are_of_their_class_and_decode_to_their_images() -> None:
    found = banks()
    for label, bank in enumerate(found):
        assert bank.latents.shape == (40, 4) and bank.images.shape == (40, 1, 2, 3)
        torch.testing.assert_close(Linear().decode(bank.latents), bank.images)
        assert (Threshold()(bank.images).argmax(dim=1) == label).all()
    assert 0.3 < found[0].acceptance < 0.7 and 0.3 < found[1].acceptance < 0.7
    assert abs(found[0].acceptance + found[1].acceptance - 1) < 1e-9  # one draw serves both
    unlike = [len(bank.latents.unique(dim=0)) for bank in found]
    assert unlike == [40, 40]


def test_the_codes_are_those_of_the_seed_in_order() -> None:
    """What is kept is what N(0, I) gave, less the other class."""
    z = torch.randn(16, 4, generator=generator(5))
    kept = z[Threshold()(Linear().decode(z)).argmax(dim=1) == 1]
    torch.testing.assert_close(banks()[1].latents[: len(kept)], kept)
    assert torch.equal(banks()[0].latents, banks()[0].latents)
    assert not torch.equal(banks()[0].latents, banks(seed=6)[0].latents)


def test_a_least_probability_keeps_only_sure_ones(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, latents.__name__):
        sure, unsure = banks(least_probability=0.95)[1], banks()[1]
    probability = Threshold()(sure.images).softmax(dim=1)[:, 1]
    assert (probability >= 0.95).all()
    assert (Threshold()(unsure.images).softmax(dim=1)[:, 1] < 0.95).any()
    assert sure.acceptance < unsure.acceptance
    assert f"class 1: {100 * sure.acceptance:.2f} %" in caplog.text


@pytest.mark.parametrize("label", [1, 2])
def test_a_class_that_is_hardly_ever_drawn_is_an_error(label: int) -> None:
    classifier = Threshold(at=0.999)
    with pytest.raises(UserError) as caught:
        banks((0, label), classifier=classifier, least_acceptance=0.01)
    words = str(caught.value)
    assert words.startswith(f"class {label} was drawn 0 times in 1008 samples of the generator")
    assert "sampling.least_probability" in words and "\n" not in words


def test_a_conditional_generator_draws_each_class_directly() -> None:
    source = Linear(Conditional(kind="linear"))
    chosen = SamplingOptions(count=40, batch_size=16)
    found = draw_banks(source, Threshold(), (0, 2), chosen, 5, CPU)  # type: ignore[arg-type]
    assert [bank.acceptance for bank in found] == [1, 1]
    assert found[0].latents.mean().abs() < 1 and (found[1].latents.mean() - 20).abs() < 1
    assert source.decoded == 2 * 48


def test_each_query_has_a_code_of_its_own_whatever_the_batch() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    options = SamplingOptions(batch_size=3)

    def draw(rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        randomness = image_generators(1, "tiny", "explain", rows)
        return draw_each(Linear(), Threshold(), labels[rows], randomness, options)  # type: ignore[arg-type]

    z, x, found = draw(list(range(7)))
    assert found.all() and torch.equal(Linear().decode(z), x)
    assert (Threshold()(x).argmax(dim=1) == labels).all()
    for whole, part in zip((z, x), draw([5, 2])[:2], strict=True):
        torch.testing.assert_close(whole[[5, 2]], part)
    assert draw([])[0].shape == (0, 4)


def test_a_query_of_a_class_that_is_never_drawn_is_not_found() -> None:
    randomness = image_generators(1, "tiny", "explain", [0, 1])
    options = SamplingOptions(least_acceptance=0.5)
    labels = torch.tensor([1, 2])
    _, x, found = draw_each(Linear(), Threshold(), labels, randomness, options)  # type: ignore[arg-type]
    assert found.tolist() == [True, False] and x.isfinite().all()


# Optimising


def inverted(x: Tensor, rows: list[int] | None = None, **changes: Any) -> tuple[Tensor, Tensor]:
    options = InversionOptions.model_validate({"steps": 150, **changes})
    rows = list(range(len(x))) if rows is None else rows
    randomness = image_generators(1, "tiny", "explain", rows)
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return invert(Linear(), Threshold(), x[rows], labels, randomness, options)  # type: ignore[arg-type]


@pytest.fixture
def decoded() -> Tensor:
    return Linear().decode(torch.randn(5, 4, generator=generator(8)))


def test_a_decoded_image_is_found_again(decoded: Tensor) -> None:
    z, loss = inverted(decoded, steps=400)
    assert z.shape == (5, 4) and loss.shape == (5,) and not z.requires_grad
    assert (Linear().decode(z) - decoded).abs().max() < 0.02
    assert (loss < 0.03).all()


def test_the_loss_is_the_formula(decoded: Tensor) -> None:
    z, loss = inverted(decoded, steps=3, feature_weight=0.25)
    found = Linear().decode(z)
    for row in range(5):
        pixels = ((2 * found[row] - 1) - (2 * decoded[row] - 1)).abs().mean()
        features = (3 * found[row] - 3 * decoded[row]).abs().mean()
        features += (found[row, :, :1] ** 2 - decoded[row, :, :1] ** 2).abs().mean()
        torch.testing.assert_close(loss[row], pixels + 0.25 * features)


def test_the_first_step_is_adam_and_the_best_restart_counts(decoded: Tensor) -> None:
    """One step of Adam is lr in the direction of the gradient's signs; 3 starts, 2 steps each."""
    starts = torch.stack(
        [torch.randn(3, 4, generator=g) for g in image_generators(1, "tiny", "explain", range(5))]
    )

    def loss_of(z: Tensor) -> Tensor:
        return 2 * (Linear().decode(z) - decoded.repeat_interleave(3, 0)).abs().mean((1, 2, 3))

    before = starts.flatten(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(before).sum(), before)
    after = before.detach() - 0.05 * gradient / (gradient.abs() + 1e-8)
    losses = torch.stack([loss_of(before.detach()), loss_of(after)], 1).reshape(5, 6)
    _, loss = inverted(decoded, steps=1, restarts=3, feature_weight=0)
    torch.testing.assert_close(loss, losses.min(dim=1).values)


def test_more_restarts_help(decoded: Tensor) -> None:
    one, many = (inverted(decoded, steps=20, restarts=count)[1] for count in (1, 16))
    assert many.mean() < one.mean() / 2


def test_the_batch_changes_nothing(decoded: Tensor) -> None:
    z, loss = inverted(decoded)
    for rows, size in (([3], 256), ([4, 0, 2], 256), ([0, 1, 2, 3, 4], 4), ([1, 2], 1)):
        found, its_loss = inverted(decoded, rows, batch_size=size)
        torch.testing.assert_close(its_loss, loss[rows], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found, z[rows], atol=1e-2, rtol=1e-2)
    assert inverted(decoded, [])[0].shape == (0, 4)


def test_the_sphere(decoded: Tensor) -> None:
    on, off = (inverted(decoded, steps=10, sphere=chosen)[0] for chosen in (True, False))
    torch.testing.assert_close(on.norm(dim=1), torch.full((5,), math.sqrt(4)))
    assert (off.norm(dim=1) - math.sqrt(4)).abs().max() > 0.05


# In C3LT


WITHOUT: dict[str, Any] = {
    "encoder": None,
    "sampling": {"count": 12, "batch_size": 64, "least_acceptance": 0.0001},
    "inversion": {"steps": 5, "restarts": 2},
}


@pytest.fixture
def models(models, monkeypatch):
    """A classifier that gives every image one of the pair's classes, by its brightness."""

    class Two(nn.Module):
        def __init__(self, of: nn.Module) -> None:
            super().__init__()
            self.maps = of.maps

        def forward(self, x: Tensor) -> Tensor:
            logit = 200 * (x.mean((1, 2, 3)) - middle)
            scores = torch.full((len(x), 10), -50.0)
            return scores.index_copy(1, torch.tensor(PAIR), torch.stack([-logit, logit], dim=1))

    drawn = models["dcgan"].decode(torch.randn(64, 8, generator=generator(1)))
    middle = drawn.mean((1, 2, 3)).median()
    return {**models, "lenet": Two(models["lenet"])}


def test_c3lt_learns_from_samples(create, shapes) -> None:
    method = create("c3lt", **WITHOUT)
    assert method.options.generators() == ("dcgan",)
    history = method.fit(shapes(24, PAIR))
    assert set(history[0]) == {"epoch", "classification", "proximity", "cycle", "adversarial"}
    assert set(method.quality(shapes(8, PAIR)).values) == {"acceptance_4", "acceptance_9"}
    (first, second), codes = method.training_codes(shapes(4, PAIR))
    for label, images, z in zip(PAIR, (first, second), codes, strict=True):
        torch.testing.assert_close(method.generator.decode(z), images)
        assert (method.task.classifier(images).argmax(dim=1) == label).all()
    # real images play no part
    same = create("c3lt", **WITHOUT)
    same.fit(shapes(24, PAIR, seed=9))
    for one, other in zip(method.trained().parameters(), same.trained().parameters(), strict=True):
        assert torch.equal(one, other)


def ask(method, x: Tensor, rows: list[int]):
    source = torch.tensor([4, 9, 4, 9])[rows]
    return method.explain(
        x[rows], source, 13 - source, image_generators(1, "tiny", "explain", rows)
    )


@pytest.fixture
def ready(create, shapes):
    def make(**changes: Any):
        method = create("c3lt", **WITHOUT, **changes)
        method.fit(shapes(24, PAIR))
        freeze(method.trained(), CPU)
        return method

    return make


def test_given_queries_are_inverted(ready, shapes, mismatch) -> None:
    method, x = ready(), shapes(4, PAIR).images
    answer = ask(method, x, [0, 1, 2, 3])
    assert answer.query is None and answer.found.all()
    z, moved = answer.extras["latent"], answer.extras["latent_counterfactual"]
    expected = torch.stack([method.maps["gh"[row % 2]](z[row : row + 1])[0] for row in range(4)])
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(method.generator.decode(moved), answer.counterfactual)
    part = ask(method, x, [2, 1])
    assert mismatch(part.counterfactual, answer.counterfactual[[2, 1]]) <= 0.02
    assert ask(method, x, []).counterfactual.shape == (0, 1, 28, 28)
    assert method.path(x, torch.full((4,), 4), torch.full((4,), 9)) is None


def test_sampled_queries_stand_in_for_the_given(ready, shapes) -> None:
    method, x = ready(queries="sampled"), shapes(4, PAIR).images
    answer = ask(method, x, [0, 1, 2, 3])
    assert answer.query is not None and answer.query.shape == x.shape and answer.found.all()
    torch.testing.assert_close(method.generator.decode(answer.extras["latent"]), answer.query)
    predicted = method.task.classifier(answer.query).argmax(dim=1)
    assert predicted.tolist() == [4, 9, 4, 9]
    assert ask(method, x, []).counterfactual.shape == (0, 1, 28, 28)


def test_the_length_of_each_part_of_a_latent_is_kept(create) -> None:
    from counterlens.methods.c3lt import LatentMap

    torch.manual_seed(1)
    options = create("c3lt").options
    z = torch.randn(5, 8)
    moved = LatentMap(8, options, (3, 5))(z)
    assert (moved - z).abs().max() > 0.1
    for part in (slice(0, 3), slice(3, 8)):
        torch.testing.assert_close(moved[:, part].norm(dim=1), z[:, part].norm(dim=1))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": "encoder", "queries": "sampled"}, "goes without an encoder"),
        ({"encoder": None, "generator": "encoder"}, "'encoder' decodes no latents"),
        ({"encoder": None, "generator": "conditional", "inversion": {"sphere": True}}, "sphere"),
        ({"encoder": None, "generator": "dcgan"}, None),
    ],
)
def test_conflicts(create, changes: dict[str, Any], reason: str | None) -> None:
    options = create("c3lt").options.model_copy(
        update={**changes, "inversion": InversionOptions(**changes.get("inversion", {}))}
    )
    known: dict[str, Any] = {
        "dcgan": SimpleNamespace(
            decodes=True, encodes=False, has_discriminator=True, conditional=False, latent_dim=8
        ),
        "encoder": SimpleNamespace(
            decodes=False, encodes=True, has_discriminator=False, conditional=False, latent_dim=8
        ),
        "conditional": Conditional(kind="linear"),
    }
    found = options.conflict(known)
    assert (found is None) if reason is None else (found is not None and reason in found)
