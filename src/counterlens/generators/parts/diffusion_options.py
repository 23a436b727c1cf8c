"""The options that all diffusion models share; free of torch, so that a workflow can read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from counterlens.config import GeneratorOptions


class DiffusionOptions(GeneratorOptions):
    """Noise schedule and quality gate.

    Attributes:
        steps: length of the noise schedule, linear in beta.
        explanation_precision: of the passes of explanations; in bfloat16 an image's answer depends
            a little on the images beside it.
        filter_schedule, filter_steps: the filter that the quality gate and the sheet try; the
            methods choose their own.
        least_class_kept: share of test images whose class must survive that filter.
    """

    uses_classifier: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    steps: int = Field(default=1000, ge=50)
    explanation_precision: Literal["fp32", "bf16"] = "fp32"
    filter_schedule: int = Field(default=50, ge=2)
    filter_steps: int = Field(default=5, gt=0)
    least_class_kept: float = 0.95

    def conflict(self, generators: Mapping[str, GeneratorOptions]) -> str | None:
        """The filter takes no more levels than there are."""
        if not self.filter_steps <= self.filter_schedule <= self.steps:
            return (
                f"filter_steps {self.filter_steps}, filter_schedule {self.filter_schedule} and "
                f"steps {self.steps} must not fall in this order"
            )
        return None
