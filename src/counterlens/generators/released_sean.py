"""A released SEAN with a released segmentation network: the generators that STEEX publishes.

Zhu et al., SEAN, CVPR 2020; Jacob et al., STEEX, ECCV 2022. The regions of an image are the parts
that a DeepLabv3 sees in it. Both checkpoints are read once; the noise that SEAN adds in its
normalisations is left out, so that the same regions and codes always give the same image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from counterlens.config import DatasetOptions
from counterlens.errors import UserError
from counterlens.generators.base import Training
from counterlens.generators.parts.region_options import RegionGeneratorOptions
from counterlens.generators.parts.regions import RegionGenerator, one_hot
from counterlens.generators.parts.released import read_checkpoint
from counterlens.runtime.training import History

HALVINGS = 5
BLOCKS = {
    "head_0": 16,
    "G_middle_0": 16,
    "G_middle_1": 16,
    "up_0": 8,
    "up_1": 4,
    "up_2": 2,
    "up_3": 1,
}
"""The residual blocks by the release's names: channels at their end, in units of the width."""
UNUSED = ("param_free_norm", "noise_var", "weight_u", "weight_v")


class Options(RegionGeneratorOptions):
    """Which files, and the networks' sizes; the defaults are those of CelebAMask-HQ.

    Attributes:
        file, sha256: SEAN's generator as released (`latest_net_G.pth`).
        segmenter, segmenter_sha256: the checkpoint of the segmentation network
            (`deeplabv3/.../checkpoint.tar`).
        backbone: of the DeepLabv3.
        segmenter_size: height and width at which it sees the images; None is their own.
        unlabelled_first: its class 0 is what has no label, which is SEAN's last region, and its
            class k is region k - 1, as for BDD; otherwise class k is region k.
        regions: SEAN's; 20 for BDD.
        width, code_dim, encoder_width, hidden: channels of SEAN's last block, its style codes, its
            encoder's first layer, and behind the map of regions.
    """

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    segmenter: str
    segmenter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    backbone: Literal["resnet50", "resnet101"] = "resnet101"
    segmenter_size: tuple[int, int] | None = None
    unlabelled_first: bool = False
    regions: int = Field(default=19, gt=1)
    width: int = Field(default=64, gt=0)
    code_dim: int = Field(default=512, gt=0)
    encoder_width: int = Field(default=32, gt=0)
    hidden: int = Field(default=128, gt=0)

    def region_count(self) -> int:
        """`regions`."""
        return self.regions

    def unsuited(self, dataset: DatasetOptions) -> str | None:
        """Colour images that are halved five times without a rest."""
        channels, height, width = dataset.shape
        if channels == 3 and not (height % 32 or width % 32):
            return None
        return (
            f"images of {height}x{width} with {channels} channels: it needs three channels and "
            "sides that are multiples of 32"
        )


class Normalisation(nn.Module):
    """Normalised by running statistics; scale and shift from the map and, if styled, the codes.

    `of_map` takes the regions, `of_style` the codes that are painted onto them, each through a
    linear layer of its region's own; two learned numbers blend both.
    """

    def __init__(self, channels: int, options: Options, styled: bool) -> None:
        super().__init__()
        self.plain = nn.BatchNorm2d(channels, affine=False)
        self.shared = nn.Conv2d(options.regions, options.hidden, 3, 1, 1)
        self.of_map = nn.ModuleList(
            nn.Conv2d(options.hidden, channels, 3, 1, 1) for _ in ("scale", "shift")
        )
        self.styled = styled
        if styled:
            size = options.code_dim
            self.per_region = nn.ModuleList(nn.Linear(size, size) for _ in range(options.regions))
            self.of_style = nn.ModuleList(
                nn.Conv2d(size, channels, 3, 1, 1) for _ in ("scale", "shift")
            )
            self.blend = nn.Parameter(torch.zeros(2))

    def forward(self, h: Tensor, layout: Tensor, codes: Tensor) -> Tensor:
        """Feature maps (N, channels, h, w); regions (N, R, H, W); codes (N, R, d)."""
        layout = functional.interpolate(layout, h.shape[2:], mode="nearest")
        seen = functional.relu(self.shared(layout))
        scale, shift = (layer(seen) for layer in self.of_map)
        if self.styled:
            style = torch.stack(
                [layer(code) for layer, code in zip(self.per_region, codes.unbind(1), strict=True)],
                dim=1,
            )
            painted = torch.einsum("nrc,nrhw->nchw", functional.relu(style), layout)
            share = self.blend.sigmoid()
            scale, shift = (
                share[place] * layer(painted) + (1 - share[place]) * plain
                for place, (layer, plain) in enumerate(
                    zip(self.of_style, (scale, shift), strict=True)
                )
            )
        return self.plain(h) * (1 + scale) + shift


