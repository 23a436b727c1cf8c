"""C3LT: the maps, their training and what they explain."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counterlens.data.base import ImageSet
from counterlens.methods import c3lt
from counterlens.methods.c3lt import C3LT, LatentMap, Objective, Options
from counterlens.runtime.training import Checkpoint, History

from .c3lt_by_hand import ByHand, moved_far, walk


def options(**changes: Any) -> Options:
    return Options.model_validate(
        {"kind": "c3lt", "generator": "dcgan", "encoder": "encoder", **changes}
    )


def latent_map(latent_dim: int = 8, scale: float = 1.0, **changes: Any) -> LatentMap:
    torch.manual_seed(4)
    made = LatentMap(latent_dim, options(**changes)).requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(scale)
    return made


def codes(count: int = 5, latent_dim: int = 8) -> Tensor:
    return 2 * torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(0))


# The maps g and h (spec 1.1)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("preserve_norm", [True, False])
def test_a_walk_against_its_formula(steps: int, residual: bool, preserve_norm: bool) -> None:
    module = latent_map(scale=3, steps=steps, residual=residual, preserve_norm=preserve_norm)
    found = module.walk(codes())
    assert len(found) == steps + 1 and torch.equal(found[0], codes())
    expected = walk(module, codes().numpy(), residual, preserve_norm)
    np.testing.assert_allclose(torch.stack(found, 1), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(module(codes()), found[-1])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_map_of_zeros_is_the_identity(steps: int) -> None:
    module = latent_map(scale=0, steps=steps)
    for z in module.walk(codes()):
        torch.testing.assert_close(z, codes())


@pytest.mark.parametrize("steps", [1, 3])
def test_the_length_is_kept(steps: int) -> None:
    module = latent_map(scale=5, steps=steps)
    found = module.walk(codes())
    assert (found[-1] - codes()).abs().max() > 0.5
    for z in found:
        torch.testing.assert_close(z.norm(dim=1), codes().norm(dim=1))
    free = latent_map(scale=5, steps=steps, preserve_norm=False)(codes())
    assert (free.norm(dim=1) - codes().norm(dim=1)).abs().max() > 0.5


def test_a_code_of_zeros_has_no_direction_and_stays() -> None:
    z = torch.zeros(2, 8, requires_grad=False)
    assert torch.equal(latent_map()(z), z)
    assert latent_map(scale=0, residual=False)(codes()).isfinite().all()


def test_a_map_has_the_paper_s_size() -> None:
    module = latent_map(100)
    assert sum(p.numel() for p in module.parameters()) == 20_200
    assert sum(p.numel() for p in latent_map(100, steps=3).parameters()) == 20_200  # one map
    assert [type(layer) for layer in module.layers] == [nn.Linear, nn.ReLU, nn.Linear]


def test_the_two_maps_differ_and_come_from_the_seed(create) -> None:
    first, same, other = create("c3lt"), create("c3lt"), create("c3lt", seed=8)
    assert state(first) == state(same) != state(other)
    weights = [first.maps[name].layers[0].weight for name in ("g", "h")]
    assert not torch.equal(*weights)


def state(method: C3LT) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in method.trained().state_dict().items()}


# Training


def trained(create, data: ImageSet, checkpoint: Checkpoint | None = None, **changes: Any):
    method = create("c3lt", **changes)
    return method, method.fit(data, checkpoint)


def test_one_step_is_adam_on_the_weighted_sum(create, batch) -> None:
    x, z = batch
    weights = {"alpha": 0.5, "beta": 0.25, "gamma": 2.0}
    data = ImageSet(x, torch.tensor([4] * 4 + [9] * 4), torch.arange(8))
    method, history = trained(create, data, epochs=1, **weights)
    other = create("c3lt", **weights)
    terms = Objective(other)(x, z)
    total = terms["classification"] + 0.5 * terms["proximity"] + 0.25 * terms["cycle"]
    total = total + 2.0 * terms["adversarial"]
    total.backward()
    assert history[0] == pytest.approx(
        {"epoch": 1, **{k: float(v.detach()) for k, v in terms.items()}}, rel=1e-4
    )
    before = dict(other.maps.named_parameters())
    for name, after in method.maps.named_parameters():
        gradient = before[name].grad
        assert gradient is not None
        # Adam's first step is lr * gradient / (|gradient| + eps)
        step = 0.01 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-5
        assert clear.any()
        torch.testing.assert_close(
            after[clear], (before[name] - step).detach()[clear], rtol=1e-3, atol=1e-5
        )


def test_only_the_maps_are_trained(create, shapes, states) -> None:
    before = states()
    untouched = state(create("c3lt"))
    for change in ({}, {"train_discriminator": True}):
        method, _ = trained(create, shapes(24, (4, 9)), **change)
        assert all(state(method)[name] != untouched[name] for name in untouched)
        assert states() == before  # and no frozen parameter has a gradient
        assert not any(p.requires_grad for p in method.trained().parameters())


def test_training_reduces_the_loss(create, shapes) -> None:
    _, history = trained(create, shapes(48, (4, 9)), epochs=10, lr=0.05)

    def total(row: dict[str, float]) -> float:
        return row["classification"] + 0.1 * row["proximity"] + 0.1 * row["cycle"]

    assert total(history[-1]) < 0.9 * total(history[0])


def test_batches_are_cut_to_the_shorter_class(
    create, shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten images of class 4, six of class 9 and some of another class, four at a time."""
    many, few, other = shapes(10, (4,)), shapes(6, (9,), seed=1), shapes(5, (2,))
    data = ImageSet(
        torch.cat([other.images, few.images, many.images]),
        torch.cat([other.labels, few.labels, many.labels]),
        torch.arange(21),
    )
    seen: list[Tensor] = []

    class Watched(Objective):
        def __call__(self, x: Tensor, z: Tensor):
            seen.append(x)
            return super().__call__(x, z)

    monkeypatch.setattr(c3lt, "Objective", Watched)
    trained(create, data, batch_size=4, epochs=2)
    assert [len(x) for x in seen] == [8, 4, 8, 4]

    def rows(images: Tensor) -> set[bytes]:
        return {image.contiguous().numpy().tobytes() for image in images}

    for x in seen:
        assert rows(x[: len(x) // 2]) <= rows(many.images)
        assert rows(x[len(x) // 2 :]) <= rows(few.images)
    first, second = rows(torch.cat(seen[:2])), rows(torch.cat(seen[2:]))
    assert rows(few.images) <= first & second and len(first) == 12
    assert not torch.equal(seen[0], seen[2])  # another order in each epoch


@pytest.mark.parametrize("train_discriminator", [False, True])
def test_a_killed_training_ends_with_the_same_bytes(
    create,
    shapes,
    kill,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_discriminator: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = shapes(40, (4, 9))
    # a discriminator that counts, so that one that is not restored shows
    change: dict[str, Any] = {
        "epochs": 4,
        "decay_every": 2,
        "gamma": 1.0,
        "train_discriminator": train_discriminator,
    }
    whole, history = trained(create, data, **change)
    # two orders, one per class, are drawn in each epoch
    with pytest.raises(kill(c3lt, 3)):
        trained(create, data, Checkpoint("c3lt", [], seconds=0), **change)
    kept = Checkpoint("c3lt", [], seconds=0)
    saved = kept.load()
    assert saved is not None and len(saved["history"]) == 1
    resumed, again = trained(create, data, kept, **change)
    assert again == history and state(resumed) == state(whole)


def test_the_seed_decides(create, shapes) -> None:
    data = shapes(24, (4, 9))
    runs: list[tuple[C3LT, History]] = [trained(create, data, seed=seed) for seed in (7, 7, 8)]
    assert state(runs[0][0]) == state(runs[1][0]) != state(runs[2][0])
    assert runs[0][1] == runs[1][1] != runs[2][1]


# The discriminator as an option


def test_the_discriminator_that_is_trained_is_a_copy(create, batch, models) -> None:
    method = moved_far(create("c3lt", train_discriminator=True))
    objective = Objective(method)
    critic = objective.critic
    assert critic is not None and critic is not method.generator
    original = copy.deepcopy(models["dcgan"].state_dict())
    started = copy.deepcopy(critic.state_dict())
    terms = objective(*batch)
    terms["adversarial"].backward()
    changed = {
        name for name, value in critic.state_dict().items() if not torch.equal(value, started[name])
    }
    expected = {f"discriminator.{name}" for name, _ in critic.discriminator.named_parameters()}
    assert changed == expected
    for name, value in models["dcgan"].state_dict().items():
        assert torch.equal(value, original[name])
    assert all(p.grad is None for p in models["dcgan"].parameters())
    # the maps are trained against the copy, after its step
    assert any(p.grad is not None and p.grad.any() for p in method.maps.parameters())
    hand = ByHand(method, *batch)
    method.generator = critic
    assert float(terms["adversarial"].detach()) == pytest.approx(hand.adversarial(), rel=2e-4)


def test_the_copy_learns_to_tell_real_from_counterfactual(create, batch) -> None:
    method = moved_far(create("c3lt", train_discriminator=True))
    objective = Objective(method)
    assert objective.critic is not None
    x = batch[0]
    fake = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def gap() -> float:
        with torch.no_grad():
            critic: Any = objective.critic
            return float(critic.discriminate(x).mean() - critic.discriminate(fake).mean())

    before = gap()
    for _ in range(20):
        objective.update_critic(x, fake)
    assert gap() > before + 0.05


def test_no_copy_is_made_where_none_is_used(create) -> None:
    assert Objective(create("c3lt")).critic is None
    assert Objective(create("c3lt", train_discriminator=True, gamma=0)).critic is None


# Explaining


def test_g_leads_to_the_second_class_and_h_to_the_first(create, batch, models) -> None:
    x, z = batch
    method = moved_far(create("c3lt"))
    source, target = torch.tensor([4] * 4 + [9] * 4), torch.tensor([9] * 4 + [4] * 4)
    answer = method.explain(x, source, target)
    hand = ByHand(method, x, z)
    expected = (np.concatenate([hand.x_cf, hand.y_cf]) + 1) / 2
    np.testing.assert_allclose(answer.counterfactual, expected, atol=2e-5)
    torch.testing.assert_close(answer.extras["latent"], z)
    moved = np.concatenate([walk(method.maps["g"], hand.z_x), walk(method.maps["h"], hand.z_y)])
    np.testing.assert_allclose(answer.extras["latent_counterfactual"], moved[:, -1], atol=2e-5)
    assert answer.found.all()


def test_the_path_starts_at_the_reconstruction(create, batch, models) -> None:
    x, z = batch
    method = moved_far(create("c3lt", steps=3))
    target = torch.full((8,), 9)
    path = method.path(x, torch.full((8,), 4), target).images
    assert path.shape == (8, 4, 1, 28, 28)
    torch.testing.assert_close(path[:, 0], models["dcgan"].decode(z))
    expected = walk(method.maps["g"], z.numpy())
    for step in range(4):
        image = models["dcgan"].decode(torch.tensor(expected[:, step], dtype=torch.float32))
        torch.testing.assert_close(path[:, step], image, atol=2e-5, rtol=0)


def test_a_vae_is_both_generator_and_encoder(create, shapes) -> None:
    method = create("c3lt", generator="vae", encoder="vae", gamma=0)
    assert method.options.generators() == ("vae",) and method.generator is method.encoder
    history = method.fit(shapes(24, (4, 9)))
    assert set(history[0]) == {"epoch", "classification", "proximity", "cycle"}
    answer = method.explain(shapes(2, (4,)).images, torch.tensor([4, 4]), torch.tensor([9, 9]))
    assert answer.counterfactual.shape == (2, 1, 28, 28)
