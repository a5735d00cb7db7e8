"""Kinds of stragglers, from tests of log-slowdowns."""

from typing import NamedTuple

import numpy as np
import scipy

# Probability that a report names any worker if all of them are alike.
FALSE_ALARMS = 0.05
# Logarithmic slowdown below which a worker is not named, however significant it is.
MARGIN = np.log(1.05)
# Log-slowdown of a stall, relative to the worker's usual time.
_STALL = np.log(1.5)
# A worker has another speed since a change only if its log-slowdown before the change
# was below this fraction of its log-slowdown afterwards.
_SHARE_BEFORE = 1 / 3
# Minimum number of responses of a tested worker.
_LEAST_RESPONSES = 8
# Largest autocorrelation that is corrected for.
_LARGEST_CORRELATION = 0.97
# Smallest lag-1 autocorrelation that is extrapolated by that at lag 2, in standard
# errors.
_NUM_STANDARD_ERRORS = 2
# Lags of the long-run variance, as a multiple of the cube root of the rounds.
_LAGS = 3


def kinds_of(logs: np.ndarray, rounds: np.ndarray) -> dict[str, np.ndarray]:
    """Classifies workers by log-slowdowns.

    Args:
      logs: (rounds, workers), NaN for no response.
      rounds: Numbers of the rounds, (rounds,).

    Returns:
      Fields of a report, each with an entry per worker.
    """
    count = np.isfinite(logs).sum(axis=0)
    is_tested = count >= _LEAST_RESPONSES
    change = _likeliest_change(logs)
    scale = _correlation_scales(change.residuals, is_tested)
    median, low, high, degrees = _median_interval(logs, scale)
    deviation = _deviations(median, is_tested)
    normal = scipy.special.ndtri(0.975)
    error_below = np.maximum(median - low, 1e-12) / normal
    error_above = np.maximum(high - median, 1e-12) / normal
    is_stalled = logs - median > _STALL
    # Consecutive stalled rounds count as one stall.
    num_stalls = is_stalled[0] + (is_stalled[1:] & ~is_stalled[:-1]).sum(axis=0)
    p_values = [
        # Without a change, the jump is distributed as the maximum of a Brownian bridge.
        scipy.special.kolmogorov(change.jump / scale),
        scipy.special.stdtr(degrees, (MARGIN - deviation) / error_below),
        scipy.special.stdtr(degrees, (MARGIN + deviation) / error_above),
        # If all workers are alike, every response is equally likely to have a stall.
        scipy.special.bdtrc(num_stalls - 1, num_stalls.sum(), count / count.sum()),
    ]
    # Bonferroni's correction for the number of tests.
    p_values = np.where(is_tested, p_values, 1) * np.size(p_values)
    p_change, p_chronic, p_fast, p_stalls = np.minimum(p_values, 1)
    kinds = np.where(count > 0, "steady", "missing").astype(object)
    kinds[p_stalls < FALSE_ALARMS] = "intermittent"
    kinds[p_fast < FALSE_ALARMS] = "fast"
    kinds[p_chronic < FALSE_ALARMS] = "chronic"
    is_changed = p_change < FALSE_ALARMS
    unchanged = logs[:, is_tested & ~is_changed]
    for place in np.unique(change.place[is_changed]):
        before = _deviations(_median(logs[:place]), is_tested)
        after = _deviations(_median(logs[place:]), is_tested)
        is_slow = (after > MARGIN) & (before < _SHARE_BEFORE * after)
        is_fast = (after < -MARGIN) & (before > _SHARE_BEFORE * after)
        is_here = is_changed & (change.place == place)
        for worker in np.flatnonzero(is_here & (is_slow | is_fast)):
            if not _is_spell(logs[:, worker], place, unchanged):
                prefix = "since" if is_slow[worker] else "fast since"
                kinds[worker] = f"{prefix} round {rounds[place]}"
    return {
        "kinds": kinds.astype(str),
        "slowdown_interval": np.exp([low, high]),
        "change_round": rounds[change.place],
        "slowdown_after": np.exp(change.after),
        "change_p_value": p_change,
    }


class _Change(NamedTuple):
    """The likeliest change of the level of each column.

    Attributes:
      place: First row after it, (columns,).
      jump: Largest cumulative sum of values minus their mean, in standard errors,
        (columns,).
      after: Median after the change, (columns,).
      residuals: Clipped values minus their means before and after the change,
        (rows, columns).
    """

    place: np.ndarray
    jump: np.ndarray
    after: np.ndarray
    residuals: np.ndarray


def _likeliest_change(logs: np.ndarray) -> _Change:
    """Finds the row at which the level of each column most likely changes."""
    median = _median(logs)
    # Values are clipped at 3 standard deviations, so that outliers do not look like a
    # change.
    bound = 3 * 1.4826 * _median(np.abs(logs - median))
    ends = median - bound, median + bound
    clipped = np.clip(logs, *ends)
    sums = np.nancumsum(clipped - _mean(clipped), axis=0)
    # Least squares place the change, at least a twentieth of the rows away from both
    # ends.
    length = len(logs)
    edge = length // 20 + 1
    places = np.arange(edge, length - edge + 1)[:, None]
    squares = sums[places[:, 0] - 1] ** 2 / (places * (length - places))
    place = squares.argmax(axis=0) + edge
    is_before = np.arange(length)[:, None] < place
    first = np.where(is_before, logs, np.nan)
    second = np.where(is_before, np.nan, logs)
    level_before = _mean(np.clip(first, *ends))
    level_after = _mean(np.clip(second, *ends))
    residuals = clipped - np.where(is_before, level_before, level_after)
    square = np.maximum(np.nansum(residuals**2, axis=0), 1e-300)
    # Two levels and a place are fitted.
    degrees = max(length - 3, 1) / length
    return _Change(
        place=place,
        jump=np.abs(sums).max(axis=0) * np.sqrt(degrees / square),
        after=_median(second),
        residuals=residuals,
    )


