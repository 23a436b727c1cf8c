"""The options that all latent diffusion models share; free of torch, for the workflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from counterlens.config import GeneratorOptions


class LatentOptions(GeneratorOptions):
    """Conditioning, training of the noise prediction (ECED Eq. 11) and quality gates.

    Attributes:
        classes: the labels that it is conditioned on and trained with; no other images are used.
        epochs, epoch_steps, batch_size: of the noise prediction.
        accumulate: batches whose gradients one step sums up.
        warm_up: steps in which the learning rate rises; it then falls to a tenth.
        ema: decay of the moving average of the weights, which is what is saved.
        drop: share of training images whose condition is the null condition.
        focus, focus_share: that share of the noise levels is drawn below the level `focus`, the
            others from the whole schedule; None draws all from the whole schedule.
        flip: every image is learned mirrored too.
        precision: of the trainings; explanations are always in float32.
        grid, start: sampling grid, and the noise level from which the quality gate goes back.
        checked: images that each quality gate is measured on, at most.
        least_class_kept, most_reconstruction_l1: gates of the autoencoder, on [0, 1] images.
        least_sampled: share of class-conditional samples the classifier must agree with.
        least_returned: share of images whose class must survive noising to `start` and back.
    """

    uses_classifier: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    classes: tuple[int, ...] = Field(min_length=1)
    epochs: int = Field(default=50, ge=0)
    epoch_steps: int = Field(default=100, gt=0)
    batch_size: int = Field(default=128, gt=0)
    accumulate: int = Field(default=1, gt=0)
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warm_up: int = Field(default=500, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    drop: float = Field(default=0.1, ge=0, lt=1)
    focus: int | None = Field(default=None, gt=0, le=1000)
    focus_share: float = Field(default=2 / 3, gt=0, le=1)
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    grid: int = Field(default=25, ge=2)
    start: int = Field(default=360, gt=0)
    checked: int = Field(default=256, gt=0)
    least_class_kept: float = 0.98
    most_reconstruction_l1: float = 0.015
    least_sampled: float = 0.9
    least_returned: float = 0.9

    def known_classes(self) -> tuple[int, ...]:
        """`classes`."""
        return self.classes

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """A class has one condition."""
        if len({*self.classes}) < len(self.classes):
            return f"classes {list(self.classes)} name a class twice"
        return super().conflict(generators)
