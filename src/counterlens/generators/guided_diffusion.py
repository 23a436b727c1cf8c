"""A released guided-diffusion checkpoint, with learned variances, as a diffusion model.

Dhariwal and Nichol, NeurIPS 2021; the networks of ACE and DiME are of this kind. The checkpoint is
brought to the UNet of diffusers once, so that filter and methods see no difference from `ddpm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field
from torch import Tensor

from counterlens.config import DatasetOptions
from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.parts.diffusion import Diffusion
from counterlens.generators.parts.diffusion_options import DiffusionOptions
from counterlens.generators.parts.released import read_checkpoint
from counterlens.runtime.device import autocast
from counterlens.runtime.training import History

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
WHOLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


class Options(DiffusionOptions):
    """Which file, and the network's shape; the defaults are those of ImageNet 256x256.

    Attributes:
        file: path of the checkpoint as its authors publish it (`.pt`).
        sha256: of the file.
        width: channels of the highest resolution; the others have `multipliers` times as many.
        layers: residual blocks per resolution.
        attention: the resolutions that attend, as divisors of the side.
        heads: attention heads at every resolution, or None for one per `head_channels` channels.
        groups: of the normalisations.
        from_noise: whether it was trained on all noise levels; otherwise nothing is sampled.
    """

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    width: int = Field(default=256, gt=0)
    multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4, 4), min_length=2)
    layers: int = Field(default=2, gt=0)
    attention: tuple[int, ...] = (8, 16, 32)
    heads: int | None = Field(default=None, gt=0)
    head_channels: int = Field(default=64, gt=0)
    groups: int = Field(default=32, gt=0)
    from_noise: bool = True
    filter_schedule: int = Field(default=25, ge=2)

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """A released network sees what it was trained on: images that it halves without a rest."""
        multiple = 2 ** (len(self.multipliers) - 1)
        height, width = dataset.shape[1:]
        if height % multiple or width % multiple:
            return f"images of {height}x{width}: the sides must be multiples of {multiple}"
        return super().unsuited(dataset)


class GuidedDiffusion(Diffusion):
    """Predicts noise and variance; `fit` reads the checkpoint, nothing is trained."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        from diffusers.models.attention_processor import Attention
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__(options, shape)
        self.options: Options = options
        self.from_noise = options.from_noise
        # with a number of heads, any size will do here: it is set below, level by level
        head_channels = options.width if options.heads else options.head_channels
        attends = [2**level in options.attention for level in range(len(options.multipliers))]
        self.unet = UNet2DModel(
            sample_size=shape[1:],
            in_channels=shape[0],
            out_channels=2 * shape[0],
            layers_per_block=options.layers,
            block_out_channels=tuple(options.width * factor for factor in options.multipliers),
            down_block_types=tuple(
                "AttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends
            ),
            up_block_types=tuple(
                "AttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attends)
            ),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=head_channels,
            attn_norm_num_groups=options.groups,
            norm_num_groups=options.groups,
        )
        for module in self.unet.modules():
            if isinstance(module, Attention) and options.heads is not None:
                module.heads = options.heads

    def predict(self, v: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        with autocast(v.device, self.options.explanation_precision):
            output = self.unet(v.contiguous(), step).sample.float()
        noise, place = output.chunk(2, dim=1)
        return noise, (place + 1) / 2

    def fit(self, training: Training) -> History:
        """Read and convert the checkpoint; one row, without losses.

        Raises:
            UserError: it is missing, changed, no checkpoint, or of another shape.
        """
        path = Path(self.options.file)
        released = read_checkpoint(path, self.options.sha256)
        try:
            self.unet.load_state_dict(self.converted(released))
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: does not fit the options of the network: {reason}") from None
        self.to(training.device)
        self.eval()
        return [{"epoch": 1}]

    def converted(self, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The released parameters under the names and in the shapes of diffusers.

        Raises:
            KeyError: one is missing or left over.
        """
        parameters: dict[str, Tensor] = {}
        left = {*released}

        def take(name: str) -> Tensor:
            left.discard(name)
            return released[name]

        def copy(old: str, new: str) -> None:
            for part in ("weight", "bias"):
                parameters[f"{new}.{part}"] = take(f"{old}.{part}")

        for old, new in WHOLE.items():
            copy(old, new)
        for old, new, block in self.blocks():
            if block == "residual":
                for name, other in RESIDUAL.items():
                    if name != "skip_connection" or f"{old}.{name}.weight" in released:
                        copy(f"{old}.{name}", f"{new}.{other}")
                continue
            copy(f"{old}.norm", f"{new}.group_norm")
            weight, bias = take(f"{old}.qkv.weight"), take(f"{old}.qkv.bias")
            channels = len(bias) // 3
            heads = self.options.heads or channels // self.options.head_channels
            # the rows are grouped by head, each head's as query, key and value
            weights = weight.reshape(heads, 3, -1, channels).transpose(0, 1)
            biases = bias.reshape(heads, 3, -1).transpose(0, 1)
            for place, name in enumerate(("to_q", "to_k", "to_v")):
                parameters[f"{new}.{name}.weight"] = weights[place].reshape(channels, channels)
                parameters[f"{new}.{name}.bias"] = biases[place].reshape(channels)
            parameters[f"{new}.to_out.0.weight"] = take(f"{old}.proj_out.weight").squeeze(-1)
            parameters[f"{new}.to_out.0.bias"] = take(f"{old}.proj_out.bias")
        if left:
            raise KeyError(f"unexpected parameter {min(left)}")
        return parameters

    def blocks(self) -> Iterator[tuple[str, str, str]]:
        """Every block: its name in the release, its name in diffusers, `residual` or `attention`.

        The release numbers the blocks of its two halves through; the block that changes the
        resolution stands alone going down, and at the end of the last entry going up.
        """
        options = self.options
        levels = range(len(options.multipliers))
        number = 1
        for level in levels:
            for layer in range(options.layers):
                new = f"down_blocks.{level}"
                yield f"input_blocks.{number}.0", f"{new}.resnets.{layer}", "residual"
                if 2**level in options.attention:
                    yield f"input_blocks.{number}.1", f"{new}.attentions.{layer}", "attention"
                number += 1
            if level != levels[-1]:
                yield f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0", "residual"
                number += 1
        yield "middle_block.0", "mid_block.resnets.0", "residual"
        yield "middle_block.1", "mid_block.attentions.0", "attention"
        yield "middle_block.2", "mid_block.resnets.1", "residual"
        number = 0
        for place, level in enumerate(reversed(levels)):
            new = f"up_blocks.{place}"
            for layer in range(options.layers + 1):
                part = 1
                yield f"output_blocks.{number}.0", f"{new}.resnets.{layer}", "residual"
                if 2**level in options.attention:
                    yield f"output_blocks.{number}.1", f"{new}.attentions.{layer}", "attention"
                    part = 2
                if level and layer == options.layers:
                    yield f"output_blocks.{number}.{part}", f"{new}.upsamplers.0", "residual"
                number += 1
