"""What all figures share: colours and the empty canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

SOURCE, TARGET, INK = "#b45309", "#0f766e", "#1b1b1f"


def canvas(width: float, height: float) -> Canvas:
    """An empty white figure of so many inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
