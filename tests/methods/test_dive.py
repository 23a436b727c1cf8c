"""Fisher matrix, masks, loss and choice against values computed by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from counterlens.methods.base import Method
from counterlens.methods.dive import DiVE, choose, latent_masks, spectral_labels
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import image_generators


class LinearGenerator(nn.Module):
    """Codes of 6 numbers; 2x2 images that are linear in them."""

    latent_dim = 6

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(0.1 * torch.randn(4, 6, generator=random), requires_grad=False)

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ torch.linalg.pinv(self.matrix).T

    def decode(self, z: Tensor) -> Tensor:
        return (0.5 + z @ self.matrix.T).reshape(-1, 1, 2, 2)


class LinearClassifier(nn.Module):
    """Ten classes, linear in the four pixels."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(3 * torch.randn(10, 4, generator=random), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T


@pytest.fixture
def linear(create):
    """A DiVE on linear networks."""

    def make(**changes) -> DiVE:
        made: DiVE = create("dive")
        options = made.options.model_copy(update=changes)
        task = dataclasses.replace(
            made.task,
            classifier=LinearClassifier(),  # type: ignore[arg-type]
            generators={"beta-tcvae": LinearGenerator()},  # type: ignore[dict-item]
            shape=(1, 2, 2),
        )
        return DiVE(options, task)

    return make


@pytest.fixture
def fitted(on_trained, shapes) -> DiVE:
    """Small trained networks."""
    method = on_trained("dive", "beta-tcvae", iterations=60)
    method.fit(shapes(24, (4, 9)))
    freeze(method.trained(), method.task.device)
    return method


def ask(method: Method, data):
    randomness = image_generators(85, "tiny", "explain", data.index.tolist())
    return method.explain(data.images, data.labels, 13 - data.labels, randomness)


# The Fisher matrix


def test_the_fisher_matrix_of_linear_networks(linear) -> None:
    """The gradient of the log-odds is the same everywhere: N times its outer product."""
    method = linear(batch_size=4)
    data = SimpleNamespace(images=torch.rand(10, 1, 2, 2))
    history = method.fit(data)
    classifier, generator = method.task.classifier, method.generator
    gradient = (classifier.matrix[9] - classifier.matrix[4]) @ generator.matrix
    torch.testing.assert_close(method.learnt.fisher, 10 * torch.outer(gradient, gradient))
    assert [row["epoch"] for row in history] == [1, 2, 3]  # batches of 4, 4 and 2
    assert history[0]["squared_gradient"] == pytest.approx(float(gradient.square().sum()), rel=1e-4)


def test_the_fisher_matrix_image_by_image(create, shapes) -> None:
    method: DiVE = create("dive")
    data = shapes(6, (4, 9))
    method.fit(data)
    expected = torch.zeros(8, 8)
    for image in data.images:

        def log_odds(z: Tensor) -> Tensor:
            logits = method.task.classifier(method.generator.decode(z[None]))[0]
            return logits[9] - logits[4]

        code = method.generator.encode(image[None])[0].detach()
        gradient = torch.autograd.functional.jacobian(log_odds, code)
        expected += torch.outer(gradient, gradient)
    torch.testing.assert_close(method.learnt.fisher, expected, rtol=1e-3, atol=1e-6)


def test_fewer_images_in_the_fisher_matrix(create, shapes) -> None:
    some, few = create("dive", fisher_images=5), create("dive")
    data = shapes(12, (4, 9))
    some.fit(data)
    few.fit(data.select(torch.arange(5)))
    torch.testing.assert_close(some.learnt.fisher, few.learnt.fisher)


def test_a_second_training_starts_anew(create, shapes) -> None:
    method, data = create("dive"), shapes(12, (4, 9))
    method.fit(data)
    once = method.learnt.fisher.clone()
    method.fit(data)
    assert torch.equal(method.learnt.fisher, once)


# The masks


def blocks(sizes: tuple[int, ...]) -> Tensor:
    """A matrix whose blocks of dimensions go together."""
    matrix = torch.block_diag(*(torch.ones(size, size) for size in sizes)) + 0.01
    matrix[0, -1] = matrix[-1, 0] = 0
    return matrix


def test_clusters_are_the_blocks_of_the_matrix() -> None:
    labels = spectral_labels(blocks((3, 5, 4)), 3, seed=0).tolist()
    parts = [labels[:3], labels[3:8], labels[8:]]
    assert [len({*part}) for part in parts] == [1, 1, 1] and len({*labels}) == 3


@pytest.mark.parametrize("mask", ["fisher-spectral", "random"])
def test_masks_are_disjoint_and_cover_the_code(mask: str) -> None:
    random = torch.Generator().manual_seed(2)
    factor = torch.randn(16, 40, generator=random)
    masks = latent_masks(factor @ factor.T, 4, mask, seed=0)
    assert masks.shape == (4, 16) and torch.equal(masks.sum(dim=0), torch.ones(16))
    assert torch.equal(masks, latent_masks(factor @ factor.T, 4, mask, seed=0))
    if mask == "random":
        assert masks.sum(dim=1).tolist() == [4] * 4
        assert not torch.equal(masks, latent_masks(factor @ factor.T, 4, mask, seed=1))


