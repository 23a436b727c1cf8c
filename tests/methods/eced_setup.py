"""What the tests of ECED have in common."""

from __future__ import annotations

from typing import Any

import torch

from counterlens.methods.eced import Options
from counterlens.methods.parts.edit_region import EditRegion
from counterlens.runtime.seeding import generator

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def randomness(count: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(1000 * seed + number) for number in range(count)]


def region_of(models, **changes: Any) -> EditRegion:
    options = Options.model_validate({"kind": "eced", **changes})
    return EditRegion(models["latent-diffusion"], models["gap-resnet"], options)
