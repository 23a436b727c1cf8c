"""Stage `export`: a diffusion model as a folder that diffusers' `DDPMPipeline` reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from counterlens import layout
from counterlens.config import Models
from counterlens.errors import UserError
from counterlens.generators import base
from counterlens.runtime.training import load_model

FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "model_index.json",
)


def run(models: Models, name: str, scope: str) -> None:
    """Write `diffusers/` beside the trained generator; equal models give equal files.

    Raises:
        UserError: the generator is no diffusion model, or diffusers cannot describe it.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from counterlens.generators.parts.diffusion import Diffusion

    model = base.create(models, name)
    if not isinstance(model, Diffusion):
        raise UserError(f"--generator {name}: only a diffusion model can be exported")
    if getattr(model.options, "heads", None) is not None:
        raise UserError(
            f"--generator {name}: its attention has as many heads at every level, which a folder "
            "of diffusers cannot tell; it would be read as another network"
        )
    load_model(base.model_file(models, name, scope), model)
    unet, steps = model.unet, len(model.alpha_bar)
    assert isinstance(unet, UNet2DModel)
    learned = unet.conv_out.out_channels > model.shape[0]
    scheduler = DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=0.1 / steps,
        beta_end=20 / steps,
        variance_type="learned_range" if learned else "fixed_large",
    )
    target = layout.generator(models.name, name, scope) / "diffusers"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".diffusers-") as made:
        with torch.no_grad():
            DDPMPipeline(unet, scheduler).save_pretrained(made)
        for file in FILES:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(made) / file).replace(target / file)