def _is_spell(column: np.ndarray, place: int, others: np.ndarray) -> bool:
    """Returns whether the speed since a change may be a spell like those of others.

    A spell of other workers is a run of rounds in which their values are as far from
    their median as those of the worker after the change, or at least half as far.
    Lengths of spells are taken to be geometric. So is the longest of all spells with
    some probability as long as that of the worker.

    Args:
      column: Log-slowdowns of a worker, (rows,).
      place: First row after the change.
      others: Log-slowdowns of workers without a change, (rows, workers).
    """
    before = np.nanmedian(column[:place])
    half_jump = (np.nanmedian(column[place:]) - before) / 2
    length = np.sum((column[place:] - before) / half_jump > 1)
    is_away = (others - _median(others)) / half_jump > 1
    for_two = is_away[1:] & is_away[:-1]
    for_three = for_two[1:] & for_two[:-1]
    num_spells = for_two.sum() - for_three.sum()
    if not num_spells:
        return False
    # Spells of one round are mostly noise, and are left out.
    continuing = for_three.sum() / for_two.sum()
    p_value = num_spells * continuing ** max(length - 2, 0)
    return bool(p_value > FALSE_ALARMS)


def _correlation_scales(residuals: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
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
    num_lags = min(max(int(_LAGS * num_rounds ** (1 / 3)), 2), num_rounds - 1)
    filled = np.nan_to_num(residuals)
    products = [
        np.einsum("ij,ij->j", filled[lag:], filled[: num_rounds - lag])
        for lag in range(num_lags + 1)
    ]
    own = np.array(products[1:]) / np.maximum(products[0], 1e-300)
    shrinkage = max(1 - 9 / num_rounds, 0.1)
    r = (np.median(own[0, is_tested]) + 4 / num_rounds) / shrinkage
    r = np.clip(r, 0, _LARGEST_CORRELATION)
    first_factor = (1 + r) / (1 - r)
    second_factor = 1.0
    lag_means = own[:2, is_tested].mean(axis=1) + 4 / num_rounds
    standard_error = 1 / np.sqrt(num_rounds * is_tested.sum())
    if num_lags > 1 and lag_means[0] > _NUM_STANDARD_ERRORS * standard_error:
        q = np.clip(lag_means[1] / lag_means[0], 0, _LARGEST_CORRELATION)
        second_factor = 1 + 2 * lag_means[0] / (1 - q)
    # Bartlett's weights keep the variance positive.
    weights = 1 - np.arange(1, num_lags + 1) / (num_lags + 1)
    own_factors = 1 + 2 * weights @ own
    return np.sqrt(np.maximum(own_factors, max(first_factor, second_factor)))


def _median_interval(logs: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the median of each column, the ends of its 95% interval, and degrees.

    The interval is that of order statistics, widened by a factor for correlation. Each
    of its halves is a sum of gaps between successive values, which are close to
    exponential variables. An exponential variable has 2 degrees of freedom.
    """
    count = np.isfinite(logs).sum(axis=0)
    ordered = np.sort(logs, axis=0)
    median = _median(logs)
    place = np.ceil(scipy.special.bdtrik(0.025, np.maximum(count, 1), 0.5)).astype(int)
    low = np.where(place > 0, _at(ordered, place - 1), -np.inf)
    high = np.where(place > 0, _at(ordered, count - np.maximum(place, 1)), np.inf)
    low = median - scale * (median - low)
    high = median + scale * (high - median)
    degrees = np.maximum(count - 2 * place, 1)
    return median, low, high, degrees


def _deviations(levels: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Returns levels of workers minus that of the median worker.

    If half of the workers or more are slow, the median worker of a round is the slowest
    of the others, or the fastest of the slow ones. Its noise would make all of them
    fast, or slow.
    """
    tested = np.sort(levels[is_tested & ~np.isnan(levels)])
    if not len(tested):
        return levels
    return levels - tested[(len(tested) - 1) // 2]


def _at(ordered: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Returns an order statistic of each column; the first one for negative ranks."""
    return np.take_along_axis(ordered, np.maximum(ranks, 0)[None], axis=0)[0]


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the median of each column, ignoring NaNs; NaN if all are NaN."""
    ordered = np.sort(values, axis=0)
    count = np.isfinite(values).sum(axis=0)
    return (_at(ordered, (count - 1) // 2) + _at(ordered, count // 2)) / 2


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each column, ignoring NaNs; 0 if all are NaN."""
    return np.nansum(values, axis=0) / np.maximum(np.isfinite(values).sum(axis=0), 1)
