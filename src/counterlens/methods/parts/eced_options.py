"""The options of ECED, by phase; free of torch, so that a workflow can read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from counterlens.config import GeneratorOptions, MethodOptions

THRESHOLDS = tuple(step / 20 for step in range(20))
"""Where the angle of the first update is measured: xi of 0 to 0.95 (Proposition 2)."""


class RegionOptions(MethodOptions):
    """Phase 1: the region that may be edited (Algorithm 1).

    Attributes:
        region: `all` edits the whole image (an ablation).
        threshold: xi, of the activation map in [0, 1]; above it lies the region.
        area: choose each image's threshold so that this share of its map is above it.
        layer: which of the classifier's feature maps ScoreCAM weighs, from the last, -1.
        score: `prob_increase` is the class's probability less that of a blank image; `logit` is
            the raw logit, as in the grad-cam package.
        blank: what an image is where the map is 0: the middle of the range, or black.
        downsample: how the mask comes to the size of the latents. `area` keeps a cell that is
            covered by more than half, `maxpool` one that is touched.
        dilate: by how many cells the latent mask grows.
    """

    region: Literal["score-cam", "all"] = "score-cam"
    threshold: float = Field(default=0.4, ge=0, lt=1)
    area: float | None = Field(default=None, gt=0, le=1)
    layer: int = Field(default=-1, le=-1)
    score: Literal["prob_increase", "logit"] = "prob_increase"
    blank: Literal["grey", "black"] = "grey"
    downsample: Literal["nearest", "maxpool", "area"] = "nearest"
    dilate: int = Field(default=0, ge=0)


class BackgroundOptions(MethodOptions):
    """Phase 2: the background is kept (Algorithm 2).

    Attributes:
        background: what is tuned for each image: its background latent, a copy of the decoder,
            both or neither.
        background_updates: N.
        latent_lr, decoder_lr: of Adam.
        foreground_weight: of the error inside the region beside that outside; 0 is the literal
            "background only".
    """

    background: Literal["both", "z", "decoder", "off"] = "both"
    background_updates: int = Field(default=75, gt=0)
    latent_lr: float = Field(default=0.02, gt=0)
    decoder_lr: float = Field(default=1e-4, gt=0)
    foreground_weight: float = Field(default=0.01, ge=0)


class SamplerOptions(MethodOptions):
    """Phase 3: blended latent diffusion from a truncated noise level.

    Attributes:
        generator: id of the latent diffusion model.
        grid: steps of the sampling grid.
        start: the noise level (training step) that it starts from, tau.
        condition: class that the noise prediction is told; `source` and `null` are controls.
        guidance: scale of classifier-free guidance; 1 needs no unconditional pass.
        background_level: noise level at which the background is blended in: that before the step
            (the paper), or that after it, at which nothing remains of the noise at the end.
        diffusion: off decodes the initial latent as it is (an ablation).
        checkpoint: keep no activations of the UNet but compute them again for the gradient.
    """

    generator: str = "latent-diffusion"
    grid: int = Field(default=25, ge=2)
    start: int = Field(default=360, ge=0)
    condition: Literal["target", "source", "null"] = "target"
    guidance: float = Field(default=1.0, ge=0)
    background_level: Literal["t", "t_prev"] = "t"
    diffusion: bool = True
    checkpoint: bool = False

    def generators(self) -> tuple[str, ...]:
        """The latent diffusion model."""
        return (self.generator,)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The generator has latents with a layout in space, and noise levels."""
        chosen = generators[self.generator]
        if not hasattr(chosen, "classes") or not hasattr(chosen, "drop"):
            return f"'{self.generator}' is no latent diffusion model"
        if not getattr(chosen, "drop", 0) and (self.guidance != 1 or self.condition == "null"):
            told = "guidance" if self.guidance != 1 else "condition: null"
            return f"{told} needs a null condition, and '{self.generator}' is trained with drop 0"
        return None


class ECEDOptions(RegionOptions, BackgroundOptions, SamplerOptions):
    """All phases, and the attack of the third.

    Attributes:
        updates: T_2, of the initial latent; 0 renders it once (the control without an attack).
        lr: of Adam.
        prune: update the latent in the region alone.
        stop_at: an image whose target probability is at least this in two renderings in a row is
            finished; None, as in Algorithm 3, makes all updates.
        fixed_noise: draw the noise once and use it in all renderings.
        sweep: further counterfactuals for these thresholds, kept as `variants`; a threshold may
            stand several times: then only the noise differs.
    """

    requires_maps: ClassVar[bool] = True

    updates: int = Field(default=30, ge=0)
    lr: float = Field(default=0.05, gt=0)
    prune: bool = True
    stop_at: float | None = Field(default=None, gt=0, lt=1)
    fixed_noise: bool = False
    sweep: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
