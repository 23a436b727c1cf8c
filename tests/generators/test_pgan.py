"""The progressive GAN: layers, growth, losses, and the encoder that is trained against it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from counterlens import plugins
from counterlens.generators.base import Generator
from counterlens.generators.pgan import (
    PGAN,
    EqualisedConv2d,
    EqualisedLinear,
    MinibatchDeviation,
    PixelNorm,
    gradient_penalty,
    initialise,
    shrink,
    twice,
)
from counterlens.runtime.seeding import derive_seed, generator
from counterlens.runtime.training import batches


def made(shape: tuple[int, int, int], **changes: object) -> PGAN:
    content = {"kind": "pgan", "width": 2, "latent_dim": 8, **changes}
    options = plugins.options_class("generators", "pgan").model_validate(content)
    torch.manual_seed(11)
    model = plugins.create("generators", options, Generator, shape)
    assert isinstance(model, PGAN)
    return model


# Layers


def test_equalised_layers_scale_their_weights_when_used() -> None:
    """He's constant sqrt(2 / fan in), with weights of variance 1 (Karras et al., section 4.1)."""
    torch.manual_seed(0)
    convolution, linear = EqualisedConv2d(8, 50, 3), EqualisedLinear(100, 200)
    nn.Sequential(convolution, linear).apply(initialise)
    for layer, fan_in in ((convolution, 72), (linear, 100)):
        assert layer.scale == pytest.approx(math.sqrt(2 / fan_in))
        assert float(layer.weight.detach().std()) == pytest.approx(1, rel=0.05)
        assert layer.bias is not None and not layer.bias.any()
        nn.init.normal_(layer.bias)
    x, z = torch.randn(2, 8, 5, 5), torch.randn(4, 100)
    weight = convolution.weight * math.sqrt(2 / 72)
    expected = functional.conv2d(x, weight, convolution.bias, padding=1)
    torch.testing.assert_close(convolution(x), expected)
    expected = z @ linear.weight.T * math.sqrt(2 / 100) + linear.bias
    torch.testing.assert_close(linear(z), expected)
    assert EqualisedConv2d(4, 1, 1, 1.0).scale == 0.5


def test_pixel_normalisation() -> None:
    x = torch.randn(3, 5, 4, 4)
    found = PixelNorm()(x)
    torch.testing.assert_close(found.square().mean(1), torch.ones(3, 4, 4))
    torch.testing.assert_close(found[1, :, 2, 3], x[1, :, 2, 3] / x[1, :, 2, 3].norm() * 5**0.5)
    assert not PixelNorm()(torch.zeros(1, 5, 1, 1)).any()


def test_the_deviation_of_the_minibatch() -> None:
    layer = MinibatchDeviation()
    x = torch.randn(6, 3, 2, 2)
    expected = x.std(dim=0, correction=0).mean()
    found = layer.train()(x)
    assert torch.equal(found[:, :3], x)
    torch.testing.assert_close(found[:, 3], expected.expand(6, 2, 2))
    torch.testing.assert_close(layer.mean, 0.01 * expected)
    alone = layer.eval()(x[:1])
    torch.testing.assert_close(alone[:, 3], layer.mean.expand(1, 2, 2))
    torch.testing.assert_close(layer(x)[:1], alone)


def test_twice_is_nearest_upsampling() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(twice(x), functional.interpolate(x, scale_factor=2, mode="nearest"))
    assert twice(x).is_contiguous(memory_format=torch.channels_last)


# Sizes


@pytest.mark.parametrize(
    ("shape", "stages", "padded"),
    [((1, 28, 28), 3, (32, 32)), ((3, 64, 64), 4, (64, 64)), ((1, 20, 44), 4, (32, 48))],
)
def test_sizes(shape: tuple[int, int, int], stages: int, padded: tuple[int, int]) -> None:
    model = made(shape).eval()
    assert model.stages == stages
    x, z = torch.rand(2, *shape), torch.randn(2, 8)
    assert model.padded(x).shape == (2, shape[0], *padded)
    assert model.decode(z).shape == x.shape
    assert model.discriminate(x).shape == (2,)


def test_the_published_widths_and_the_padding() -> None:
    """Spec 2.2: 128, 128, 64 and 32 feature maps; black around a 28x28 image."""
    model = made((1, 28, 28), width=32)
    assert [layer.in_channels for layer in model.decoder.to_image] == [128, 128, 64, 32]
    x = torch.rand(1, 1, 28, 28)
    padded = model.padded(x)
    assert torch.equal(padded[:, :, 2:30, 2:30], 2 * x - 1)
    assert (padded[:, :, :2] == -1).all() and (padded[..., 30:] == -1).all()
    image = model.decoder(torch.ones(1, 8), 3, 1.0)
    cropped = model.decode(torch.ones(1, 8))
    torch.testing.assert_close(cropped, (image[:, :, 2:30, 2:30] + 1) / 2)


def test_only_the_direction_of_a_latent_counts() -> None:
    model = made((1, 28, 28)).eval()
    z = torch.randn(3, 8)
    torch.testing.assert_close(model.decode(z), model.decode(7 * z), atol=1e-4, rtol=0)
    assert (model.decode(z) - model.decode(-z)).abs().max() > 1e-3


def test_a_frozen_critic_does_not_see_the_batch() -> None:
    model = made((1, 28, 28)).eval()
    x = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model.discriminate(x)[:1], model.discriminate(x[:1]))


