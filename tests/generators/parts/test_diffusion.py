"""Schedule, reverse step, filter and inpainting, against diffusers and by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from counterlens import layout
from counterlens.classifiers.base import Classifier
from counterlens.errors import UserError
from counterlens.generators import export
from counterlens.generators.base import Training
from counterlens.generators.ddpm import DDPM, Options
from counterlens.generators.parts.diffusion import (
    Diffusion,
    DiffusionFilter,
    Level,
    diffuse,
    linear_schedule,
    respace,
)
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator
from counterlens.runtime.training import Checkpoint, save_model

CPU = torch.device("cpu")


def randomness(count: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(1000 * seed + n) for n in range(count)]


@pytest.fixture(scope="module")
def network() -> DDPM:
    torch.manual_seed(0)
    options = Options(kind="ddpm", channels=(8, 16), steps=500)
    made = DDPM(options, (1, 12, 12))
    freeze(made, torch.device("cpu"))
    return made


@pytest.mark.parametrize(
    ("steps", "kept", "lowest"),
    [
        (500, 50, [0, 10, 20, 31, 41]),
        (500, 25, [0, 21, 42, 62, 83]),
        (1000, 100, [0, 10, 20, 30, 40]),
        (1000, 25, [0, 42, 83, 125, 166]),
    ],
)
def test_respacing_is_that_of_the_official_settings(steps: int, kept: int, lowest: list[int]):
    assert respace(steps, kept)[:5] == lowest


def test_respacing_keeps_both_ends_and_rejects_the_impossible() -> None:
    assert respace(10, 10) == list(range(10))
    with pytest.raises(ValueError, match="11 of 10"):
        respace(10, 11)


def test_the_top_levels_are_those_of_the_official_settings(network: DDPM) -> None:
    top = network.levels(50, 5)[-1]
    assert top.kept**0.5 == pytest.approx(0.962, abs=5e-4)
    assert ((1 - top.kept) / top.kept) ** 0.5 == pytest.approx(0.283, abs=5e-4)
    assert network.levels(25, 5)[-1].kept ** 0.5 == pytest.approx(0.863, abs=5e-4)


def scheduler(steps: int, variance: Any) -> Any:
    scale = 1000 / steps
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=1e-4 * scale,
        beta_end=2e-2 * scale,
        variance_type=variance,
        clip_sample=True,
    )


@pytest.mark.parametrize("with_noise", [False, True])
def test_a_reverse_step_is_that_of_diffusers(network: DDPM, with_noise: bool) -> None:
    theirs = scheduler(500, "fixed_large")
    theirs.set_timesteps(timesteps=[41, 31, 20, 10, 0])
    v = torch.randn(3, 1, 12, 12, generator=generator(1))
    noise = torch.randn(v.shape, generator=generator(2)) * with_noise
    place = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with torch.inference_mode(), mock.patch(place, lambda *_, **__: noise):
        for level in reversed(network.levels(50, 5)):
            predicted, _ = network.predict(v, level.step)
            expected = theirs.step(predicted, level.step, v).prev_sample
            v = network.reverse(v, level, None if level.step == 0 else noise)
            torch.testing.assert_close(v, expected, atol=1e-5, rtol=1e-5)


class LearnedVariance(Diffusion):
    """Says that the image is grey and the variance at a given place."""

    def __init__(self, place: Tensor) -> None:
        super().__init__(Options(kind="ddpm", steps=500), (1, 4, 4))
        self.place = place

    def predict(self, v: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        return 0.1 * v, self.place

    def fit(self, training):
        raise NotImplementedError


def test_a_learned_variance_is_that_of_diffusers() -> None:
    v = torch.randn(2, 1, 4, 4, generator=generator(1))
    place = torch.rand(2, 1, 4, 4, generator=generator(2))
    ours = LearnedVariance(place)
    theirs = scheduler(500, "learned_range")
    theirs.set_timesteps(timesteps=[41, 31, 20, 10, 0])
    noise = torch.randn(v.shape, generator=generator(3))
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise):
        level = ours.levels(50, 5)[-1]
        told = torch.cat([0.1 * v, 2 * place - 1], dim=1)
        expected = theirs.step(told, level.step, v).prev_sample
    torch.testing.assert_close(ours.reverse(v, level, noise), expected, atol=1e-5, rtol=1e-5)


@given(steps=st.integers(50, 1000))
def test_the_schedule_falls_from_nearly_all_to_nearly_nothing(steps: int) -> None:
    shares = linear_schedule(steps)
    assert shares.shape == (steps,)
    assert (shares.diff() < 0).all()
    assert shares[0] > 0.98 and shares[-1] < 1e-3


def test_the_lowest_level_ends_at_the_predicted_image(network: DDPM) -> None:
    level = network.levels(50, 1)[0]
    v = torch.rand(2, 1, 12, 12) * 2 - 1
    with torch.inference_mode():
        noise, _ = network.predict(v, level.step)
        clean = (v - (1 - level.kept) ** 0.5 * noise) / level.kept**0.5
        torch.testing.assert_close(network.reverse(v, level, None), clean.clamp(-1, 1))


def test_filtering_gives_an_image_and_depends_on_the_noise_alone(network: DDPM) -> None:
    x = torch.rand(4, 1, 12, 12, generator=generator(5))
    through = DiffusionFilter(network, 50, 3)
    noise = through.noise(randomness(4), x)
    assert noise.shape == (4, 3, 1, 12, 12)
    with torch.inference_mode():
        found = through(x, noise)
        again = through(x[2:3], through.noise([generator(2)], x))
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found[2:3], again, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        other = through(x, through.noise(randomness(4, seed=1), x))
    assert (found - other).abs().max() > 1e-3


def test_recomputing_gives_the_same_gradient(network: DDPM) -> None:
    x = torch.rand(2, 1, 12, 12, generator=generator(5))
    gradients = []
    for recompute in (False, True):
        through = DiffusionFilter(network, 50, 3, recompute)
        moved = x.clone().requires_grad_(True)
        found = through(moved, through.noise(randomness(2), x))
        gradients.append(torch.autograd.grad(found.square().sum(), moved)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert gradients[0].abs().max() > 0
    assert all(weight.grad is None for weight in network.parameters())


def test_inpainting_keeps_the_original_bit_for_bit(network: DDPM) -> None:
    x = torch.rand(3, 1, 12, 12, generator=generator(6))
    edited = torch.rand(3, 1, 12, 12, generator=generator(7))
    keep = torch.zeros(3, 1, 12, 12)
    keep[:, :, :, :6] = 1
    through = DiffusionFilter(network, 50, 3)
    found = through.inpaint(edited, x, keep, randomness(3))
    assert torch.equal(found[..., :6], x[..., :6])
    assert (found[..., 6:] - x[..., 6:]).abs().max() > 0
    whole = through.inpaint(edited, x, torch.ones(3, 1, 12, 12), randomness(3))
    assert torch.equal(whole, x)


def test_inpainting_everything_is_filtering(network: DDPM) -> None:
    """With the same noise: inpainting draws more, for the part that is known."""
    x = torch.rand(2, 1, 12, 12, generator=generator(6))
    through = DiffusionFilter(network, 50, 3)
    drawn = torch.randn(2, 3, 1, 12, 12, generator=generator(8))
    order = iter([drawn[:, 0], drawn[:, 0], drawn[:, 1], drawn[:, 0], drawn[:, 2], drawn[:, 0]])
    with mock.patch("counterlens.generators.parts.diffusion.draw", lambda *_: next(order)):
        found = through.inpaint(x, x, torch.zeros(2, 1, 12, 12), randomness(2))
    with torch.inference_mode():
        expected = through(x, drawn)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_resampling_visits_every_level_again(network: DDPM) -> None:
    x = torch.rand(2, 1, 12, 12, generator=generator(6))
    through = DiffusionFilter(network, 50, 3)
    none = torch.zeros(2, 1, 12, 12)
    with mock.patch.object(network, "reverse", wraps=network.reverse) as calls:
        through.inpaint(x, x, none, randomness(2), resamplings=4)
    assert calls.call_count == 12


# Training


def training(**changes: Any) -> Training:
    """Bright squares on the left or the right."""
    images = 0.1 * torch.rand(40, 1, 12, 12, generator=generator(9))
    images[::2, :, 3:9, 1:6] += 0.8
    images[1::2, :, 3:9, 6:11] += 0.8
    given: dict[str, Any] = {"classifier": Sides(), "generators": {}, "device": CPU, "seed": 4}
    return Training(images, images[:20], **{**given, **changes})


class Sides(Classifier):
    """Which half is brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.head.weight)

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x]

    def embed(self, last_map: Tensor) -> Tensor:
        return torch.stack([half.mean(dim=(1, 2, 3)) for half in last_map.chunk(2, dim=3)], dim=1)


