"""Stable Diffusion's format: a tiny pipeline with random weights, saved and read as a real one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.stable_diffusion import Options, StableDiffusion, resized
from counterlens.runtime.device import freeze
from counterlens.runtime.seeding import generator
from counterlens.runtime.training import load_model, save_model

SHAPE = (3, 24, 24)
PROMPTS = ("a cat.", "a dog.")


def write_pipeline(folder: Path) -> None:
    """All parts of Stable Diffusion as they are published, with networks of a few channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "acdgot."
    whole = [*letters, *(f"{each}</w>" for each in letters), "ca", "do"]
    known = ["<|startoftext|>", "<|endoftext|>", *whole]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nd o\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
    )
    text = CLIPTextConfig(
        vocab_size=len(known),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "tiny"
    write_pipeline(place)
    return place


def create(folder: Path, **changes: Any) -> StableDiffusion:
    content = {
        "kind": "stable-diffusion",
        "model": str(folder),
        "classes": (0, 1),
        "prompts": PROMPTS,
        "size": 32,
        "grid": 5,
        "checked": 4,
    }
    return StableDiffusion(Options.model_validate({**content, **changes}), SHAPE)


def training(classifier: Any = None) -> Training:
    images = torch.rand(8, *SHAPE, generator=generator(1))
    labels = torch.tensor([0, 1] * 4)
    cpu = torch.device("cpu")
    return Training(images, images, classifier, {}, cpu, 3, None, labels, labels)


@pytest.fixture(scope="module")
def model(folder: Path) -> StableDiffusion:
    made = create(folder)
    made.fit(training())
    freeze(made, torch.device("cpu"))
    return made


def test_it_says_what_the_pipeline_says(model: StableDiffusion, folder: Path) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    wanted, nothing = pipeline.encode_prompt(
        list(PROMPTS), torch.device("cpu"), 1, True, negative_prompt=None
    )
    torch.testing.assert_close(model.condition(torch.tensor([0, 1])), wanted)
    torch.testing.assert_close(model.condition(torch.tensor([-1, -1])), nothing)
    z = torch.randn(2, 4, 8, 8, generator=generator(2))
    with torch.inference_mode():
        expected = pipeline.unet(z, 40, encoder_hidden_states=wanted).sample
        found = model.eps(z, 40, model.condition(torch.tensor([0, 1])))
        torch.testing.assert_close(found, expected)
        x = torch.rand(2, 3, 32, 32, generator=generator(3))
        latent = pipeline.vae.encode(2 * x - 1).latent_dist.mean * 0.18215
        decoded = (pipeline.vae.decode(z / 0.18215).sample + 1) / 2
        big = StableDiffusion(model.options, (3, 32, 32))
        big.load_state_dict(model.state_dict())
        torch.testing.assert_close(big.encode(x), latent)
        torch.testing.assert_close(big.decode(z), decoded)
    theirs = pipeline.scheduler.alphas_cumprod
    torch.testing.assert_close(model.scheduler.alphas_cumprod, theirs)


def test_its_grid_ends_at_step_0_whatever_the_folder_says(model: StableDiffusion) -> None:
    scheduler = model.sampling_scheduler(25)
    assert scheduler.timesteps.tolist() == list(range(960, -1, -40))
    assert scheduler.final_alpha_cumprod == 1
    assert not scheduler.config.clip_sample


def test_images_come_in_their_own_size(model: StableDiffusion) -> None:
    x = torch.rand(2, *SHAPE, generator=generator(4)).requires_grad_(True)
    z = model.encode(x)
    assert z.shape == (2, 4, *model.latent_size) == (2, 4, 8, 8)
    found = model.decode(z)
    assert found.shape == x.shape
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("size", [(32, 32), (12, 20)])
def test_resizing_is_that_of_torch(size: tuple[int, int]) -> None:
    v = torch.rand(2, 3, 24, 24, generator=generator(5))
    expected = functional.interpolate(v, size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resized(v, size), expected)


def test_grey_images_get_three_channels_and_back(folder: Path) -> None:
    grey = StableDiffusion(create(folder).options, (1, 24, 24))
    v = torch.rand(2, 1, 24, 24, generator=generator(6))
    inner = grey.to_model(v)
    assert inner.shape == (2, 3, 32, 32)
    assert grey.from_model(inner).shape == v.shape


def test_fine_tuning_changes_the_unet_alone_and_is_saved(
    model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    tuned = create(folder, epochs=2, epoch_steps=2, batch_size=2, accumulate=2, lr=1e-3, ema=0.5)
    history = tuned.fit(training())
    assert [row["epoch"] for row in history] == [1, 2] and "noise" in history[0]
    before, after = model.state_dict(), tuned.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("unet.") for key in changed)
    save_model(tmp_path / "model.safetensors", tuned)
    loaded = create(folder)
    load_model(tmp_path / "model.safetensors", loaded)
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, after[key]), key


