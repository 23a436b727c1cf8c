"""The options that ACE and CECAS share; free of torch, so that a workflow can read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from counterlens.config import GeneratorOptions, MethodOptions, Ratio


class FilterOptions(MethodOptions):
    """The diffusion filter F of ACE (CVPR 2023, section 3.1).

    Attributes:
        ddpm: id of the experiment's diffusion model.
        schedule, steps: the filter takes the `steps` lowest levels of the model's noise schedule
            re-spaced to `schedule` of them.
    """

    ddpm: str = "ddpm"
    schedule: int = Field(default=50, ge=2)
    steps: int = Field(default=5, gt=0)

    def generators(self) -> tuple[str, ...]:
        """The diffusion model."""
        return (self.ddpm,)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """Only a diffusion model has noise levels, and no more than it was trained with."""
        trained = getattr(generators[self.ddpm], "steps", None)
        if trained is None:
            return f"'{self.ddpm}' is no diffusion model"
        if not self.steps <= self.schedule <= trained:
            return (
                f"steps {self.steps}, schedule {self.schedule} and the {trained} steps of "
                f"'{self.ddpm}' must not fall in this order"
            )
        return None


class FilteredAttackOptions(FilterOptions):
    """The attack through the filter and its refinement.

    Attributes:
        step_size: change of a pixel per iteration, in units of [0, 1].
        epsilon: largest change of a pixel.
        iterations: keep them even, so that a pixel that only swings about its value ends there.
        stochastic: fresh noise in the filter at every iteration; otherwise none.
        gradient: `full` keeps the activations of all denoising steps, `checkpoint` computes them
            again; the results are the same. `shortcut` takes the classifier's gradient at the
            filtered image, divided by the square root of the top level's alpha-bar (an ablation).
        l1: weight of the distance to the query in the pre-explanation (ACE's lambda).
        threshold: share of the largest change above which a pixel may be edited (gamma).
        dilation: side in pixels, odd, of the square by which the edit mask grows.
        resamplings: visits of each level in the refinement; 1 is ACE's and CECAS' choice.
        stop_at: an image whose filtered version reaches this target probability leaves the batch;
            None, as in the papers, goes on: COUT rewards confidence.
    """

    step_size: Ratio = Field(default=1 / 255, gt=0)
    epsilon: Ratio = Field(default=1.0, gt=0, le=1)
    iterations: int = Field(default=50, gt=0)
    stochastic: bool = True
    gradient: Literal["full", "checkpoint", "shortcut"] = "checkpoint"
    l1: float = Field(default=0.001, ge=0)
    threshold: float = Field(default=0.15, ge=0, lt=1)
    dilation: int = Field(default=15, gt=0)
    resamplings: int = Field(default=1, gt=0)
    stop_at: float | None = Field(default=None, gt=0, lt=1)

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The square of the mask has a middle."""
        if self.dilation % 2 == 0:
            return f"dilation is {self.dilation}, must be odd"
        return super().conflict(generators)