def small(**changes: Any) -> DDPM:
    torch.manual_seed(0)
    settings = {"channels": (8, 16), "steps": 100, "epochs": 4, "epoch_steps": 10, "lr": 3e-3}
    settings |= {"warm_up": 5, "batch_size": 8, "ema": 0.9}
    return DDPM(Options.model_validate({"kind": "ddpm", **settings, **changes}), (1, 12, 12))


def test_training_lowers_the_loss_and_repeats() -> None:
    histories, states = [], []
    for _ in range(2):
        model = small()
        histories.append(model.fit(training()))
        states.append(model.state_dict())
    assert len(histories[0]) == 4 and histories[0] == histories[1]
    assert histories[0][-1]["loss"] < 0.7 * histories[0][0]["loss"]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_killed_training_ends_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = small()
    whole.fit(training())
    stopped = small()
    forward, calls = stopped.predict, 0

    def fails_late(v: Tensor, step: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise KeyboardInterrupt
        return forward(v, step)

    monkeypatch.setattr(stopped, "predict", fails_late)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(training(checkpoint=Checkpoint("a", [], seconds=0)))
    resumed = small()
    resumed.fit(training(checkpoint=Checkpoint("a", [], seconds=0)))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_quality_and_sheet() -> None:
    model = small(filter_schedule=20, filter_steps=2)
    model.fit(training())
    found = model.quality(training())
    assert set(found.gates()) == {"filter_class_kept"}
    assert found.values["filter_class_kept"] > 0.9 and 0 < found.values["filter_l1"] < 0.2
    sheet = model.sheet(training())
    assert sheet.shape == (48, 1, 12, 12) and sheet.min() >= 0 and sheet.max() <= 1
    assert torch.equal(sheet[:16], training().test_images[:16])
    model.from_noise = False
    assert len(model.sheet(training())) == 32


def test_every_image_is_seen_before_any_again() -> None:
    model = small(batch_size=8, epoch_steps=3)
    seen = torch.cat([index for e in range(2) for index in model.epoch_batches(40, 1, e)])
    assert sorted(seen[:40].tolist()) == list(range(40)) and len(seen) == 48
    few = small(batch_size=8, epoch_steps=3)
    assert {len(index) for index in few.epoch_batches(5, 1, 0)} == {5}


def test_sides_that_do_not_halve_are_padded() -> None:
    torch.manual_seed(0)
    model = DDPM(Options(kind="ddpm", channels=(8, 8, 8), steps=50), (3, 10, 14))
    noise, place = model.predict(torch.randn(2, 3, 10, 14), 7)
    assert noise.shape == (2, 3, 10, 14) and place is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channels": (12, 16)}, "multiples of 8"),
        ({"filter_steps": 60}, "must not fall"),
        ({"steps": 60, "filter_schedule": 80}, "must not fall"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], told: str) -> None:
    reason = Options.model_validate({"kind": "ddpm", **wrong}).conflict({})
    assert reason is not None and told in reason


