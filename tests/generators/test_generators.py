"""Every shipped generator: sizes, ranges, training and resuming; each quality gate."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from counterlens import plugins
from counterlens.generators import vae
from counterlens.generators.base import (
    Generator,
    Quality,
    reconstruction_quality,
    reconstructions,
)
from counterlens.generators.dcgan import initialise
from counterlens.generators.dcgan_encoder import sum_of_means
from counterlens.runtime.training import Checkpoint, History

# no latents (test_diffusion.py), maps of them (test_latent_diffusion.py, test_stable_diffusion.py)
# or codes of regions (test_sean.py, test_released_sean.py); BigGAN is read (test_biggan.py)
OTHERS = {
    *("ddpm", "guided-diffusion", "latent-diffusion", "stable-diffusion"),
    *("sean", "released-sean", "biggan"),
}
KINDS = [kind for kind in plugins.known("generators") if kind not in OTHERS]
SHAPE = (1, 28, 28)


def state(model: nn.Module) -> dict[str, bytes]:
    return {k: v.contiguous().numpy().tobytes() for k, v in model.state_dict().items()}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def does(model: Generator, name: str) -> bool:
    """Whether the generator has a `decode`, `encode` or `discriminate` of its own."""
    return getattr(type(model), name) is not getattr(Generator, name)


# Architecture


def test_dcgan_has_the_paper_s_size(create) -> None:
    model = create("dcgan", width=64, latent_dim=100)
    assert parameters(model.decoder) == 3_573_696
    assert parameters(model.discriminator) == 661_248
    assert parameters(model) == 3_573_696 + 661_248


def test_the_encoder_has_the_paper_s_size(create) -> None:
    model = create("dcgan-encoder", width=64, latent_dim=100)
    assert parameters(model) == 1_066_952
    assert isinstance(model.encoder[-1], nn.BatchNorm2d)


def sides(stack: nn.Sequential, x: Tensor, kind: type) -> list[tuple[int, ...]]:
    """Channels and side after each convolution."""
    found = []
    for layer in stack:
        x = layer(x)
        if isinstance(layer, kind):
            assert x.shape[2] == x.shape[3]
            found.append((x.shape[1], x.shape[2]))
    return found


def test_the_layers_are_those_of_the_tables(create) -> None:
    """Spec 2.1 and 1.5 at width 4."""
    dcgan, encoder = create("dcgan"), create("dcgan-encoder")
    latent, image = torch.randn(2, 8, 1, 1), torch.rand(2, *SHAPE)
    assert sides(dcgan.decoder, latent, nn.ConvTranspose2d) == [
        (32, 4),
        (16, 8),
        (8, 16),
        (4, 32),
        (1, 28),
    ]
    wanted = [(4, 14), (8, 7), (16, 3)]
    assert sides(dcgan.discriminator, image, nn.Conv2d) == [*wanted, (1, 1)]
    assert sides(encoder.encoder, image, nn.Conv2d) == [*wanted, (8, 1)]
    for stack in (dcgan.decoder, dcgan.discriminator, encoder.encoder):
        for layer in stack:
            assert getattr(layer, "bias", None) is None or isinstance(layer, nn.BatchNorm2d)
            if isinstance(layer, nn.LeakyReLU):
                assert layer.negative_slope == 0.2


def test_both_networks_of_dcgan_work_in_minus_one_to_one(create) -> None:
    model = create("dcgan").eval()
    z, x = torch.randn(3, 8), torch.rand(3, *SHAPE)
    raw = model.decoder(z.reshape(3, 8, 1, 1))
    assert raw.min() < 0
    torch.testing.assert_close(model.decode(z), raw / 2 + 0.5)
    torch.testing.assert_close(
        model.discriminate(x), model.discriminator((x - 0.5) / 0.5)[:, 0, 0, 0]
    )
    encoder = create("dcgan-encoder").eval()
    torch.testing.assert_close(encoder.encode(x), encoder.encoder((x - 0.5) / 0.5).reshape(3, 8))


def test_the_vae_encodes_the_mean(create) -> None:
    model = create("vae").eval()
    x = torch.rand(3, *SHAPE)
    heads = model.encoder(2 * x - 1).flatten(1)
    assert heads.shape == (3, 16)
    assert torch.equal(model.encode(x), heads[:, :8])
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in [model.encoder[-1]])


# Contract


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges(kind: str, channels: int, create) -> None:
    model = create(kind, channels)
    assert does(model, "decode") or does(model, "encode")
    for count in (5, 1, 0):
        model.eval()
        if does(model, "decode"):
            images = model.decode(3 * torch.randn(count, model.latent_dim))
            assert images.shape == (count, channels, 28, 28) and images.dtype == torch.float32
            assert ((images >= 0) & (images <= 1)).all()
        if does(model, "encode"):
            z = model.encode(torch.rand(count, channels, 28, 28))
            assert z.shape == (count, model.latent_dim) and z.dtype == torch.float32
        if does(model, "discriminate"):
            assert model.discriminate(torch.rand(count, channels, 28, 28)).shape == (count,)


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_say_what_it_can(kind: str, create) -> None:
    model = create(kind)
    assert model.options.has_discriminator == does(model, "discriminate")
    missing = {
        "decode": torch.zeros(1, 8),
        "encode": torch.zeros(1, *SHAPE),
        "discriminate": torch.zeros(1, *SHAPE),
    }
    for name, argument in missing.items():
        if not does(model, name):
            with pytest.raises(TypeError, match=type(model).__name__):
                getattr(model, name)(argument)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_answers_do_not_depend_on_the_batch(kind: str, create) -> None:
    model = create(kind).eval()
    if does(model, "decode"):
        z = torch.randn(5, model.latent_dim)
        torch.testing.assert_close(
            torch.cat([model.decode(part) for part in z.split(2)]), model.decode(z)
        )
    if does(model, "encode"):
        x = torch.rand(5, *SHAPE)
        torch.testing.assert_close(
            torch.cat([model.encode(part) for part in x.split(2)]), model.encode(x)
        )


# Training


def fitted(kind: str, create, training) -> tuple[Generator, History]:
    changes: dict[str, object] = {"epochs": 3}
    if "decay_every" in plugins.options_class("generators", kind).model_fields:
        changes["decay_every"] = 2  # a resumed run must know when
    if kind == "dcgan-encoder":
        changes["latent_weight"] = 0.1
    model = create(kind, **changes)
    return model, model.fit(training)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_finite_repeatable_and_resumed(
    kind: str, create, training, kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state(create(kind))
    first, history = fitted(kind, create, training())
    assert not first.training
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in history)
    assert history[0] != history[1]
    assert all(value.isfinite().all() for value in first.state_dict().values())
    after = state(first)
    assert all(after[name] != before[name] for name in after), "some parameter is not trained"

    second, again = fitted(kind, create, training())
    assert again == history and state(second) == after
    assert state(fitted(kind, create, training(seed=4))[0]) != after

    module = importlib.import_module(type(first).__module__)
    with pytest.raises(kill(module, 2)):
        fitted(kind, create, training(Checkpoint(kind, [], seconds=0)))
    kept = Checkpoint(kind, [], seconds=0)
    saved = kept.load()
    assert saved is not None and len(saved["history"]) == 1
    resumed, history_of_resumed = fitted(kind, create, training(kept))
    assert history_of_resumed == history and state(resumed) == after


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_builds_on_stays_as_it_is(kind: str, create, training) -> None:
    given = training()
    frozen = [given.classifier, *given.generators.values()]
    before = [state(model) for model in frozen]
    images = given.images.clone()
    fitted(kind, create, given)
    assert [state(model) for model in frozen] == before
    assert torch.equal(given.images, images)
    assert all(p.grad is None for model in frozen for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_last_batch_of_one_image_is_left_out(kind: str, create, training) -> None:
    """Batch normalisation cannot be trained on one image."""
    model = create(kind)
    assert len(model.fit(training(count=33))) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_quality_and_sheet(kind: str, create, training) -> None:
    given = training()
    model = create(kind).eval()
    quality = model.quality(given)
    assert quality.values and all(0 <= value <= 1 for value in quality.values.values())
    assert model.quality(given) == quality
    assert set(quality.gates()) <= set(quality.values)
    sheet = model.sheet(given)
    assert len(sheet) and len(sheet) % 8 == 0 and sheet.shape[1:] == SHAPE
    assert ((sheet >= 0) & (sheet <= 1)).all() and torch.equal(model.sheet(given), sheet)


@pytest.mark.parametrize(
    ("kind", "change", "row"),
    [
        ("dcgan-encoder", {"feature_weight": 0}, {"pixels"}),
        ("dcgan-encoder", {}, {"pixels", "features"}),
        ("dcgan-encoder", {"latent_weight": 0.1}, {"pixels", "features", "latents"}),
        ("dcgan", {}, {"discriminator", "generator"}),
        ("vae", {}, {"reconstruction", "divergence"}),
    ],
)
def test_the_losses_that_are_reported(
    kind: str, change: dict, row: set[str], create, training
) -> None:
    history = create(kind, epochs=1, **change).fit(training(count=32))
    assert set(history[0]) == {"epoch", *row}


def test_generated_images_do_not_count_in_the_encoder_s_statistics(create, training) -> None:
    """One step from the same weights: the running statistics are those of the real images."""

    def statistics(latent_weight: float) -> dict[str, Tensor]:
        options = {"epochs": 1, "batch_size": 16, "precision": "fp32"}
        model = create("dcgan-encoder", latent_weight=latent_weight, **options)
        model.fit(training(count=16))
        found = model.state_dict()
        return {name: found[name].clone() for name in found if "running" in name or "num" in name}

    without, with_latents = statistics(0.0), statistics(0.5)
    assert without
    for name, value in without.items():
        torch.testing.assert_close(with_latents[name], value)


def test_the_encoder_learns_to_reconstruct(create, training) -> None:
    given = training()
    decoder = given.generators["dcgan"]
    with torch.no_grad():
        images = decoder.decode(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    given = dataclasses.replace(given, images=images, test_images=images)
    model = create("dcgan-encoder", epochs=20, lr=0.01, decay_every=6, precision="fp32")
    history = model.fit(given)
    assert history[-1]["pixels"] < 0.7 * history[0]["pixels"]
    found = reconstructions(model, decoder, images)
    own, other = ((images.roll(n, 0) - found).abs().mean() for n in (0, 1))
    assert own < 0.75 * other  # it is the image's own


def test_the_encoder_s_first_losses_against_their_formulas(create, training) -> None:
    """Spec 1.5 on one batch: mean |x - G(E(x))| in [-1, 1] and the sum over both feature maps."""
    given = training(count=16)
    options = {"epochs": 1, "batch_size": 16, "precision": "fp32", "lr": 1e-12}
    model = create("dcgan-encoder", **options)
    row = model.fit(given)[0]
    again = create("dcgan-encoder", **options)
    from counterlens.runtime.seeding import derive_seed

    torch.manual_seed(derive_seed(given.seed, "initial"))
    again.apply(initialise)
    x = given.images
    with torch.no_grad():
        found = given.generators["dcgan"].decode(again.train().encode(x))
        assert given.classifier is not None
        pixels = ((2 * x - 1) - (2 * found - 1)).abs().mean()
        features = sum(
            (a - b).abs().mean()
            for a, b in zip(given.classifier.maps(x), given.classifier.maps(found), strict=True)
        )
    assert row["pixels"] == pytest.approx(float(pixels), rel=1e-4)
    assert row["features"] == pytest.approx(float(features), rel=1e-3)


def test_sum_of_means() -> None:
    wanted = [torch.zeros(2, 3), torch.ones(4)]
    found = [torch.full((2, 3), -2.0), torch.full((4,), 1.5, dtype=torch.bfloat16)]
    assert float(sum_of_means(wanted, found)) == 2.5


def test_dcgan_s_losses_are_binary_cross_entropies(create, training) -> None:
    """One batch: log-losses of real against fake, and the non-saturating loss after that step."""
    given = training(count=16)
    model = create("dcgan", epochs=1, precision="fp32", lr=1e-12)
    row = model.fit(given)[0]
    from counterlens.runtime.seeding import derive_seed, generator

    again = create("dcgan")
    torch.manual_seed(derive_seed(given.seed, "initial"))
    again.apply(initialise)
    again.train()
    noise = generator(derive_seed(derive_seed(given.seed, "epoch", 0), "latent"))
    z = torch.randn(16, 8, 1, 1, generator=noise)
    with torch.no_grad():
        fake = again.decoder(z)
        real = torch.sigmoid(again.discriminator(2 * given.images - 1)).flatten()
        made = torch.sigmoid(again.discriminator(fake)).flatten()
        one, zero = torch.ones(16), torch.zeros(16)
        critic = functional.binary_cross_entropy(real, one) + functional.binary_cross_entropy(
            made, zero
        )
    assert row["discriminator"] == pytest.approx(float(critic), rel=1e-4)
    assert row["generator"] == pytest.approx(
        float(functional.binary_cross_entropy(made, one)), rel=1e-4
    )


def test_dcgan_s_initial_parameters() -> None:
    torch.manual_seed(0)
    convolution, norm = nn.ConvTranspose2d(100, 100, 4), nn.BatchNorm2d(10_000)
    norm.bias.data.fill_(3)
    nn.Sequential(convolution, norm).apply(initialise).requires_grad_(False)
    assert float(convolution.weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(convolution.weight.mean()) == pytest.approx(0, abs=3e-4)
    assert float(norm.weight.mean()) == pytest.approx(1, abs=1e-3)
    assert float(norm.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert (norm.bias == 0).all()


# The variational autoencoder


def test_the_divergence_against_torch() -> None:
    random = torch.Generator().manual_seed(0)
    mean, log_variance = (2 * torch.randn(6, 5, generator=random) for _ in range(2))
    found = vae.kl_divergence(mean, log_variance)
    prior = Normal(torch.zeros(6, 5), torch.ones(6, 5))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), prior).sum(1)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()
    assert torch.equal(vae.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))


def test_beta_pulls_the_codes_to_the_prior(create, training) -> None:
    rows = [
        create("vae", epochs=4, lr=0.01, beta=beta).fit(training())[-1] for beta in (0.0, 100.0)
    ]
    assert rows[1]["divergence"] < rows[0]["divergence"]
    assert rows[1]["reconstruction"] > rows[0]["reconstruction"]


# Quality gates


def test_a_gate_passes_at_its_threshold() -> None:
    quality = Quality(
        {"kept": 0.97, "l1": 0.03, "other": 5.0}, at_least={"kept": 0.97}, at_most={"l1": 0.03}
    )
    assert quality.gates() == {
        "kept": {"value": 0.97, "threshold": 0.97, "bound": "at least", "passed": True},
        "l1": {"value": 0.03, "threshold": 0.03, "bound": "at most", "passed": True},
    }
    worse = Quality(
        {"kept": 0.969, "l1": 0.031}, at_least={"kept": 0.97}, at_most={"l1": 0.03}
    ).gates()
    assert not worse["kept"]["passed"] and not worse["l1"]["passed"]
    share = float((torch.arange(100) < 95).float().mean())
    assert share < 0.95 and Quality({"kept": share}, {"kept": 0.95}).gates()["kept"]["passed"]


def test_reconstruction_quality_by_hand(training) -> None:
    given = training()
    x = given.test_images

    class ByPixel:
        def probabilities(self, images: Tensor) -> Tensor:
            bright = (images[:, 0, 0, 0] > 0.5).float()
            return torch.stack([1 - bright, bright], 1)

    x = torch.zeros(4, *SHAPE)
    found = torch.full_like(x, 0.25)
    found[0, 0, 0, 0] = 1  # this image's class is lost
    given = dataclasses.replace(given, test_images=x, classifier=ByPixel())
    quality = reconstruction_quality(found, given, least_class_kept=0.8, most_l1=0.3)
    assert quality.values["class_kept"] == 0.75
    assert quality.values["reconstruction_l1"] == pytest.approx(0.25 + 0.75 / (4 * 784))
    gates = quality.gates()
    assert not gates["class_kept"]["passed"] and gates["reconstruction_l1"]["passed"]


def test_dcgan_s_quality_by_hand(create, training, answering) -> None:
    """Of 1024 samples: the share with a probability of at least 0.9, and the rarest class."""
    sure = torch.tensor([[0.95, 0.03, 0.02]]).repeat(512, 1)
    unsure = torch.tensor([[0.3, 0.5, 0.2]]).repeat(256, 1)
    third = torch.tensor([[0.05, 0.05, 0.9]]).repeat(256, 1)
    classifier = answering(torch.cat([sure, unsure, third]))
    given = dataclasses.replace(training(), classifier=classifier)
    quality = create("dcgan").eval().quality(given)
    assert quality.values == {"confident_samples": 0.75, "rarest_class_share": 0.25}
    assert all(gate["passed"] for gate in quality.gates().values())
    # a class that never comes fails
    only = dataclasses.replace(given, classifier=answering(sure.repeat(2, 1)))
    gates = create("dcgan").eval().quality(only).gates()
    assert gates["confident_samples"]["passed"] and not gates["rarest_class_share"]["passed"]
    # unless the classifier was not shown it
    seen = dataclasses.replace(only, left_out=(1, 2), classifier=answering(sure.repeat(2, 1)))
    quality = create("dcgan").eval().quality(seen)
    assert quality.values["rarest_class_share"] == 1
