"""Mirror-CFE: geometry, lift, mask, losses and what the options change."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from counterlens.methods.mirror_cfe import MirrorCFE, Training, pick
from counterlens.methods.parts.mirror_generator import (
    MirrorGenerator,
    Pooling,
    patch_discriminator,
)
from counterlens.methods.parts.reflection import lift, reflect, spatial_prior
from counterlens.runtime.seeding import generator

N, D, CLASSES = 12, 6, 5
KINDS = ("pairwise", "multi-class", "multi-class-lbfgs")


class Queries(NamedTuple):
    """Six images of 4 or 9, each to become the other."""

    x: Tensor
    source: Tensor
    target: Tensor


@pytest.fixture
def queries(shapes) -> Queries:
    data = shapes(6, (4, 9))
    return Queries(data.images, data.labels, 13 - data.labels)


@pytest.fixture
def head() -> tuple[Tensor, Tensor]:
    random = generator(1)
    return torch.randn(CLASSES, D, generator=random), torch.randn(CLASSES, generator=random)


@pytest.fixture
def points(head) -> tuple[Tensor, Tensor, Tensor]:
    """Features, their classes, and other classes."""
    weight, bias = head
    z = 2 * torch.randn(N, D, generator=generator(2))
    source = (z @ weight.T + bias).argmax(dim=1)
    target = (source + 1 + torch.arange(N) % (CLASSES - 1)) % CLASSES
    return z, source, target


def margin(z: Tensor, source: Tensor, target: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
    logits = z @ head[0].T + head[1]
    rows = torch.arange(len(z))
    return logits[rows, target] - logits[rows, source]


@pytest.mark.parametrize("kind", KINDS)
def test_the_margin_is_linear_in_k_zero_at_half_and_negated_at_one(kind, points, head) -> None:
    z, source, target = points
    end = reflect(z, source, target, *head, kind)
    start = margin(z, source, target, head)
    assert (start < 0).all()
    for k in (0.0, 0.25, 0.5, 0.8, 1.0):
        found = margin(torch.lerp(z, end, k), source, target, head)
        torch.testing.assert_close(found, (1 - 2 * k) * start, atol=2e-3, rtol=1e-3)


def test_pairwise_moves_along_the_normal_alone(points, head) -> None:
    z, source, target = points
    weight, _ = head
    moved = reflect(z, source, target, *head, "pairwise") - z
    normal = weight[target] - weight[source]
    cosine = torch.nn.functional.cosine_similarity(moved, normal)
    torch.testing.assert_close(cosine, torch.ones(N), atol=1e-5, rtol=0)
    again = reflect(z + moved, source, target, *head, "pairwise")
    torch.testing.assert_close(again, z, atol=1e-4, rtol=0)  # a mirror undoes itself


@pytest.mark.parametrize("kind", KINDS[1:])
def test_multi_class_exchanges_two_logits_and_keeps_the_others(kind, points, head) -> None:
    z, source, target = points
    weight, bias = head
    before = z @ weight.T + bias
    after = reflect(z, source, target, *head, kind) @ weight.T + bias
    wanted = before.clone()
    rows = torch.arange(N)
    wanted[rows, source], wanted[rows, target] = before[rows, target], before[rows, source]
    torch.testing.assert_close(after, wanted, atol=1e-3, rtol=0)
    p, q = before.softmax(dim=1), after.softmax(dim=1)
    torch.testing.assert_close(q[rows, target], p[rows, source], atol=1e-3, rtol=0)
    torch.testing.assert_close(q[rows, source], p[rows, target], atol=1e-3, rtol=0)


def test_closed_form_and_lbfgs_agree(points, head) -> None:
    z, source, target = points
    closed, iterated = (reflect(z, source, target, *head, kind) for kind in KINDS[1:])
    assert ((closed - iterated) @ head[0].T).abs().max() < 1e-3


def test_the_closed_form_is_the_least_move(points, head) -> None:
    """Among all z with the wanted logits it is the one nearest to z: no part in W's null space."""
    weight = torch.cat([head[0][:3], head[0][:1] * 0.5 + head[0][1:2]])  # of rank 3
    z, source, target = points[0], torch.zeros(N, dtype=torch.long), torch.ones(N, dtype=torch.long)
    moved = (reflect(z, source, target, weight[:3], head[1][:3], "multi-class") - z).double()
    inside = moved @ torch.linalg.pinv(weight[:3].double()) @ weight[:3].double()
    torch.testing.assert_close(moved, inside, atol=1e-5, rtol=0)