class Block(nn.Module):
    """Residual block at one size; the shortcut is learned where the channels change."""

    def __init__(self, inputs: int, outputs: int, options: Options, styled: bool) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.first_norm = Normalisation(inputs, options, styled)
        self.first = nn.Conv2d(inputs, middle, 3, 1, 1)
        self.second_norm = Normalisation(middle, options, styled)
        self.second = nn.Conv2d(middle, outputs, 3, 1, 1)
        self.learned = inputs != outputs
        if self.learned:
            self.shortcut_norm = Normalisation(inputs, options, styled)
            self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, h: Tensor, layout: Tensor, codes: Tensor) -> Tensor:
        """Feature maps at the size of the block; regions; codes."""
        moved = self.first(functional.leaky_relu(self.first_norm(h, layout, codes), 0.2))
        moved = self.second(functional.leaky_relu(self.second_norm(moved, layout, codes), 0.2))
        if self.learned:
            h = self.shortcut(self.shortcut_norm(h, layout, codes))
        return h + moved


class ReleasedSEAN(RegionGenerator):
    """Regions by the segmentation network, codes and images by SEAN; nothing is trained."""

    def __init__(self, options: Options, shape: tuple[int, int, int]) -> None:
        from torchvision.models import segmentation

        super().__init__(options, shape)
        self.options: Options = options
        self.code_dim = options.code_dim
        build = getattr(segmentation, f"deeplabv3_{options.backbone}")
        self.segmenter = build(weights=None, weights_backbone=None, num_classes=options.regions)
        widths = [options.encoder_width * factor for factor in (1, 2, 4, 8)]
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(3, widths[0], 3),
            *_after(widths[0]),
            nn.Conv2d(widths[0], widths[1], 3, 2, 1),
            *_after(widths[1]),
            nn.Conv2d(widths[1], widths[2], 3, 2, 1),
            *_after(widths[2]),
            nn.ConvTranspose2d(widths[2], widths[3], 3, 2, 1, output_padding=1),
            *_after(widths[3]),
            nn.ReflectionPad2d(1),
            nn.Conv2d(widths[3], options.code_dim, 3),
            nn.Tanh(),
        )
        channels = [options.width * factor for factor in BLOCKS.values()]
        self.first = nn.Conv2d(options.regions, channels[0], 3, 1, 1)
        self.blocks = nn.ModuleDict(
            {
                name: Block(inputs, outputs, options, styled=name != "up_3")
                for name, (inputs, outputs) in zip(
                    BLOCKS, pairwise([channels[0], *channels]), strict=True
                )
            }
        )
        self.image = nn.Conv2d(channels[-1], 3, 3, 1, 1)

    def layout(self, x: Tensor) -> Tensor:
        v = 2 * x - 1
        if (size := self.options.segmenter_size) is not None:
            v = functional.interpolate(v, size, mode="bicubic", antialias=True)
        labels = self.segmenter(v)["out"].argmax(dim=1)
        if self.options.unlabelled_first:
            labels = (labels - 1) % self.regions
        layout = one_hot(labels, self.regions)
        return functional.interpolate(layout, x.shape[2:], mode="nearest")

    def codes(self, x: Tensor, layout: Tensor) -> Tensor:
        style = self.encoder(2 * x - 1)
        layout = functional.interpolate(layout, style.shape[2:], mode="nearest")
        total = torch.einsum("ndhw,nrhw->nrd", style, layout)
        return total / layout.sum(dim=(2, 3))[:, :, None].clamp(min=1)

    def synthesise(self, layout: Tensor, codes: Tensor) -> Tensor:
        height, width = (side // 2**HALVINGS for side in layout.shape[2:])
        h = self.first(functional.interpolate(layout, (height, width), mode="nearest"))
        for name, block in self.blocks.items():
            if name not in ("head_0", "G_middle_1"):
                h = functional.interpolate(h, scale_factor=2)
            h = block(h, layout, codes)
        return (self.image(functional.leaky_relu(h, 0.2)).tanh() + 1) / 2

    def fit(self, training: Training) -> History:
        """Read both checkpoints; one row, without losses.

        Raises:
            UserError: one is missing, changed, no checkpoint, or of other sizes.
        """
        options = self.options
        released = read_checkpoint(Path(options.file), options.sha256)
        parts = read_checkpoint(Path(options.segmenter), options.segmenter_sha256)
        try:
            self.load_state_dict(
                {
                    **self.converted(released),
                    **{f"segmenter.{k}": v for k, v in parts["model_state_dict"].items()},
                }
            )
        except (KeyError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"{options.file}, {options.segmenter}: do not fit the options of the networks: "
                f"{reason}"
            ) from None
        self.to(training.device)
        self.eval()
        return [{"epoch": 1}]

    def converted(self, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """SEAN's released parameters under our names; spectral normalisation is carried out.

        Raises:
            KeyError: a parameter is missing, or one is left over.
        """
        parameters: dict[str, Tensor] = {}
        taken: set[str] = set()

        def take(name: str) -> Tensor:
            taken.add(name)
            return released[name]

        def copy(old: str, new: str) -> None:
            parameters[f"{new}.weight"] = take(f"{old}.weight")
            parameters[f"{new}.bias"] = take(f"{old}.bias")

        def convolution(old: str, new: str) -> None:
            weight = take(f"{old}.weight_orig")
            u, v = (released[f"{old}.weight_{letter}"] for letter in "uv")
            parameters[f"{new}.weight"] = weight / torch.dot(u, weight.flatten(1) @ v)
            if f"{old}.bias" in released:
                parameters[f"{new}.bias"] = take(f"{old}.bias")

        for place in (1, 4, 7, 10, 14):
            copy(f"Zencoder.model.{place}", f"encoder.{place}")
        copy("fc", "first")
        copy("conv_img", "image")
        for name, block in self.blocks.items():
            assert isinstance(block, Block)
            old, new = name, f"blocks.{name}"
            parts = [("0", "first"), ("1", "second")]
            if block.learned:
                parts.append(("s", "shortcut"))
            for theirs, ours in parts:
                convolution(f"{old}.conv_{theirs}", f"{new}.{ours}")
                self._normalisation(
                    f"{old}.ace_{theirs}", f"{new}.{ours}_norm", take, copy, parameters
                )
        extra = [
            name
            for name in released
            if name not in taken and not any(part in name.split(".") for part in UNUSED)
        ]
        if extra:
            raise KeyError(f"unexpected parameter {extra[0]}")
        return parameters

    def _normalisation(
        self,
        old: str,
        new: str,
        take: Callable[[str], Tensor],
        copy: Callable[[str, str], None],
        parameters: dict[str, Tensor],
    ) -> None:
        module = self.get_submodule(new)
        assert isinstance(module, Normalisation)
        for name, value in module.plain.named_buffers():
            key = f"{old}.param_free_norm.{name}"
            parameters[f"{new}.plain.{name}"] = (
                value if name == "num_batches_tracked" else take(key)
            )
        copy(f"{old}.Spade.mlp_shared.0", f"{new}.shared")
        for place, name in enumerate(("gamma", "beta")):
            copy(f"{old}.Spade.mlp_{name}", f"{new}.of_map.{place}")
            if module.styled:
                copy(f"{old}.conv_{name}", f"{new}.of_style.{place}")
        blends = [take(f"{old}.blending_{name}") for name in ("gamma", "beta")]
        if module.styled:
            parameters[f"{new}.blend"] = torch.cat(blends)
            for region in range(self.regions):
                copy(f"{old}.fc_mu{region}", f"{new}.per_region.{region}")


def _after(channels: int) -> tuple[nn.Module, nn.Module]:
    """What follows a convolution of the encoder."""
    return nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2)
