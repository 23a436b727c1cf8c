"""What all figures share: colours, the empty canvas, and how sets are read and images drawn."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterlens import layout
from counterlens.config import Experiment, Figure, Pair
from counterlens.errors import UserError
from counterlens.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

SOURCE, TARGET, INK = "#b45309", "#0f766e", "#1b1b1f"
CAPTION_WIDTH = 16


def canvas(width: float, height: float) -> Canvas:
    """An empty white figure of so many inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")


def caption(text: str) -> str:
    """The name of a class or a direction in lines that fit below or above one image."""
    if len(text) <= CAPTION_WIDTH:
        return text
    parts = text.replace("→", " →\n").splitlines()
    return "\n".join(textwrap.fill(part.strip(), CAPTION_WIDTH) for part in parts)


def load_set(
    experiment: Experiment, method: str, direction: Pair
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """The tensors and the table of a counterfactual set."""
    stem = layout.counterfactuals(experiment.name, method, *direction)
    return (
        files.load_tensors(stem.with_suffix(".safetensors")),
        pd.read_parquet(stem.with_suffix(".parquet")),
    )


def tensor_of(tensors: dict[str, np.ndarray], name: str, figure: Figure, method: str) -> np.ndarray:
    """One of a set's tensors.

    Raises:
        UserError: the method keeps none of that name.
    """
    if name not in tensors:
        raise UserError(
            f"figure {figure.name}: method {method} keeps no '{name}', which a figure "
            f"of kind '{figure.kind}' needs; name another method"
        )
    return tensors[name]


def show(axes: Axes, image: np.ndarray) -> None:
    """Draw an image (C, H, W) in [0, 1] without axes."""
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
