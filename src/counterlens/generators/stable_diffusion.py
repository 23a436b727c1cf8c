"""Stable Diffusion, or any model of its format: latent diffusion with a prompt per class.

Rombach et al., CVPR 2022. `fit` reads the autoencoder, the UNet and the CLIP text encoder through
diffusers and transformers, and may fine-tune the UNet (ECED, WACV 2025: AdamW, 1e-4). What is
saved needs the text encoder no more: the prompts' embeddings are kept instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from counterlens.config import GeneratorOptions
from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.parts.latent import DenoisingTraining, LatentDiffusion
from counterlens.generators.parts.latent_options import LatentOptions
from counterlens.runtime.device import place
from counterlens.runtime.training import History, train


class Options(LatentOptions):
    """Which model, and what its prompts are; `epochs: 0` leaves the UNet as it is.

    Attributes:
        model: a folder in diffusers' format, or a name that diffusers can fetch.
        revision: of a name, such as a commit; a folder has none.
        prompts: one per class, in the order of `classes`, such as "A photo of a zebra.".
        size: side of the images that the autoencoder sees; queries are resized to it and back.
        recompute: keep no activations inside the UNet but compute them again for the gradient.
    """

    model: str
    revision: str | None = None
    prompts: tuple[str, ...] = Field(min_length=1)
    size: int = Field(default=512, gt=0, multiple_of=8)
    recompute: bool = True
    epochs: int = Field(default=0, ge=0)
    batch_size: int = Field(default=4, gt=0)
    accumulate: int = Field(default=4, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    warm_up: int = Field(default=0, ge=0)
    ema: float = Field(default=0.9999, ge=0, lt=1)
    checked: int = Field(default=32, gt=0)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Every class has a prompt."""
        if len(self.prompts) != len(self.classes):
            return f"{len(self.classes)} classes have {len(self.prompts)} prompts"
        return super().conflict(generators)


class StableDiffusion(LatentDiffusion):
    """Images are resized to the model's size and back; grey ones get three equal channels."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        super().__init__(options, shape)
        self.options: Options = options

        def built(part: str, kind: Any) -> Any:
            config = self.read(part, lambda **told: kind.load_config(options.model, **told))
            return kind.from_config(config)

        self.autoencoder = built("vae", AutoencoderKL)
        self.unet = built("unet", UNet2DConditionModel)
        if options.recompute:
            self.unet.enable_gradient_checkpointing()
        self.scheduler = self.read(
            "scheduler",
            lambda **told: DDIMScheduler.from_pretrained(
                options.model,
                **told,
                clip_sample=False,
                set_alpha_to_one=True,
                steps_offset=0,
                timestep_spacing="leading",
            ),
        )
        if (kind := self.scheduler.config.prediction_type) != "epsilon":
            raise UserError(f"{options.model}: its UNet predicts '{kind}', not the noise (epsilon)")
        config = self.autoencoder.config
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(float(config.scaling_factor)))
        self.tokens = self.tokenised()
        width = self.unet.config.cross_attention_dim
        self.embeddings: Tensor
        self.register_buffer("embeddings", torch.zeros(*self.tokens.shape, width))
        factor = 2 ** (len(config.block_out_channels) - 1)
        self.inner_size = (options.size, options.size)
        self.latent_size = (options.size // factor, options.size // factor)

    def read(self, part: str, load: Callable[..., Any]) -> Any:
        """One part of the model by `from_pretrained` or its like.

        Raises:
            UserError: it is not there, or not in the format.
        """
        name, revision = self.options.model, self.options.revision
        folder = Path(name)
        if not folder.exists() and (folder.is_absolute() or name.count("/") != 1):
            raise UserError(
                f"{name}: no such folder; name under `model` one with vae, unet, text_encoder, "
                "tokenizer and scheduler in diffusers' format, weights as safetensors"
            )
        if folder.exists() and not (folder / part).is_dir():
            raise UserError(f"{name}: its part '{part}' cannot be read: there is no such folder")
        told = {} if revision is None else {"revision": revision}
        try:
            return load(subfolder=part, **told)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{name}: its part '{part}' cannot be read: {reason}") from None

    def tokenised(self) -> Tensor:
        """Token numbers of the prompts and of the empty one, int64 (classes + 1, length)."""
        from transformers import CLIPTokenizer

        tokenizer = self.read(
            "tokenizer", lambda **told: CLIPTokenizer.from_pretrained(self.options.model, **told)
        )
        tokens = tokenizer(
            [*self.options.prompts, ""],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return tokens.input_ids

    def to_model(self, v: Tensor) -> Tensor:
        colours = v if v.shape[1] == 3 else v.expand(-1, 3, -1, -1)
        return resized(colours, self.inner_size)

    def from_model(self, v: Tensor) -> Tensor:
        images = resized(v, self.shape[1:])
        return images if self.shape[0] == 3 else images.mean(dim=1, keepdim=True)

    def condition(self, classes: Tensor) -> Tensor:
        return self.embeddings[self.position(classes)]

    def eps(self, z: Tensor, step: int | Tensor, condition: Tensor) -> Tensor:
        return self.unet(z, step, encoder_hidden_states=condition).sample

    def fit(self, training: Training) -> History:
        """Read the weights; then `epochs` of fine-tuning of the UNet, if any.

        Raises:
            UserError: a part is missing or damaged, or its weights are not safetensors.
        """
        from transformers import CLIPTextModel

        name = self.options.model
        for part in ("autoencoder", "unet"):
            module, folder = getattr(self, part), "vae" if part == "autoencoder" else part

            def weights(module: Any = module, **told: Any) -> Any:
                return type(module).from_pretrained(name, use_safetensors=True, **told)

            module.load_state_dict(self.read(folder, weights).state_dict())
        encoder = self.read(
            "text_encoder",
            lambda **told: CLIPTextModel.from_pretrained(name, use_safetensors=True, **told),
        )
        with torch.no_grad():
            self.embeddings.copy_(encoder.eval()(self.tokens).last_hidden_state)
        place(self, training.device)
        self.autoencoder.requires_grad_(False)
        history: History = [{"epoch": 1}]
        if self.options.epochs:
            tuning = DenoisingTraining(self, training)
            parts = {"unet": self.unet, **tuning.parts}
            history = train(
                "fine-tuning", self.options.epochs, tuning.epoch, parts, training.checkpoint
            )
            tuning.finish()
        self.eval()
        return history


def resized(v: Tensor, size: Sequence[int]) -> Tensor:
    """Images (N, C, H, W) resized bilinearly, with antialiasing, to (height, width).

    By two matrix products, since the backward pass of `interpolate` is not deterministic on GPUs.
    """
    rows, columns = (
        functional.interpolate(
            torch.eye(old, device=v.device, dtype=v.dtype)[None, None],
            (new, old),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0]
        for old, new in zip(v.shape[2:], size, strict=True)
    )
    return rows @ v @ columns.T
