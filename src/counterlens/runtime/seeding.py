"""Every random number comes from a seed derived from the experiment's one root seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(root: int, *names: str | int) -> int:
    """A 63-bit seed that depends on the root seed and the names, in order."""
    text = "\0".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A CPU generator: the same numbers whatever the device that uses them."""
    import torch

    return torch.Generator().manual_seed(seed)


def image_generators(
    root: int, experiment: str, stage: str, images: Sequence[int]
) -> list[torch.Generator]:
    """One generator per image, so that batches, order and shards change nothing."""
    return [generator(derive_seed(root, experiment, stage, image)) for image in images]