def test_a_model_is_exported_to_diffusers(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small().eval()
    folder = layout.generator("toy", "ddpm", "all-classes")
    save_model(folder / "model.safetensors", model)
    models: Any = SimpleNamespace(name="toy")
    monkeypatch.setattr(export.base, "create", lambda *_: small())
    written = []
    for _ in range(2):
        export.run(models, "ddpm", "all-classes")
        written.append([(folder / "diffusers" / file).read_bytes() for file in export.FILES])
    assert written[0] == written[1]
    pipeline = DDPMPipeline.from_pretrained(folder / "diffusers")
    assert pipeline.scheduler.config.variance_type == "fixed_large"
    torch.testing.assert_close(
        pipeline.scheduler.alphas_cumprod, model.alpha_bar.float(), atol=1e-6, rtol=1e-5
    )
    v = torch.randn(2, 1, 12, 12)
    with torch.inference_mode():
        torch.testing.assert_close(pipeline.unet(v, 30).sample, model.predict(v, 30)[0])
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (2, 12, 12, 1)
    monkeypatch.setattr(export.base, "create", lambda *_: nn.Identity())
    with pytest.raises(UserError, match="only a diffusion model"):
        export.run(models, "ddpm", "all-classes")


def test_noising_keeps_the_variance() -> None:
    level = Level(step=10, kept=0.64, below=0.8)
    v = diffuse(torch.ones(1, 1, 100, 100), level, torch.randn(1, 1, 100, 100))
    assert v.mean().item() == pytest.approx(0.8, abs=0.03)
    assert v.var().item() == pytest.approx(0.36, abs=0.03)
    assert level.beta == pytest.approx(0.2)
    assert level.least_variance == pytest.approx(0.2 * 0.2 / 0.36)


def test_the_layout_of_the_images_does_not_matter() -> None:
    model = DDPM(Options(kind="ddpm", channels=(8, 8), steps=50), (3, 8, 8))
    freeze(model, torch.device("cpu"))
    v = torch.randn(2, 3, 8, 8)
    other = v.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(model.predict(v, 30)[0], model.predict(other, 30)[0])