# Growth


def test_a_stage_fades_in_from_the_one_before_to_itself() -> None:
    model = made((1, 28, 28)).eval()
    decoder, critic, z = model.decoder, model.critic, torch.randn(3, 8)
    for stage in (1, 2, 3):
        side = 4 * 2**stage
        smaller, own = decoder(z, stage - 1, 1.0), decoder(z, stage, 1.0)
        assert own.shape == (3, 1, side, side)
        torch.testing.assert_close(decoder(z, stage, 0.0), twice(smaller))
        blend = 0.75 * twice(smaller) + 0.25 * own
        torch.testing.assert_close(decoder(z, stage, 0.25), blend)
        x = torch.randn(3, 1, side, side)
        half = functional.avg_pool2d(x, 2)
        torch.testing.assert_close(critic(x, stage, 0.0), critic(half, stage - 1, 1.0))
        assert (critic(x, stage, 0.5) - critic(x, stage, 1.0)).abs().max() > 1e-4
        torch.testing.assert_close(shrink(x, 0, 0.0), twice(half))
        assert torch.equal(shrink(x, 0, 1.0), x)
        torch.testing.assert_close(shrink(x, 1, 1.0), half)


def test_when_it_grows() -> None:
    """Three smaller stages in the first 60 %, half of each but the first fading in."""
    model = made((1, 28, 28), last_stage=0.4, fade_in=0.5)
    for progress, stage, share in (
        (0.0, 0, 1.0),
        (0.19, 0, 1.0),
        (0.2 + 1e-9, 1, 0.0),
        (0.25, 1, 0.5),
        (0.31, 1, 1.0),
        (0.45, 2, 0.5),
        (0.6, 3, 0.0),
        (0.7, 3, 0.5),
        (0.81, 3, 1.0),
        (0.999, 3, 1.0),
    ):
        found = model.growth(progress)
        assert found[0] == stage and found[1] == pytest.approx(share, abs=1e-6)
    assert made((1, 28, 28), fade_in=0.0).growth(0.61) == (3, 1.0)


# Training


def test_the_gradient_penalty_by_hand() -> None:
    """Of the critic a . x + ||x||^2 / 2 the gradient is a + x."""
    a, x = torch.randn(1, 2, 2), torch.randn(5, 1, 2, 2)

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(a)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a * x + x.square() / 2).flatten(1).sum(1)

    critic = Quadratic()
    penalty = gradient_penalty(critic, x)
    expected = sum((float((a + image).norm()) - 1) ** 2 for image in x) / 5
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    assert critic.a.grad is not None and critic.a.grad.any()


def test_the_critic_s_first_losses_against_their_formulas(create, training) -> None:
    """One batch of 4x4 images: E D(x) - E D(G(z)) and the penalty on their mixture."""
    given = training(count=16)
    row = create("pgan", epochs=1, batch_size=16, precision="fp32", lr=1e-12).fit(given)[0]
    model = create("pgan")
    torch.manual_seed(derive_seed(given.seed, "initial"))
    model.apply(initialise)
    model.train()
    noise = generator(derive_seed(derive_seed(given.seed, "epoch", 0), "latent"))
    (index,) = batches(16, 16, derive_seed(given.seed, "epoch", 0))
    real = functional.avg_pool2d(model.padded(given.images[index]), 8)
    z = torch.randn(16, 8, generator=noise)
    mixture = torch.rand(16, 1, 1, 1, generator=noise)
    fake = model.decoder(z, 0, 1.0).detach()
    on_real, on_fake = model.critic(real, 0, 1.0), model.critic(fake, 0, 1.0)
    penalty = gradient_penalty(model.critic, real + mixture * (fake - real), 0, 1.0)
    assert row["distance"] == pytest.approx(
        float((on_real.mean() - on_fake.mean()).detach()), rel=1e-3
    )
    assert row["penalty"] == pytest.approx(float(penalty.detach()), rel=1e-3)
    assert row["generator"] == pytest.approx(float(-on_fake.mean().detach()), rel=1e-3)


def test_decoding_is_by_the_moving_average(create, training) -> None:
    """A long memory leaves the decoder nearer to where it began."""
    given = training(count=64)
    began = create("pgan")
    torch.manual_seed(derive_seed(given.seed, "initial"))
    began.apply(initialise)
    moved = []
    for ema in (0.0, 0.999):
        model = create("pgan", epochs=1, lr=0.01, ema=ema)
        model.fit(given)
        pairs = zip(model.decoder.parameters(), began.decoder.parameters(), strict=True)
        moved.append(sum(float((a - b).detach().abs().sum()) for a, b in pairs))
    assert 0 < moved[1] < 0.95 * moved[0]


def test_an_encoder_is_trained_against_it(create, training) -> None:
    given = training()
    decoder = create("pgan").eval().requires_grad_(False)
    given = dataclasses.replace(given, generators={"pgan": decoder})
    encoder = create("dcgan-encoder", generator="pgan", epochs=6, lr=0.01, decay_every=3)
    assert encoder.options.conflict({"pgan": decoder.options}) is None
    history = encoder.fit(given)
    assert history[-1]["pixels"] < history[0]["pixels"]
    assert set(encoder.quality(given).gates()) == {"class_kept", "reconstruction_l1"}
    other = decoder.options.model_copy(update={"latent_dim": 9})
    assert "takes 9" in str(encoder.options.conflict({"pgan": other}))