def test_the_inverse_and_no_mask() -> None:
    matrix = blocks((3, 5, 4))
    masks = latent_masks(matrix, 3, "fisher-spectral", seed=0)
    assert torch.equal(latent_masks(matrix, 3, "fisher-spectral-inverse", seed=0), 1 - masks)
    assert torch.equal(latent_masks(matrix, 3, "none", seed=0), torch.ones(3, 12))
    assert torch.equal(latent_masks(matrix, 1, "fisher-spectral", seed=0), torch.ones(1, 12))


def test_the_explanations_keep_to_their_masks(fitted: DiVE, shapes) -> None:
    """What is returned differs from the code only where one of the masks allows it."""
    data = shapes(12, (4, 9), seed=5)
    answer = ask(fitted, data)
    change = answer.extras["latent_counterfactual"] - answer.extras["latent"]
    masks = fitted.learnt.masks
    outside = ((change != 0)[:, None] & (masks == 0)).any(dim=2)
    assert (~outside).any(dim=1).all() and (change != 0).any(dim=1).all()


# Loss, steps and choice


def test_the_loss_by_hand(linear) -> None:
    """Two images with three explanations each, term by term."""
    weights = {"sparsity": 0.3, "diversity": 0.7, "reconstruction": 5.0}
    method = linear(**weights)
    method.learnt.masks[0, :4] = 0
    random = torch.Generator().manual_seed(4)
    x = torch.rand(2, 1, 2, 2, generator=random)
    z, moved = method.generator.encode(x), torch.randn(2, 3, 6, generator=random)
    moved[:, 0, :4] = 0
    target = torch.tensor([9, 4])
    decoded = method.decode(z, moved)
    logits = method.classify(decoded)
    found = method.losses(x, moved, decoded, logits, target[:, None].expand(-1, 3))
    for image in range(2):
        entropy = sparsity = diversity = distance = 0.0
        for one in range(3):
            drawn = method.generator.decode((z[image] + moved[image, one])[None])
            answers = method.task.classifier(drawn).softmax(dim=1)[0]
            entropy -= math.log(float(answers[target[image]])) / 3
            sparsity += float(moved[image, one].abs().sum())
            distance += float((2 * drawn[0] - 2 * x[image]).abs().mean())
            for other in range(3):
                if other != one:
                    cosine = functional.cosine_similarity(moved[image, one], moved[image, other], 0)
                    diversity += float(cosine) ** 2
        total = 0.3 * sparsity + 0.7 * diversity + 5 * distance
        assert float(found[image]) == pytest.approx(entropy + total / (2 + 6 + 6), rel=1e-4)


def test_the_steps_are_adam_s(linear) -> None:
    """One image, no mask, no early stop: the same as an optimiser on the written-out loss."""
    method = linear(mask="none", iterations=5, stop_at=1.0, reconstruction=1000.0)
    x = torch.full((1, 1, 2, 2), 0.4)
    z = method.generator.encode(x)
    target = int(method.task.classifier(x).argmin())
    answer = method.explain(
        x, torch.tensor([4]), torch.tensor([target]), [torch.Generator().manual_seed(3)]
    )
    start = 0.01 * torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    moved = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([moved], method.options.lr)
    for _ in range(5):
        drawn = method.generator.decode(z + moved)
        logits = method.task.classifier(drawn)
        cosines = functional.cosine_similarity(moved[:, None], moved[None], dim=2).square()
        total = moved.abs().sum() + cosines.sum() - 3 + 1000 * 2 * (drawn - x).abs().mean() * 3
        loss = functional.cross_entropy(logits, torch.tensor([target] * 3)) + total / 18
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probability = method.task.classifier(method.generator.decode(z + moved)).softmax(dim=1)
    torch.testing.assert_close(
        answer.extras["target_probabilities"][0], probability[:, target].detach(), rtol=1e-3, atol=0
    )


def test_the_shortest_that_reaches_the_target_is_chosen() -> None:
    length = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    probability = torch.tensor([[0.9, 0.8, 0.95], [0.3, 0.4, 0.7], [0.2, 0.1, 0.15]])
    reached = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    assert choose(length, probability, reached).tolist() == [1, 2, 0]


def test_it_finds_counterfactuals(fitted: DiVE, shapes) -> None:
    data = shapes(12, (4, 9), seed=5)
    answer = ask(fitted, data)
    answers = fitted.task.classifier(answer.counterfactual).argmax(dim=1)
    assert torch.equal(answer.found, answers == 13 - data.labels)
    assert answer.found.float().mean() >= 0.75


def test_a_finished_image_stays_as_it_is(on_trained, shapes) -> None:
    """More iterations change nothing once all of an image's explanations reach the target."""
    data = shapes(6, (4, 9), seed=5)
    counts = {"mask": "none", "reconstruction": 1.0}
    few, many = (
        ask(on_trained("dive", "beta-tcvae", iterations=count, **counts), data)
        for count in (25, 60)
    )
    finished = (few.extras["target_probabilities"] > 0.5).all(dim=1)
    assert finished.any()
    for answer in (few, many):
        assert answer.found[finished].all()
    torch.testing.assert_close(
        many.counterfactual[finished], few.counterfactual[finished], rtol=1e-3, atol=1e-3
    )


def test_more_iterations_reach_more(fitted: DiVE, shapes) -> None:
    data = shapes(12, (4, 9), seed=5)
    few = DiVE(fitted.options.model_copy(update={"iterations": 1}), fitted.task)
    few.trained().load_state_dict(fitted.trained().state_dict())
    assert ask(few, data).found.sum() < ask(fitted, data).found.sum()
