"""The small latent diffusion model: its parts against diffusers, its training, its gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterlens import plugins
from counterlens.errors import UserError
from counterlens.generators.base import Generator, Training
from counterlens.generators.latent_diffusion import ClassConditionalLatentDiffusion, Options
from counterlens.generators.parts.latent import (
    DenoisingTraining,
    chosen_images,
    decayed,
    steps_from,
)
from counterlens.runtime.seeding import generator
from counterlens.runtime.training import Checkpoint, load_model, save_model

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "kind": "latent-diffusion",
    "classes": (4, 9),
    "widths": (8, 8, 8),
    "channels": (8, 16),
    "groups": 8,
    "autoencoder_epochs": 2,
    "autoencoder_batch_size": 8,
    "autoencoder_lr": 3e-3,
    "epochs": 2,
    "epoch_steps": 4,
    "batch_size": 8,
    "lr": 3e-3,
    "warm_up": 2,
    "ema": 0.5,
    "grid": 5,
    "start": 400,
    "checked": 6,
}


def create(**changes: Any) -> ClassConditionalLatentDiffusion:
    options = plugins.options_class("generators", "latent-diffusion")
    torch.manual_seed(0)
    content = options.model_validate({**TINY, **changes})
    return plugins.create("generators", content, Generator, (1, 28, 28))


@pytest.fixture
def training(classifier, shapes):
    def make(checkpoint: Checkpoint | None = None, labels: tuple[int, ...] = (4, 9)) -> Training:
        data, test = shapes(24, labels), shapes(12, labels, seed=1)
        return Training(
            data.images, test.images, classifier, {}, CPU, 3, checkpoint, data.labels, test.labels
        )

    return make


def test_images_are_padded_and_cropped_again() -> None:
    model = create()
    v = torch.rand(2, 1, 28, 28) * 2 - 1
    inner = model.to_model(v)
    assert inner.shape[2:] == model.inner_size == (32, 32)
    assert (inner[:, :, :2] == -1).all() and (inner[:, :, :, -2:] == -1).all()
    assert torch.equal(model.from_model(inner), v)
    z = model.encode((v + 1) / 2)
    assert z.shape == (2, 4, *model.latent_size) == (2, 4, 8, 8)
    assert model.decode(z).shape == v.shape


def test_latents_are_the_posterior_s_mean_scaled() -> None:
    model = create()
    model.scale.fill_(2.5)
    x = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        z = model.encode(x)
        inner = model.to_model(2 * x - 1)
        torch.testing.assert_close(z, 2.5 * model.autoencoder.encode(inner).latent_dist.mean)
        decoded = model.from_model(model.autoencoder.decode(z / 2.5).sample)
        torch.testing.assert_close(model.decode(z), (decoded + 1) / 2)


def test_classes_have_places_and_nothing_the_last() -> None:
    model = create(classes=(9, 2, 4))
    assert model.condition(torch.tensor([4, -1, 9, 2])).tolist() == [2, 3, 0, 1]
    with pytest.raises(UserError, match="knows no class 5"):
        model.condition(torch.tensor([4, 5]))


@pytest.mark.parametrize("cross_attention", [True, False])
def test_the_noise_depends_on_class_and_level(cross_attention: bool) -> None:
    model = create(cross_attention=cross_attention).eval()
    z = torch.randn(2, 4, 8, 8, generator=generator(1))
    with torch.no_grad():
        first, other = (model.eps(z, 40, model.condition(torch.tensor([c, c]))) for c in (4, 9))
        later = model.eps(z, 400, model.condition(torch.tensor([4, 4])))
        each = model.eps(z, torch.tensor([40, 400]), model.condition(torch.tensor([4, 4])))
    assert first.shape == z.shape
    assert (first - other).abs().max() > 1e-5 and (first - later).abs().max() > 1e-5
    torch.testing.assert_close(each, torch.stack([first[0], later[1]]), atol=1e-5, rtol=1e-4)


def test_the_grid_ends_at_0_and_starts_where_it_is_told() -> None:
    scheduler = create().sampling_scheduler(25)
    assert steps_from(scheduler, 360) == list(range(360, -1, -40))
    assert steps_from(scheduler)[0] == 960


def test_training_scales_latents_and_repeats(training) -> None:
    models = []
    for _ in range(2):
        model = create()
        history = model.fit(training())
        models.append(model)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert "reconstruction" in history[1] and "noise" not in history[1]
    assert "noise" in history[2] and "reconstruction" not in history[2]
    assert history[1]["reconstruction"] < history[0]["reconstruction"]
    latents = models[0].encoded(training().images, CPU)
    assert float(latents.std()) == pytest.approx(1, abs=1e-3)
    second = models[1].state_dict()
    assert all(torch.equal(value, second[key]) for key, value in models[0].state_dict().items())


def test_only_its_classes_are_learned(training) -> None:
    whole = training(labels=(4, 9, 2))
    rows = torch.isin(whole.labels, torch.tensor([4, 9]))
    assert 0 < int(rows.sum()) < len(rows)
    alone = Training(
        whole.images[rows], whole.test_images, whole.classifier, {}, CPU, 3, None,
        whole.labels[rows], whole.test_labels,
    )  # fmt: skip
    states = []
    for given in (whole, alone):
        model = create()
        model.fit(given)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    images, labels = chosen_images(whole.images, whole.labels, (4, 9))
    assert len(images) == int(rows.sum()) and set(labels.tolist()) == {4, 9}


@pytest.mark.parametrize("killed", [6, 13])
def test_a_killed_training_ends_the_same(
    training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    """In the second epoch of the autoencoder, and in the second of the UNet."""
    monkeypatch.chdir(tmp_path)
    whole = create()
    expected = whole.fit(training())
    model = create()
    step, calls = torch.optim.AdamW.step, 0

    def fails_late(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == killed:
            raise KeyboardInterrupt
        return step(*given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", fails_late)
    with pytest.raises(KeyboardInterrupt):
        model.fit(training(Checkpoint("tiny", [], seconds=0)))
    resumed = create()
    with torch.no_grad():
        resumed.token.weight.add_(1)  # all that counts comes from the checkpoint
    checkpoint = Checkpoint("tiny", [], seconds=0)
    assert checkpoint.load() is not None
    assert resumed.fit(training(checkpoint)) == expected
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


def test_saved_and_loaded_it_is_the_same(training, tmp_path: Path) -> None:
    model = create()
    model.fit(training())
    save_model(tmp_path / "model.safetensors", model)
    loaded = create()
    load_model(tmp_path / "model.safetensors", loaded)
    x = training().test_images
    torch.testing.assert_close(loaded.eval().encode(x), model.encode(x), atol=1e-3, rtol=0)
    assert float(loaded.scale) == float(model.scale) != 1


def test_the_gates_are_those_of_the_specification(training, answering) -> None:
    model = create()
    model.fit(training())
    given = training()
    found = model.quality(given)
    assert found.at_most == {"reconstruction_l1": 0.015}
    assert found.at_least == {
        "class_kept": 0.98,
        "sampled_as_class": 0.9,
        "returned_as_class": 0.9,
    }
    x = given.test_images[:: len(given.test_images) // 6][:6]
    with torch.no_grad():
        error = (model.decode(model.encode(x)).clamp(0, 1) - x).abs().mean()
    assert found.values["reconstruction_l1"] == pytest.approx(float(error), rel=1e-4)
    always = torch.tensor([[0.0] * 4 + [1.0] + [0.0] * 5]).expand(12, -1)
    said = Training(
        given.images, given.test_images, answering(always), {}, CPU, 3, None, given.labels,
        given.test_labels,
    )  # fmt: skip
    values = model.quality(said).values
    assert values["class_kept"] == values["returned_as_class"] == 1
    wanted = given.test_labels[:: len(given.test_labels) // 6][:6]
    assert values["sampled_as_class"] == float((wanted == 4).float().mean())


def test_the_sheet_has_five_rows(training) -> None:
    model = create()
    model.fit(training())
    sheet: Tensor = model.sheet(training())
    assert sheet.shape == (40, 1, 28, 28) and sheet.min() >= 0 and sheet.max() <= 1
    torch.testing.assert_close(sheet[:8], training().test_images[:8])


def test_mirrored_images_are_learned_too(training) -> None:
    model = create(flip=True)
    given = training()
    model.fit(given)
    tuning = DenoisingTraining(model, given)
    tuning.prepare()
    images, labels = chosen_images(given.images, given.labels, model.options.classes)
    assert tuning.latents is not None and len(tuning.latents) == 2 * len(images)
    with torch.no_grad():
        torch.testing.assert_close(tuning.latents[-1:], model.encode(images[-1:].flip(3)))
    assert torch.equal(tuning.labels, labels.repeat(2))


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = decayed(optimizer, 100, 10)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9]
    assert rates[100] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"groups": 16}, "must be multiples of groups, 16"),
        ({"classes": (4, 4)}, "name a class twice"),
    ],
)
def test_what_cannot_work_is_told(changes: dict[str, Any], told: str) -> None:
    reason = Options.model_validate({**TINY, **changes}).conflict({})
    assert reason is not None and told in reason
