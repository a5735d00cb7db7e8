"""Statistics of times of workers: means of rounds, kinds of stragglers, changes."""

from typing import NamedTuple

import numpy as np
import scipy

# Probability that a report names any worker if all of them are alike.
FALSE_ALARMS = 0.05
# Logarithmic slowdown below which a worker is not named, however significant it is.
_MARGIN = np.log(1.05)
# Log-slowdown of a stall, relative to the worker's usual time.
_STALL = np.log(1.5)
# A worker is slow since a change only if its log-slowdown before the change was below
# this fraction of its log-slowdown afterwards.
_SHARE_BEFORE = 1 / 3
# Number of batches of consecutive rounds, for the intervals of means.
_NUM_BATCHES = 10
# Maximum number of rounds in medians and tests, since sorting more is slow.
NUM_SAMPLED = 4096
# Minimum number of responses of a tested worker.
_LEAST_RESPONSES = 8


class RoundMeans(NamedTuple):
    """Means over rounds, and the times of the median worker.

    Attributes:
      medians: Time of the median worker in each round, (rounds,).
      longest: Mean time of the last worker.
      mean: Mean time of a worker.
      median: Mean time of the median worker.
      last: Share of rounds in which a worker is last, (workers,).
      lost: Mean time lost to a worker, (workers,).
      lost_error: Half of the width of its 95% interval, from batches of consecutive
        rounds, (workers,).
    """

    medians: np.ndarray
    longest: float
    mean: float
    median: float
    last: np.ndarray
    lost: np.ndarray
    lost_error: np.ndarray


def sampled_rounds(num_rounds: int) -> np.ndarray:
    """Returns the numbers of all rounds, or of `NUM_SAMPLED` of them in order.

    One round is drawn from each of as many equal strata, with a fixed seed. Evenly
    spaced rounds would all be slow, or all fast, if every tenth round is slow.
    """
    if num_rounds <= NUM_SAMPLED:
        return np.arange(num_rounds)
    edges = np.linspace(0, num_rounds, NUM_SAMPLED + 1).astype(int)
    offsets = np.random.default_rng(0).random(NUM_SAMPLED)
    return edges[:-1] + (offsets * np.diff(edges)).astype(int)


