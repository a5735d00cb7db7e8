"""Finds times that include waiting for the slowest worker, as after a barrier."""

import numpy as np

# Largest range of the times of a round, relative to its longest time, in nearly all
# rounds. Up to the first bound, times are equal. Up to the second, they are equal if no
# worker is last more often than others. Up to the third, rounds must also differ far
# more than workers.
_RANGE_OF_JITTER = 0.02
_RANGE_IN_TURNS = 0.08
_RANGE_IN_UNEQUAL_ROUNDS = 0.12
# Share of the rounds that must have such a range. A stall in more rounds shows that
# there is no barrier.
_NEARLY_ALL = 0.95
# Ratio of the standard deviations of log-times, within rounds to between rounds, below
# which rounds differ far more.
_FAR_BELOW = 0.1
# Largest share of rounds in which one worker is last, as a multiple of an equal share.
# Standard errors are added.
_EQUAL_SHARES = 1.5
_NUM_STANDARD_ERRORS = 4


def is_after_barrier(times: np.ndarray, medians: np.ndarray) -> bool:
    """Returns whether times look as if all workers had waited for the slowest one.

    Args:
      times: (rounds, workers), NaN for no response, with at least one response in each
        round.
      medians: Time of the median worker of each round, (rounds,).
    """
    # A round with one response shows nothing.
    has_several = np.isfinite(times).sum(axis=1) > 1
    if not has_several.any():
        return False
    times = times[has_several]
    medians = medians[has_several]
    longest = np.nanmax(times, axis=1)
    ranges = 1 - np.nanmin(times, axis=1) / longest
    largest_range = np.quantile(ranges, _NEARLY_ALL)
    if largest_range < _RANGE_OF_JITTER:
        return True
    if not _are_last_in_turns(times, longest):
        return False
    if largest_range < _RANGE_IN_TURNS:
        return True
    spread_within = np.nanstd(np.log(times) - np.log(medians)[:, None])
    spread_of_rounds = np.std(np.log(medians))
    return bool(
        largest_range < _RANGE_IN_UNEQUAL_ROUNDS
        and spread_within < _FAR_BELOW * spread_of_rounds
    )


def _are_last_in_turns(times: np.ndarray, longest: np.ndarray) -> bool:
    """Returns whether no worker is last in more rounds than chance explains."""
    num_rounds, num_workers = times.shape
    is_last = times == longest[:, None]
    shares = np.mean(is_last / is_last.sum(axis=1, keepdims=True), axis=0)
    equal_share = 1 / num_workers
    standard_error = np.sqrt(equal_share / num_rounds)
    margin = _NUM_STANDARD_ERRORS * standard_error
    return bool(shares.max() <= _EQUAL_SHARES * equal_share + margin)
