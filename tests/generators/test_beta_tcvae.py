"""The decomposition of the divergence, by hand and over all batches; the ramp; other sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from counterlens.generators.beta_tcvae import (
    BetaTCVAE,
    Options,
    cyclic_ramp,
    decompose,
    log_normal,
    stratified_weights,
)


def posteriors(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draws, means and log-variances (count, size), in double precision."""
    random = torch.Generator().manual_seed(seed)
    mean = torch.randn(count, size, generator=random, dtype=torch.float64)
    log_variance = torch.randn(count, size, generator=random, dtype=torch.float64)
    noise = torch.randn(count, size, generator=random, dtype=torch.float64)
    return mean + (log_variance / 2).exp() * noise, mean, log_variance


def test_the_density_against_torch() -> None:
    z, mean, log_variance = posteriors(4, 3)
    expected = Normal(mean, (log_variance / 2).exp()).log_prob(z)
    torch.testing.assert_close(log_normal(z, mean, log_variance), expected)


def test_the_decomposition_by_loops() -> None:
    """Three images of nine: every density and every sum one by one."""
    z, mean, log_variance = posteriors(3, 2)
    found = decompose(z, mean, log_variance, 9)
    for own in range(3):
        # own image one of nine; of the two others one stands for its share of what is left
        share = {own: 1 / 9, (own + 1) % 3: 7 / 18, (own + 2) % 3: 1 / 2}
        assert sum(share.values()) == pytest.approx(1)

        def density(image: int, place: int, own: int = own) -> float:
            deviation = math.exp(float(log_variance[image, place]) / 2)
            scaled = (float(z[own, place]) - float(mean[image, place])) / deviation
            return math.exp(-(scaled**2) / 2) / (deviation * math.sqrt(2 * math.pi))

        posterior = density(own, 0) * density(own, 1)
        joint = sum(w * density(image, 0) * density(image, 1) for image, w in share.items())
        marginals = math.prod(
            sum(w * density(image, place) for image, w in share.items()) for place in (0, 1)
        )
        prior = math.exp(-float(z[own].square().sum()) / 2) / (2 * math.pi)
        assert float(found[0][own]) == pytest.approx(math.log(posterior / joint))
        assert float(found[1][own]) == pytest.approx(math.log(joint / marginals))
        assert float(found[2][own]) == pytest.approx(math.log(marginals / prior))


def test_the_sum_of_the_terms_is_the_divergence_on_average() -> None:
    mean, log_variance = posteriors(5, 2)[1:]
    random = torch.Generator().manual_seed(1)
    totals = []
    for _ in range(4000):
        noise = torch.randn(5, 2, generator=random, dtype=torch.float64)
        z = mean + (log_variance / 2).exp() * noise
        totals.append(torch.stack(decompose(z, mean, log_variance, 50)).sum(dim=0))
    found = torch.stack(totals).mean(dim=0)
    posterior = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(5, 2), torch.ones(5, 2))).sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_the_stratified_estimate_of_the_aggregate_posterior_is_unbiased() -> None:
    """Over all batches of three out of five images that hold the first: exactly the mean of all."""
    z, mean, log_variance = posteriors(5, 2)
    densities = log_normal(z[0], mean, log_variance).sum(dim=1).exp()
    weights = stratified_weights(3, 5)[0]
    estimates = [
        float((weights * densities[[0, *others]]).sum())
        for others in itertools.permutations(range(1, 5), 2)
    ]
    assert sum(estimates) / len(estimates) == pytest.approx(float(densities.mean()))
    assert len({round(estimate, 9) for estimate in estimates}) > 1


@pytest.mark.parametrize(("size", "count"), [(2, 2), (3, 9), (64, 60_000)])
def test_the_weights_sum_to_one(size: int, count: int) -> None:
    weights = stratified_weights(size, count)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size, dtype=torch.float64))


def test_independent_dimensions_have_no_total_correlation() -> None:
    """Of the same posterior for all images the information and the correlation are zero."""
    z, mean, log_variance = posteriors(6, 3)
    same = mean[:1].expand(6, 3), log_variance[:1].expand(6, 3)
    information, correlation, _ = decompose(z, *same, 6)
    torch.testing.assert_close(information, torch.zeros_like(information))
    torch.testing.assert_close(correlation, torch.zeros_like(correlation))


def test_four_cycles_rise_in_the_first_half_of_each() -> None:
    assert [cyclic_ramp(cycle / 4) for cycle in range(4)] == [0.001] * 4
    for cycle in range(4):
        assert cyclic_ramp((cycle + 0.25) / 4) == pytest.approx(0.5)
        assert cyclic_ramp((cycle + 0.5) / 4) == cyclic_ramp((cycle + 0.9) / 4) == 1


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 32, 64), (1, 27, 30), (1, 8, 8)])
def test_other_sizes(shape: tuple[int, int, int]) -> None:
    model = BetaTCVAE(Options(kind="beta-tcvae", width=4, latent_dim=5), shape).eval()
    x = torch.rand(2, *shape)
    z = model.encode(x)
    assert z.shape == (2, 5) and model.decode(z).shape == x.shape


def test_the_codes_are_the_posterior_s_means(create) -> None:
    model = create("beta-tcvae").eval()
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(model.encode(x), model.encoder(2 * x - 1)[:, :8])


def test_it_learns_to_reconstruct(create, training) -> None:
    history = create("beta-tcvae", epochs=8, lr=0.01, beta=0.0, precision="fp32").fit(training())
    assert history[-1]["reconstruction"] < 0.7 * history[0]["reconstruction"]


def test_beta_presses_the_code(create, training) -> None:
    terms = ("mutual_information", "total_correlation", "divergence")
    free, pressed = (
        create("beta-tcvae", epochs=4, lr=0.01, beta=beta).fit(training())[-1] for beta in (0, 1)
    )
    assert sum(pressed[term] for term in terms) < 0.5 * sum(free[term] for term in terms)
    assert pressed["reconstruction"] > free["reconstruction"]


def test_the_classifier_s_features_are_an_option(create, training) -> None:
    rows = [
        create("beta-tcvae", epochs=1, perceptual=perceptual).fit(training(count=32))[0]
        for perceptual in ("none", "classifier")
    ]
    assert "perceptual" not in rows[0] and rows[1]["perceptual"] > 0


def test_fewer_training_images(create, training) -> None:
    """The first 32 of 64 give what a set of 32 gives."""
    first = create("beta-tcvae", epochs=1, images=32).fit(training(count=64))
    second = create("beta-tcvae", epochs=1).fit(training(count=32))
    assert first == second
