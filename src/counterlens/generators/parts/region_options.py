"""The options that all generators of regions and style codes share; free of torch."""

from __future__ import annotations

from typing import ClassVar

from counterlens.config import GeneratorOptions


class RegionGeneratorOptions(GeneratorOptions):
    """Quality gates on [0, 1] images: share of classes kept, and mean absolute error."""

    uses_classifier: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    least_class_kept: float = 0.95
    most_reconstruction_l1: float = 0.05

    def region_count(self) -> int:
        """How many regions an image may have."""
        raise NotImplementedError(f"{type(self).__name__} tells no number of regions")