def test_with_two_classes_both_reflections_are_one_and_swap_the_confidences() -> None:
    random = generator(4)
    weight, bias = torch.randn(2, D, generator=random), torch.randn(2, generator=random)
    z = torch.randn(N, D, generator=random)
    source = (z @ weight.T + bias).argmax(dim=1)
    pairwise, multi = (reflect(z, source, 1 - source, weight, bias, kind) for kind in KINDS[:2])
    p = (z @ weight.T + bias).softmax(dim=1)
    q = (pairwise @ weight.T + bias).softmax(dim=1)
    torch.testing.assert_close(q, p.flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close((multi @ weight.T + bias).softmax(dim=1), q, atol=1e-5, rtol=0)


def test_a_head_without_full_rank_is_reflected_too() -> None:
    row = torch.randn(1, D, generator=generator(5))
    weight, bias = torch.cat([row, -row]), torch.zeros(2)
    z = torch.randn(N, D, generator=generator(6))
    zeros = torch.zeros(N, dtype=torch.long)
    end = reflect(z, zeros, zeros + 1, weight, bias, "multi-class")
    torch.testing.assert_close(end @ weight.T, (z @ weight.T).flip(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("reflection", KINDS[:2])
def test_the_lifted_map_has_the_reflection_as_its_mean(reflection, points, head) -> None:
    _, source, target = points
    last_map = torch.randn(N, D, 4, 4, generator=generator(7))
    z = last_map.mean(dim=(2, 3))
    end = reflect(z, source, target, *head, reflection)
    weight, bias = head
    normal, offset = weight[target] - weight[source], bias[target] - bias[source]
    uniform, local = (lift(last_map, end, normal, offset, k) for k in ("uniform", "per-location"))
    for lifted in (uniform, local):
        torch.testing.assert_close(lifted.mean(dim=(2, 3)), end, atol=1e-5, rtol=0)
        for k in (0.0, 0.3, 0.5):
            mean = torch.lerp(last_map, lifted, k).mean(dim=(2, 3))
            torch.testing.assert_close(mean, torch.lerp(z, end, k), atol=1e-5, rtol=0)
    assert not torch.allclose(uniform, local, atol=1e-2)
    shift = uniform - last_map
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    if reflection == "pairwise":  # per location, the margin of every location is negated
        before = torch.einsum("nd,ndhw->nhw", normal, last_map) + offset[:, None, None]
        after = torch.einsum("nd,ndhw->nhw", normal, local) + offset[:, None, None]
        torch.testing.assert_close(after, -before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalisation", ["relu-max", "min-max"])
def test_the_mask_is_a_union_that_grows_as_the_threshold_falls(normalisation) -> None:
    moved = torch.randn(N, D, 5, 5, generator=generator(8))
    rows = [torch.randn(N, D, generator=generator(seed)) for seed in (9, 10)]

    def mask(evidence: list[Tensor], threshold: float) -> Tensor:
        return spatial_prior(moved, evidence, torch.full((N,), threshold), normalisation)

    previous = torch.zeros(N, 1, 5, 5)
    for threshold in (0.9, 0.6, 0.3, 0.1):
        found = mask(rows, threshold)
        assert found.shape == (N, 1, 5, 5) and set(found.unique().tolist()) <= {0.0, 1.0}
        assert (found >= previous).all() and found.sum() > previous.sum()
        union = torch.maximum(mask(rows[:1], threshold), mask(rows[1:], threshold))
        assert torch.equal(found, union)
        previous = found
    activation = torch.einsum("nd,ndhw->nhw", rows[0], moved).numpy()
    if normalisation == "relu-max":
        scaled = activation.clip(0) / activation.clip(0).max((1, 2), keepdims=True)
    else:
        low = activation.min((1, 2), keepdims=True)
        scaled = (activation - low) / (activation.max((1, 2), keepdims=True) - low)
    np.testing.assert_array_equal(mask(rows[:1], 0.5)[:, 0].numpy(), scaled > 0.5)


def test_the_threshold_is_one_minus_k_within_its_bounds(create, queries, monkeypatch) -> None:
    from counterlens.methods import mirror_cfe

    seen: list[float] = []

    def record(moved: Tensor, evidence: object, threshold: Tensor, kind: str) -> Tensor:
        seen.extend(threshold.tolist())
        return torch.ones_like(moved[:, :1])

    monkeypatch.setattr(mirror_cfe, "spatial_prior", record)
    method = create("mirror-cfe")
    mirror = method.mirror(method.classifier.maps(queries.x), queries.source, queries.target)
    with torch.no_grad():
        for k in (0.0, 0.3, 1.0):
            method.draw(mirror, torch.full((6,), k))
    np.testing.assert_allclose(seen, [0.9] * 6 + [0.7] * 6 + [0.1] * 6, atol=1e-6)


def drawn(method: MirrorCFE, queries, k: float) -> Tensor:
    with torch.no_grad():
        mirror = method.mirror(method.classifier.maps(queries.x), queries.source, queries.target)
        return method.draw(mirror, torch.full((len(queries.x),), k))


def test_the_mask_matters_to_the_full_controller_alone(create, queries, monkeypatch) -> None:
    from counterlens.methods import mirror_cfe

    def filled(value: float):
        return lambda moved, *rest: torch.full_like(moved[:, :1], value)

    for ssc, matters in (("full", True), ("no-csp", False), ("skip", False)):
        method = create("mirror-cfe", ssc=ssc)
        method.generator.eval()
        found = []
        for value in (0.0, 1.0):
            monkeypatch.setattr(mirror_cfe, "spatial_prior", filled(value))
            found.append(drawn(method, queries, 0.5))
        assert torch.equal(*found) != matters


def test_an_empty_mask_leaves_the_querys_own_features(create, queries, monkeypatch) -> None:
    from counterlens.methods import mirror_cfe

    monkeypatch.setattr(
        mirror_cfe, "spatial_prior", lambda moved, *rest: torch.zeros_like(moved[:, :1])
    )
    full, skip = create("mirror-cfe"), create("mirror-cfe", ssc="skip")
    skip.generator.load_state_dict(full.generator.state_dict())
    full.generator.eval(), skip.generator.eval()
    torch.testing.assert_close(drawn(full, queries, 0.4), drawn(skip, queries, 0.4))


# Losses


@pytest.fixture
def training(create, shapes) -> Training:
    return Training(create("mirror-cfe"), shapes(40, (4, 9)))


def make_batch(training: Training, **changes):
    batch = training.batch(torch.arange(16), generator(3), from_target=False)
    for name, value in changes.items():
        setattr(batch, name, value)
    return batch


def test_a_batch_has_the_predicted_source_and_anchors_of_its_classes(training) -> None:
    labels_of = {}
    for label, rows in training.anchors.items():
        assert (training.predicted[rows] == label).all()
        labels_of |= {row: label for row in rows.tolist()}
    batch = make_batch(training)
    assert torch.equal(batch.source, training.predicted[:16])
    assert torch.equal(batch.target, 13 - batch.source)  # 4 and 9

    def row(image: Tensor) -> int:
        return int((training.images == image).flatten(1).all(dim=1).nonzero()[0])

    for number in range(16):
        assert labels_of[row(batch.anchor[number])] == batch.target[number]
        assert labels_of[row(batch.own_anchor[number])] == batch.source[number]
    other = training.batch(torch.arange(16), generator(3), from_target=True)
    assert torch.equal(other.rebuilt, other.anchor)
    assert torch.equal(other.rebuilt_source, other.target)
    assert torch.equal(batch.rebuilt, batch.x)


def test_the_share_at_the_reflection(create, shapes) -> None:
    data = shapes(40, (4, 9))
    for share in (0.0, 1.0):
        training = Training(create("mirror-cfe", at_reflection=share), data)
        k = make_batch(training).k
        assert ((k == 1) == bool(share)).all() and ((k >= 0) & (k <= 1)).all()


def triangulate(training: Training, moved: float, k: float) -> float:
    """The loss where images lie on a line: source at 0, drawn at `moved`, anchors at 1."""
    n = 16
    shape = (n, 1, 28, 28)
    z, end = torch.zeros(n, D), torch.ones(n, D)
    batch = make_batch(
        training,
        x=torch.zeros(shape),
        drawn=torch.full(shape, moved),
        anchor=torch.ones(shape),
        own_anchor=torch.ones(shape),
        anchor_z=end,
        own_anchor_z=end,
        k=torch.full((n,), k),
    )
    return float(training.triangulation(batch, z, torch.full((n, D), k)))


def test_triangulation_asks_for_the_ratio_of_the_latent_distances(training) -> None:
    training.method.options = training.method.options.model_copy(update={"alpha": 0.0})
    for k in (0.3, 0.6):  # source-class anchor before 0.5, target-class anchor after
        assert triangulate(training, k, k) == pytest.approx(0, abs=1e-5)
        # moved too little: 2 |expected - moved| with expected = (1 - moved) / ratio
        ratio = (1 - k) / k
        assert triangulate(training, k / 2, k) == pytest.approx(
            2 * ((1 - k / 2) / ratio - k / 2), rel=1e-4
        )
        assert triangulate(training, (1 + k) / 2, k) == pytest.approx(
            2 * ((1 + k) / 2 - (1 - (1 + k) / 2) / ratio), rel=1e-4
        )


def test_alpha_widens_what_triangulation_allows(training) -> None:
    found = []
    for alpha in (0.0, 0.2, 0.6):
        training.method.options = training.method.options.model_copy(update={"alpha": alpha})
        found.append(triangulate(training, 0.45, 0.55))
    assert found[0] > found[1] >= found[2] and found[2] == 0
    assert np.isfinite(triangulate(training, 0.0, 0.0))  # the ratio is bounded at k = 0


def test_gradients_reach_the_generator_through_the_classifier_and_never_its_weights(
    training, states
) -> None:
    before = states()
    critic = patch_discriminator((1, 28, 28))
    batch = make_batch(training)
    losses = training.losses(batch, critic)
    assert set(losses) == {
        "classification",
        "reconstruction",
        "feature",
        "triangulation",
        "adversarial",
    }
    method = training.method
    for name in ("classification", "feature"):  # both see images by way of the classifier alone
        gradients = torch.autograd.grad(
            losses[name], list(method.generator.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    torch.stack(list(losses.values())).sum().backward()
    assert states() == before  # neither changed nor with a gradient
    assert all(p.grad is None for p in critic.parameters())


def test_the_losses_vanish_where_all_is_as_intended(training) -> None:
    z = training.z[:8]
    assert float(training.classification(z, z)) == pytest.approx(0, abs=1e-6)
    assert float(training.feature(z, z)) == 0
    other = z + training.deviation
    assert float(training.feature(z, other)) == pytest.approx(1, rel=1e-5)
    assert float(training.classification(z, z.flip(0))) > 0


def test_divergence_is_kl_of_intended_from_predicted(training) -> None:
    z, drawn = training.z[:8], training.z[8:16]
    p, q = (training.method.intended(part).double() for part in (z, drawn))
    forward = (p * (p / q).log()).sum(dim=1).mean()
    assert float(training.classification(z, drawn)) == pytest.approx(float(forward), rel=1e-3)
    options = training.method.options
    training.method.options = options.model_copy(update={"divergence": "predicted-intended"})
    backward = (q * (q / p).log()).sum(dim=1).mean()
    assert float(training.classification(z, drawn)) == pytest.approx(float(backward), rel=1e-3)


# Explanations


def test_the_first_flip_is_the_first_of_the_whole_grid(create, queries, monkeypatch) -> None:
    method = create("mirror-cfe", grid=9)
    method.generator.eval()
    answers = torch.tensor([[4] * 3 + [9] + [4] + [9] * 4, [4] * 9, [9] * 9, [4] * 8 + [9]])
    asked: list[int] = []

    def draw(mirror, k: Tensor) -> Tensor:
        asked.append(len(k))
        rows = (mirror.z[:, 0]).long()
        return answers[rows, (k * 8).round().long()].float()[:, None, None, None]

    monkeypatch.setattr(method, "draw", draw)
    monkeypatch.setattr(
        method,
        "classifier",
        lambda images: torch.nn.functional.one_hot(images.flatten().long(), 10).float(),
    )
    mirror = create("mirror-cfe").mirror(
        create("mirror-cfe").classifier.maps(queries.x[:4]), queries.source[:4], queries.target[:4]
    )
    mirror.z = torch.arange(4.0)[:, None].expand(4, 3).clone()
    k, found = method.first_flip(mirror, torch.full((4,), 9))
    np.testing.assert_allclose(k.tolist(), [3 / 8, 1.0, 0.0, 1.0])
    assert found.tolist() == [True, False, True, True]
    assert asked == [4, 3, 3, 3, 2, 2, 2, 2, 2]  # who has flipped leaves the batch


def test_the_points_of_the_path(create, queries) -> None:
    first = create("mirror-cfe", grid=11)
    first.generator.eval()
    walk = first.path(queries.x, queries.source, queries.target)
    assert walk is not None and walk.images.shape == (6, 11, 1, 28, 28)
    torch.testing.assert_close(walk.position, torch.linspace(0, 1, 11))
    assert walk.intended is not None and walk.features is not None
    torch.testing.assert_close(walk.intended.sum(dim=2), torch.ones(6, 11))
    torch.testing.assert_close(
        walk.intended[:, 0], first.classifier(queries.x).softmax(dim=1).detach()
    )
    for point, step in (("projection", 5), ("reflection", 10)):
        other = create("mirror-cfe", grid=11, point=point)
        other.generator.load_state_dict(first.generator.state_dict())
        other.generator.eval()
        answer = other.explain(queries.x, queries.source, queries.target)
        torch.testing.assert_close(answer.counterfactual, walk.images[:, step], atol=1e-5, rtol=0)
        assert other.path(queries.x, queries.source, queries.target) is None
    answer = first.explain(queries.x, queries.source, queries.target)
    semi = create("mirror-cfe", grid=11, point="semi-factual")
    semi.generator.load_state_dict(first.generator.state_dict())
    semi.generator.eval()
    before = semi.explain(queries.x, queries.source, queries.target)
    expected = (answer.extras["position"] - 0.1).clamp(min=0)
    torch.testing.assert_close(before.extras["position"], expected)


def test_pick_takes_every_choice_of_a_label_equally_often() -> None:
    choices = {0: torch.tensor([10, 11, 12]), 5: torch.tensor([50])}
    labels = torch.tensor([0, 5] * 3000)
    found = pick(labels, choices, generator(1))
    assert set(found[labels == 5].tolist()) == {50}
    counts = torch.bincount(found[labels == 0])[10:]
    assert len(counts) == 3 and (counts - 1000).abs().max() < 120


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1, 28, 28), (7, 7)), ((3, 64, 64), (8, 8)), ((1, 17, 256), (8, 128)), ((1, 8, 9), (8, 9))],
)
def test_the_discriminator_judges_patches(shape, size) -> None:
    critic = patch_discriminator(shape)
    assert critic(torch.rand(2, *shape)).shape == (2, 1, *size)


# Other sizes


@pytest.mark.parametrize(
    ("size", "less"), [((28, 28), (7, 7)), ((17, 23), (5, 6)), ((17, 23), (4, 5)), ((9, 9), (4, 4))]
)
def test_pooling_gives_means(size: tuple[int, int], less: tuple[int, int]) -> None:
    """Of stages that halve and round up, as (5, 6), or down; of equal windows where there are."""
    x = torch.rand(2, 3, *size, requires_grad=True)
    found = Pooling(less)(x)
    assert found.shape == (2, 3, *less)
    assert ((found >= 0) & (found <= 1)).all()
    if size == (28, 28):
        assert torch.equal(found, functional.avg_pool2d(x, 4))
    found.sum().backward()
    assert x.grad is not None and (x.grad > 0).all()


@pytest.mark.parametrize("ssc", ["full", "no-csp", "skip"])
def test_the_generator_draws_images_of_any_size(ssc: str) -> None:
    sizes, channels, shape = [(17, 23), (9, 12), (5, 6)], [2, 3, 4], (3, 34, 45)
    model = MirrorGenerator(channels, sizes, shape, ssc, 6)
    maps = [torch.rand(2, d, *size) for d, size in zip(channels, sizes, strict=True)]
    moved = maps[-1].clone().requires_grad_(True)
    mask = torch.ones(2, 1, *sizes[-1])
    images = model(moved, maps[:-1], model.inward(maps), mask)
    assert images.shape == (2, *shape) and ((images >= 0) & (images <= 1)).all()
    (gradient,) = torch.autograd.grad(images.sum(), moved)
    assert gradient.any()
