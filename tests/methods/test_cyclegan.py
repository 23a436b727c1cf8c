"""CycleGAN: its losses by hand, both directions, instance normalisation, the pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import ClassifierOptions
from counterlens.data.base import ImageSet
from counterlens.methods import cyclegan
from counterlens.methods.cyclegan import (
    CycleGAN,
    ImagePool,
    Objective,
    ReflectionPad,
    initialise,
    patch_discriminator,
    translator,
)
from counterlens.runtime.training import Checkpoint


def state(module: nn.Module) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in module.state_dict().items()}


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def both(shapes) -> tuple[Tensor, Tensor]:
    """Images of either class in [-1, 1], three each."""
    return 2 * shapes(3, (4,)).images - 1, 2 * shapes(3, (9,), seed=1).images - 1


# Networks


def test_the_padding_is_that_of_torch() -> None:
    x = torch.rand(2, 3, 6, 9)
    for size in (1, 3):
        assert torch.equal(ReflectionPad(size)(x), nn.ReflectionPad2d(size)(x))


def test_the_published_layers() -> None:
    """c7s1-64, d128, d256, six R256, u128, u64, c7s1-3 (Zhu et al., section 7.2)."""
    layers = [
        layer
        for layer in translator(3, 64, 6).modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    ]
    blocks = [(256, 256, 3, 1)] * 12
    assert [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in layers] == [
        (3, 64, 7, 1),
        (64, 128, 3, 2),
        (128, 256, 3, 2),
        *blocks,
        (256, 128, 3, 2),
        (128, 64, 3, 2),
        (64, 3, 7, 1),
    ]
    assert all(isinstance(m, nn.ConvTranspose2d) for m in layers[-3:-1])


@pytest.mark.parametrize(
    ("layers", "side", "answers"), [(2, 28, 5), (3, 28, 1), (3, 256, 30), (1, 28, 12)]
)
def test_the_map_of_answers(layers: int, side: int, answers: int) -> None:
    """Spec 4.5: 28, 14, 7, 6, 5; and the 30x30 answers of the published 256x256 case."""
    network = patch_discriminator(1, 2, layers)
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 1, answers, answers)


def test_the_receptive_field_is_70() -> None:
    """A change of one pixel reaches just the answers within 70 pixels."""
    torch.manual_seed(0)
    network = patch_discriminator(1, 2, 3)
    layers = [layer for layer in network if not isinstance(layer, nn.InstanceNorm2d)]
    x = torch.zeros(1, 1, 256, 256, requires_grad=True)
    nn.Sequential(*layers)(x)[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 70


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 21, 38), (1, 12, 15)])
def test_any_size(create, shape: tuple[int, int, int]) -> None:
    options = create("cyclegan").options
    task = SimpleNamespace(shape=shape, pair=(4, 9), device=torch.device("cpu"), seed=1)
    method = CycleGAN(options, task)  # type: ignore[arg-type]
    x = torch.rand(2, *shape)
    answer = method.explain(x, torch.full((2,), 4), torch.full((2,), 9))
    assert answer.counterfactual.shape == x.shape
    losses, made = Objective(method)(2 * x - 1, 2 * x - 1)
    assert made[0].shape == x.shape and all(v.isfinite() for v in losses.values())


@pytest.mark.parametrize(
    ("shape", "layers", "fits"),
    [((1, 28, 28), 4, False), ((1, 8, 28), 2, False), ((1, 13, 28), 2, True)],
)
def test_sizes_that_do_not_fit(create, shape, layers: int, fits: bool) -> None:
    options = create("cyclegan").options.model_copy(update={"discriminator_layers": layers})
    said = options.unsuited(SimpleNamespace(shape=shape), ClassifierOptions(kind="lenet"))
    size = f"{shape[1]}x{shape[2]}"
    told = f"discriminator_layers: {layers} leave too little of an image of {size}; use fewer"
    assert said == (None if fits else told)


def test_padding_is_cut_away_where_it_was_put() -> None:
    """An image that is padded by hand gives the same."""
    torch.manual_seed(0)
    network = translator(1, 4, 1)
    x = torch.rand(2, 1, 21, 26)
    whole = network(functional.pad(x, [1, 1, 1, 2], mode="replicate"))
    torch.testing.assert_close(network(x), whole[:, :, 1:22, 1:27])


def test_instance_normalisation_does_not_see_the_batch() -> None:
    torch.manual_seed(0)
    for network in (translator(1, 4, 1), patch_discriminator(1, 4, 2)):
        x = torch.rand(4, 1, 28, 28)
        torch.testing.assert_close(network(x)[:1], network(x[:1]))
        torch.testing.assert_close(network.train()(x), network.eval()(x))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 7)
    initialise(layer)
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert layer.bias is not None and not layer.bias.any()


# Losses


def test_the_losses_against_their_formulas(create, both) -> None:
    """Zhu et al., Eq. 1-3 in least squares, and the identity loss of their section 5.2."""
    method = create("cyclegan")
    objective = Objective(method)
    x, y = both
    f, g = method.translators["to_first"], method.translators["to_second"]
    d_x, d_y = objective.critics
    with torch.no_grad():
        losses, made = objective(x, y)
        fake_y, fake_x = g(x), f(y)
        expected = {
            "adversarial": ((d_y(fake_y) - 1) ** 2).mean() + ((d_x(fake_x) - 1) ** 2).mean(),
            "cycle": (f(fake_y) - x).abs().mean() + (g(fake_x) - y).abs().mean(),
            "identity": (f(x) - x).abs().mean() + (g(y) - y).abs().mean(),
        }
        torch.testing.assert_close(made, (fake_x, fake_y))
        critic = objective.critic((x, y), made, random())
        by_hand = ((d_x(x) - 1) ** 2).mean() + (d_x(fake_x) ** 2).mean()
        by_hand = by_hand + ((d_y(y) - 1) ** 2).mean() + (d_y(fake_y) ** 2).mean()
    assert {k: float(v) for k, v in losses.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-4
    )
    assert float(critic) == pytest.approx(float(by_hand) / 2, rel=1e-4)  # the pools were empty
    assert objective.weights == {"adversarial": 1, "cycle": 10, "identity": 5}


def test_terms_of_weight_zero_are_absent(create, both) -> None:
    assert set(Objective(create("cyclegan", identity=0))(*both)[0]) == {"adversarial", "cycle"}
    assert set(Objective(create("cyclegan", cycle=0))(*both)[0]) == {"adversarial"}


def test_generators_and_discriminators_get_their_own_gradients(create, both) -> None:
    method = create("cyclegan")
    objective = Objective(method)
    losses, made = objective(*both)
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad is None for p in objective.critics.parameters())
    assert all(p.grad is not None for p in method.translators.parameters())
    method.translators.zero_grad()
    objective.critic(both, made, random()).backward()
    assert all(p.grad is None for p in method.translators.parameters())
    assert all(p.grad is not None for p in objective.critics.parameters())


def test_each_direction_has_its_generator(create, shapes) -> None:
    method = create("cyclegan")
    x = shapes(4, (4, 9)).images
    targets = torch.tensor([9, 4, 4, 9])
    answer = method.explain(x, 13 - targets, targets)
    for image, target, found in zip(x, targets, answer.counterfactual, strict=True):
        network = method.translators["to_second" if target == 9 else "to_first"]
        expected = (network(2 * image[None] - 1)[0] + 1) / 2
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# The pool


def numbered(*values: int) -> Tensor:
    return torch.tensor([float(value) for value in values]).reshape(-1, 1, 1, 1)


def test_a_pool_is_filled_and_then_exchanges_half() -> None:
    pool, numbers = ImagePool(4, (1, 1, 1)), random()
    assert pool(numbered(1, 2, 3), numbers).flatten().tolist() == [1, 2, 3]
    assert pool(numbered(4), numbers).flatten().tolist() == [4] and int(pool.count) == 4
    exchanged, inside = 0, {1.0, 2.0, 3.0, 4.0}
    for start in range(10, 210, 2):
        made = numbered(start, start + 1)
        shown = pool(made, numbers)
        before, after = inside, {*pool.images.flatten().tolist()}
        for new, old in zip(made.flatten().tolist(), shown.flatten().tolist(), strict=True):
            assert (old == new and new not in after) or (old in before and new in after)
            exchanged += old != new
        assert len(after) == 4  # none is lost, none stands twice
        inside = after
    assert 70 < exchanged < 130  # of 200


def test_a_pool_without_places_and_one_that_is_small() -> None:
    made = numbered(1, 2, 3)
    assert torch.equal(ImagePool(0, (1, 1, 1))(made, random()), made)
    pool = ImagePool(1, (1, 1, 1))
    for seed in range(6):
        shown = pool(made, random(seed))
        assert int((shown != made).sum()) <= 1


def test_a_pool_does_not_hold_gradients_or_share_memory() -> None:
    pool = ImagePool(2, (1, 1, 1))
    made = numbered(1, 2)
    pool(made, random()).add_(5)
    made.add_(7)
    assert pool.images.flatten().tolist() == [1, 2]


def test_the_state_of_a_pool() -> None:
    pool, other = ImagePool(3, (1, 1, 1)), ImagePool(3, (1, 1, 1))
    pool(numbered(1, 2), random())
    other.load_state_dict(pool.state_dict())
    assert int(other.count) == 2
    for seed in range(5):
        made = numbered(10 + seed, 20 + seed)
        assert torch.equal(pool(made, random(seed)), other(made, random(seed)))


# Training


def test_the_rate_falls_on_a_line(create) -> None:
    method = create("cyclegan", epochs=3, decay_epochs=4)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = method.linear_decay(optimizer)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_training_learns_the_way_back(create, shapes) -> None:
    method = create("cyclegan", epochs=6, decay_epochs=2, lr=2e-3)
    history = method.fit(shapes(48, (4, 9)))
    assert len(history) == 8
    assert history[-1]["cycle"] < 0.8 * history[0]["cycle"]
    assert history[-1]["identity"] < 0.8 * history[0]["identity"]
    assert not any(p.requires_grad for p in method.trained().parameters())


def test_the_classifier_plays_no_part(create, shapes, monkeypatch) -> None:
    method = create("cyclegan")

    def asked(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(type(method.task.classifier), "forward", asked)
    method.fit(shapes(8, (4, 9)))


def test_a_killed_training_ends_with_the_same_bytes(
    create, shapes, kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among others, the pools must be what they were: a small one is full by then."""
    monkeypatch.chdir(tmp_path)
    data: ImageSet = shapes(24, (4, 9))
    change = {"epochs": 2, "decay_epochs": 2, "batch_size": 4, "pool_size": 5}
    whole = create("cyclegan", **change)
    history = whole.fit(data)
    with pytest.raises(kill(cyclegan, 5)):  # two orders, one per class, in each epoch
        create("cyclegan", **change).fit(data, Checkpoint("cyclegan", [], seconds=0))
    kept = Checkpoint("cyclegan", [], seconds=0)
    saved = kept.load()
    assert saved is not None and len(saved["history"]) == 2
    assert int(saved["parts"]["pools"]["0.count"]) == 5
    resumed = create("cyclegan", **change)
    assert resumed.fit(data, kept) == history
    assert state(resumed.trained()) == state(whole.trained())
    emptied = {**saved["parts"]["pools"], "0.count": torch.tensor(0), "1.count": torch.tensor(0)}
    kept.save({**saved, "parts": {**saved["parts"], "pools": emptied}})
    assert create("cyclegan", **change).fit(data, kept) != history


def test_bfloat16_is_close(create, both) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        with torch.no_grad():
            losses, _ = Objective(create("cyclegan", precision=precision))(*both)
        found.append({k: float(v) for k, v in losses.items() if k != "adversarial"})
    assert found[1] == pytest.approx(found[0], rel=0.05)
