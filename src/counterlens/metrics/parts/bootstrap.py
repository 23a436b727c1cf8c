"""Percentile bootstrap of a mean (Efron and Tibshirani 1993, §13.3). Needs no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["mean_interval"]


def mean_interval(
    values: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of the mean of `values` under resampling with replacement.

    Args:
        values: (N,) numbers, N >= 1.
        confidence: share of the resampled means inside the interval.
        resamples: number of resampled means.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (low, high).

    Raises:
        ValueError: no values, a value that is not finite, or a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"need a non-empty list of numbers, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("values must be finite")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError("need 0 < confidence < 1 and at least one resample")
    rng = np.random.default_rng(seed)
    # A resample of N values keeps only how often each distinct value was drawn: few distinct
    # values (validity: two) are drawn as counts, many as indices.
    distinct, counts = np.unique(array, return_counts=True)
    means = np.empty(resamples)
    if len(distinct) * 8 <= array.size:
        drawn = rng.multinomial(array.size, counts / array.size, size=resamples)
        means[:] = drawn @ distinct / array.size
    else:
        step = max(1, 2**22 // array.size)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            chosen = rng.integers(0, array.size, size=(count, array.size))
            means[start : start + count] = array[chosen].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # a mean of equal values must not leave them by rounding
    return float(np.clip(low, array.min(), array.max())), float(
        np.clip(high, array.min(), array.max())
    )
