"""Times that slowdowns are relative to, if many responses are missing."""

import numpy as np

from jaxwgc.reports._statistics import (
    RoundMeans,
    median_slowdowns,
    round_means,
    sampled_rounds,
)

# Share of missing responses above which the median of a round depends on which workers
# responded.
_MANY_MISSING = 0.2
# Maximum number of iterations of the median polish, and the logarithmic change that
# ends it.
_NUM_ITERATIONS = 50
_TOLERANCE = 1e-4


def reference_times(times: np.ndarray, means: RoundMeans) -> np.ndarray:
    """Returns the time of the median worker of each round, (rounds,).

    A worker that responds alone in a round cannot be compared there, and the time is
    NaN, unless all rounds are such.

    If more than a fifth of the responses are missing, the median of a round would be
    that of other workers in each round. Times are then modelled as a product of a round
    and a worker, by alternating medians (Tukey's median polish of logarithms): each
    time is divided by the slowdown of its worker before the median is taken.

    Args:
      times: (rounds, workers), NaN for no response.
      means: Means of these times.
    """
    if not means.is_shared.any():
        return means.medians
    has_response = ~np.isnan(means.medians)
    responds = means.num_responses > 0
    num_responses = means.num_responses[responds]
    share = 1 - num_responses.mean() / has_response.sum()
    if share <= _MANY_MISSING:
        return np.where(means.is_shared, means.medians, np.nan)
    rounds = np.flatnonzero(means.is_shared)
    slowdowns = _polished_slowdowns(times[rounds[sampled_rounds(len(rounds))]])
    medians = round_means(times / slowdowns).medians
    return np.where(means.is_shared, medians, np.nan)


def _polished_slowdowns(times: np.ndarray) -> np.ndarray:
    """Returns slowdowns of workers by median polish, (workers,).

    The median worker has slowdown 1, and so has a worker without responses.
    """
    slowdowns = np.ones(times.shape[1])
    for _ in range(_NUM_ITERATIONS):
        medians = round_means(times / slowdowns).medians
        updated = median_slowdowns(times, medians)
        ordered = np.sort(updated[~np.isnan(updated)])
        updated = np.nan_to_num(updated / ordered[(len(ordered) - 1) // 2], nan=1.0)
        change = np.max(np.abs(np.log(updated / slowdowns)))
        slowdowns = updated
        if change < _TOLERANCE:
            break
    return slowdowns