def test_the_card_has_all_gates(model: StableDiffusion, frozen) -> None:
    from counterlens.classifiers.gap_resnet import GapResNet
    from counterlens.classifiers.gap_resnet import Options as ClassifierOptions

    torch.manual_seed(1)
    classifier = frozen(
        GapResNet(ClassifierOptions(kind="gap-resnet", widths=(4,)), SHAPE, 2), None
    )
    found = model.quality(training(classifier))
    assert {*found.gates()} == {
        "class_kept",
        "reconstruction_l1",
        "returned_as_class",
        "sampled_as_class",
    }


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; name under `model` one with vae") as told:
        create(tmp_path / "nothing")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_one_line(folder: Path, tmp_path: Path, part: str) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / part)
    with pytest.raises(UserError, match=f"its part '{part}' cannot be read") as told:
        create(broken).fit(training())
    assert "\n" not in str(told.value)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "pickled"
    shutil.copytree(folder, broken)
    kept = broken / "unet/diffusion_pytorch_model.safetensors"
    kept.unlink()
    torch.save({}, kept.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(UserError, match="its part 'unet' cannot be read"):
        create(broken).fit(training())


def test_every_class_has_a_prompt(folder: Path) -> None:
    options = create(folder).options.model_copy(update={"prompts": ("one",)})
    assert options.conflict({}) == "2 classes have 1 prompts"


def test_a_unet_that_predicts_no_noise_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    file = other / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(UserError, match="its UNet predicts 'v_prediction', not the noise"):
        create(other)


@pytest.mark.parametrize("channels", [1, 3])
def test_eced_runs_on_it(model: StableDiffusion, frozen, channels: int) -> None:
    """The same method as on the small model: region, background, decoders of their own, attack."""
    from counterlens.classifiers.gap_resnet import GapResNet
    from counterlens.classifiers.gap_resnet import Options as ClassifierOptions
    from counterlens.methods.base import Task
    from counterlens.methods.eced import ECED
    from counterlens.methods.eced import Options as MethodOptions

    shape = (channels, 24, 24)
    x = torch.rand(4, *shape, generator=generator(8))
    classifier = GapResNet(
        ClassifierOptions.model_validate({"kind": "gap-resnet", "widths": (4, 8)}), shape, 2
    )
    frozen(classifier, lambda: classifier(x))
    fitted = StableDiffusion(model.options, shape)
    fitted.load_state_dict(model.state_dict())
    freeze(fitted, torch.device("cpu"))
    settings = {"grid": 5, "start": 400, "updates": 2, "background_updates": 2, "guidance": 3.0}
    options = MethodOptions.model_validate({"kind": "eced", "checkpoint": True, **settings})
    task = Task(classifier, {"latent-diffusion": fitted}, shape, ((0, 1),), torch.device("cpu"), 3)
    method = ECED(options, task)
    source = torch.tensor([0, 1, 0, 1])
    answer = method.explain(x, source, 1 - source, [generator(row) for row in range(4)])
    assert answer.counterfactual.shape == x.shape and answer.counterfactual.isfinite().all()
    assert answer.extras["latent_mask"].shape == (4, 1, 8, 8)
    assert 0 < answer.extras["latent_mask"].mean() < 1
    inside = answer.extras["edit_mask"].expand_as(x) > 0
    changed = (answer.counterfactual - answer.extras["reconstruction_clean"]).abs()
    assert changed[inside].max() > 0
