"""Levels of log-slowdowns, and the limits of tests."""

import numpy as np

# Probability that a report names any worker if all of them are alike.
FALSE_ALARMS = 0.05
# Log-slowdown below which a worker is not named, however significant it is.
MARGIN = np.log(1.05)
# Minimum number of responses of a tested worker.
LEAST_RESPONSES = 8


def level_deviations(levels: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Returns levels of workers minus the level of the median worker.

    If half of the workers or more are slow, the median worker of a round is the slowest
    of the others, or the fastest of the slow ones. Its noise would make all of them
    fast, or slow.
    """
    tested = np.sort(levels[is_tested & ~np.isnan(levels)])
    if not len(tested):
        return levels
    return levels - tested[(len(tested) - 1) // 2]


def column_order_statistic(ordered: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns an order statistic of each column; the first one for negative ranks."""
    return np.take_along_axis(ordered, np.maximum(ranks, 0)[None], axis=0)[0]


def column_medians(values: np.ndarray) -> np.ndarray:
    """Returns the median of each column, ignoring NaNs; NaN if all are NaN."""
    ordered = np.sort(values, axis=0)
    count = np.isfinite(values).sum(axis=0)
    lower = column_order_statistic(ordered, (count - 1) // 2)
    upper = column_order_statistic(ordered, count // 2)
    return (lower + upper) / 2


def column_means(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each column, ignoring NaNs; 0 if all are NaN."""
    return np.nansum(values, axis=0) / np.maximum(np.isfinite(values).sum(axis=0), 1)
