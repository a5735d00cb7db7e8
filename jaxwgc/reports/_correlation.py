"""Standard errors of means over rounds that are correlated."""

import numpy as np

# Largest autocorrelation that is corrected.
_LARGEST_CORRELATION = 0.97
# Lag-1 autocorrelation, in standard errors, above which lags 1 and 2 are extrapolated
# to all lags.
_NUM_STANDARD_ERRORS = 2
# Number of lags of the long-run variance, as a multiple of the cube root of the number
# of rounds.
_LAGS = 3


def correlation_scales(residuals: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Returns the factors by which correlation of rounds increases standard errors.

    The variance of a mean of rounds is larger than that of independent rounds by the
    largest of three factors. The first two are common to all workers:

    - (1 + r) / (1 - r) with the median lag-1 autocorrelation r, for rounds that forget
      the last one at a constant rate. A fitted change lowers r by about (4 + 9 r) /
      rounds, from simulations of 15 to 1,000 rounds.
    - 1 + 2 r / (1 - q) with the mean lag-1 autocorrelation r and the ratio q of the
      autocorrelations at lags 2 and 1. Noise within slow spells lowers r, but not q.
    - The long-run variance of the worker's own rounds, for single long spells.

    Args:
      residuals: (rounds, workers), NaN for no response.
      is_tested: Workers that take part in the common factors, (workers,).

    Returns:
      (workers,), at least 1.
    """
    num_rounds, num_workers = residuals.shape
    if not is_tested.any():
        return np.ones(num_workers)
    correlations = _autocorrelations(residuals)
    num_lags = len(correlations)
    # Bartlett's weights keep the variance positive.
    weights = 1 - np.arange(1, num_lags + 1) / (num_lags + 1)
    factors_of_workers = 1 + 2 * weights @ correlations
    common_factor = _common_factor(correlations[:, is_tested], num_rounds)
    return np.sqrt(np.maximum(factors_of_workers, common_factor))


def common_variance_factor(residuals: np.ndarray) -> float:
    """Returns the factor by which correlation of rounds increases variances.

    It is the larger of the common factors of `correlation_scales`, and 1 without
    workers.

    Args:
      residuals: (rounds, workers), NaN for no response.
    """
    if not residuals.shape[1]:
        return 1.0
    return _common_factor(_autocorrelations(residuals), len(residuals))


def _autocorrelations(residuals: np.ndarray) -> np.ndarray:
    """Returns the autocorrelation of each column at lags 1, 2, ..., (lags, columns)."""
    num_rounds = len(residuals)
    num_lags = min(max(int(_LAGS * num_rounds ** (1 / 3)), 2), num_rounds - 1)
    filled = np.nan_to_num(residuals)
    products = [
        np.einsum("ij,ij->j", filled[lag:], filled[: num_rounds - lag])
        for lag in range(num_lags + 1)
    ]
    return np.array(products[1:]) / np.maximum(products[0], 1e-300)


def _common_factor(correlations: np.ndarray, num_rounds: int) -> float:
    """Returns the variance factor that workers have in common.

    Args:
      correlations: Autocorrelations, (lags, workers).
      num_rounds: Number of rounds.
    """
    num_lags, num_workers = correlations.shape
    shrinkage = max(1 - 9 / num_rounds, 0.1)
    r = (np.median(correlations[0]) + 4 / num_rounds) / shrinkage
    r = np.clip(r, 0, _LARGEST_CORRELATION)
    lag_1_factor = (1 + r) / (1 - r)
    mixed_factor = 1.0
    lag_means = correlations[:2].mean(axis=1) + 4 / num_rounds
    standard_error = 1 / np.sqrt(num_rounds * num_workers)
    if num_lags > 1 and lag_means[0] > _NUM_STANDARD_ERRORS * standard_error:
        q = np.clip(lag_means[1] / lag_means[0], 0, _LARGEST_CORRELATION)
        mixed_factor = 1 + 2 * lag_means[0] / (1 - q)
    return float(max(lag_1_factor, mixed_factor))