def round_means(table: np.ndarray) -> RoundMeans:
    """Returns means over rounds, each with at least one response.

    Args:
      table: Times (rounds, workers), infinity for no response.
    """
    is_finite = np.isfinite(table)
    count = is_finite.sum(1, keepdims=True)
    # Ranks of the last, the second to last and the median worker. Of two workers in the
    # middle, the faster one is the median worker.
    ranks = np.hstack([count - 1, np.maximum(count - 2, 0), (count - 1) // 2])
    longest, second, medians = np.take_along_axis(np.sort(table, 1), ranks, 1).T
    mean = np.sum(table, 1, where=is_finite) / count[:, 0]
    is_last = table == longest[:, None]
    # If several workers are last, no time is lost to any of them.
    lost, lost_error = batch_means(is_last * (longest - second)[:, None])
    return RoundMeans(
        medians=medians,
        longest=float(longest.mean()),
        mean=float(mean.mean()),
        median=float(medians.mean()),
        last=is_last.mean(axis=0),
        lost=lost,
        lost_error=lost_error,
    )


def batch_means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means over rounds, and half of the widths of their 95% intervals.

    Args:
      values: (rounds, n).
    """
    means, standard_errors, degrees = batch_errors(values)
    return means, scipy.special.stdtrit(degrees, 0.975) * standard_errors


def batch_errors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns means over rounds, their standard errors, and degrees of freedom.

    Standard errors are from the means of batches of consecutive rounds, which may be
    correlated.

    Args:
      values: (rounds, n).
    """
    means = values.mean(0)
    batches = np.array_split(values, min(len(values), _NUM_BATCHES))
    deviations = [np.sum(batch - means, 0) for batch in batches]
    degrees = len(batches) - 1 or 1
    variances = len(batches) / degrees * np.sum(np.square(deviations), 0)
    return means, np.sqrt(variances) / len(values), degrees


def kinds_of(logs: np.ndarray, rounds: np.ndarray) -> dict[str, np.ndarray]:
    """Classifies workers by log-slowdowns (rounds, workers); returns report fields."""
    count = np.isfinite(logs).sum(0)
    ordered = np.sort(logs, 0)
    median = _median(logs)
    place = np.ceil(scipy.special.bdtrik(0.025, np.maximum(count, 1), 0.5)).astype(int)
    low = np.where(place > 0, _at(ordered, place - 1), -np.inf)
    high = np.where(place > 0, _at(ordered, count - np.maximum(place, 1)), np.inf)
    change, jump, before, after, autocorrelation = _change(logs)
    is_tested = count >= _LEAST_RESPONSES
    scale = _correlation_scale(autocorrelation[is_tested], len(logs))
    low = median - scale * (median - low)
    high = median + scale * (high - median)
    error = np.maximum(median - low, 1e-12) / scipy.special.ndtri(0.975)
    is_stalled = logs - median > _STALL
    # Consecutive stalled rounds count as one stall.
    num_stalls = is_stalled[0] + (is_stalled[1:] & ~is_stalled[:-1]).sum(0)
    p_values = [
        # Without a change, the jump is distributed as the maximum of a Brownian bridge.
        scipy.special.kolmogorov(jump / scale),
        scipy.special.stdtr(np.maximum(count - 1, 1), (_MARGIN - median) / error),
        # If all workers are alike, every response is equally likely to have a stall.
        scipy.special.bdtrc(num_stalls - 1, num_stalls.sum(), count / count.sum()),
    ]
    # Bonferroni's correction for the number of tests.
    p_values = np.where(is_tested, p_values, 1) * np.size(p_values)
    p_change, p_chronic, p_stalls = np.minimum(p_values, 1)
    kinds = np.where(count > 0, "steady", "missing").astype(object)
    kinds[p_stalls < FALSE_ALARMS] = "intermittent"
    kinds[p_chronic < FALSE_ALARMS] = "chronic"
    is_since = (p_change < FALSE_ALARMS) & (after > _MARGIN)
    is_since &= before < _SHARE_BEFORE * after
    kinds[is_since] = [f"since round {start}" for start in rounds[change[is_since]]]
    return {
        "kinds": kinds.astype(str),
        "slowdown": _median(np.exp(logs)),
        "slowdown_interval": np.exp([low, high]),
        "change_round": rounds[change],
        "slowdown_after": np.exp(after),
        "change_p_value": p_change,
    }


def _at(ordered: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns an order statistic of each column; the first one for negative ranks."""
    return np.take_along_axis(ordered, np.maximum(ranks, 0)[None], 0)[0]


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the median of each column, ignoring NaNs; NaN if all are NaN."""
    ordered, count = np.sort(values, 0), np.isfinite(values).sum(0)
    return (_at(ordered, (count - 1) // 2) + _at(ordered, count // 2)) / 2


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each column, ignoring NaNs; 0 if all are NaN."""
    return np.nansum(values, 0) / np.maximum(np.isfinite(values).sum(0), 1)


def _change(logs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Finds the row at which the level of each column most likely changes.

    Returns:
      The first row after it; the cumulative sum there of values minus their mean, in
      standard errors; medians before and after it; the lag-1 autocorrelation of the
      residuals.
    """
    median = _median(logs)
    # Values are clipped at 3 standard deviations, so that outliers do not look like a
    # change.
    bound = 3 * 1.4826 * _median(np.abs(logs - median))
    ends = median - bound, median + bound
    clipped = np.clip(logs, *ends)
    sums = np.nancumsum(clipped - _mean(clipped), 0)
    # Least squares place the change, at least a twentieth of the rows away from both
    # ends.
    length, edge = len(logs), len(logs) // 20 + 1
    places = np.arange(edge, length - edge + 1)[:, None]
    squares = sums[places[:, 0] - 1] ** 2 / (places * (length - places))
    place = squares.argmax(0) + edge
    is_before = np.arange(length)[:, None] < place
    first, second = np.where([is_before, ~is_before], logs, np.nan)
    levels = _mean(np.clip(first, *ends)), _mean(np.clip(second, *ends))
    rest = clipped - np.where(is_before, *levels)
    square = np.maximum(np.nansum(rest**2, 0), 1e-300)
    jump = np.abs(sums).max(0) / np.sqrt(square)
    autocorrelation = np.nansum(rest[1:] * rest[:-1], 0) / square
    return place, jump, _median(first), _median(second), autocorrelation


def _correlation_scale(autocorrelation: np.ndarray, num_rounds: int) -> float:
    """Returns the factor by which correlation of rounds increases standard errors.

    It uses the median autocorrelation r of workers. A fitted change lowers r by about
    (4 + 9 r) / rounds, from simulations of 15 to 1,000 rounds.
    """
    found = np.median(autocorrelation) if len(autocorrelation) else 0.0
    r = (found + 4 / num_rounds) / max(1 - 9 / num_rounds, 0.1)
    r = np.clip(r, 0, 0.97)
    return float(np.sqrt((1 + r) / (1 - r)))
