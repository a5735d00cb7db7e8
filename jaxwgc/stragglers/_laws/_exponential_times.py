"""Exponential times, and times whose powers or logarithms are exponential."""

import numpy as np

from jaxwgc.stragglers._distributions import Sample


def log_times(times: float | np.ndarray) -> np.ndarray:
    """Returns logarithms of times, with a finite bound for times of at most zero."""
    return np.log(np.maximum(times, 1e-300))


def exponential_time(q: float | np.ndarray) -> np.ndarray:
    """Returns the standard exponential time that is exceeded with probability q."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log(q)


def log_density(excess: float | np.ndarray, rate: float) -> np.ndarray:
    """Returns the log-density of exponential times, given their excess."""
    density = np.log(rate) - rate * np.maximum(excess, 0)
    return np.where(excess >= 0, density, -np.inf)


def rate_of(sample: Sample, excess: np.ndarray) -> float:
    """Estimates the rate of exponential times from their excess over the minimum."""
    total = np.sum(sample.weights * np.maximum(excess, 0))
    count = sample.kept * np.sum(sample.weights * sample.is_whole)
    return count / max(total, 1e-300)
