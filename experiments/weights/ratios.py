"""Ratios of errors of two methods on the same runs, with intervals."""

import numpy as np

import jaxwgc
from experiments.runner.tables import with_half


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> jaxwgc.Summary:
    """Returns the ratio of paired runs (runs, ...), interval by the delta method."""
    ratio = above.mean(axis=0) / below.mean(axis=0)
    spread = jaxwgc.summarize((above - ratio * below) / below.mean(axis=0))
    return jaxwgc.Summary(
        ratio, *(ratio + end for end in spread[1:3]), standard_error=np.nan
    )


def geometric_mean(values: np.ndarray) -> jaxwgc.Summary:
    """Returns exp of the mean logarithm of positive numbers (runs, ...), and interval.

    Of errors that differ by orders of magnitude between runs the mean is that of the
    few worst runs; this is not.
    """
    return jaxwgc.Summary(
        *map(np.exp, jaxwgc.summarize(np.log(values))[:3]), standard_error=np.nan
    )


def verdict(ratio: jaxwgc.Summary) -> str:
    """A ratio of errors with its interval; an arrow where that excludes 1."""
    low, high = float(ratio.low), float(ratio.high)
    if max(abs(low - 1), abs(high - 1)) < 5e-4:
        return "1"
    sign = " ↓" if high < 1 else " ↑" if low > 1 else ""
    half = (high - low) / 2
    if not ratio.mean < 1e4:
        # Runs that have diverged.
        return f"{ratio.mean:.0e}{sign}"
    digits = 2
    if np.isfinite(half) and half > 0:
        digits = int(np.clip(1 - np.floor(np.log10(half)), 0, 4))
    return with_half(float(ratio.mean), half, digits) + sign
