"""Kinds of stragglers, from tests of log-slowdowns."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.studies._reports._correlation import correlation_scales

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
    scale = correlation_scales(change.residuals, is_tested)
    interval = _median_interval(logs, scale)
    p_values = [
        # Without a change, the jump is distributed as the maximum of a Brownian bridge.
        scipy.special.kolmogorov(change.jump / scale),
        *_p_values_of_level(interval, is_tested),
        _p_values_of_stalls(logs - interval.median),
    ]
    # Bonferroni's correction for the number of tests.
    p_values = np.where(is_tested, p_values, 1) * np.size(p_values)
    p_change, p_chronic, p_fast, p_stalls = np.minimum(p_values, 1)
    kinds = np.where(count > 0, "steady", "missing").astype(object)
    kinds[p_stalls < FALSE_ALARMS] = "intermittent"
    kinds[p_fast < FALSE_ALARMS] = "fast"
    kinds[p_chronic < FALSE_ALARMS] = "chronic"
    is_changed = p_change < FALSE_ALARMS
    directions = _directions_of_changes(logs, change.place, is_changed, is_tested)
    starts = rounds[change.place].astype(str).astype(object)
    kinds = np.where(directions > 0, "since round " + starts, kinds)
    kinds = np.where(directions < 0, "fast since round " + starts, kinds)
    return {
        "kinds": kinds.astype(str),
        "slowdown_interval": np.exp([interval.low, interval.high]),
        "change_round": rounds[change.place],
        "slowdown_after": np.exp(change.after),
        "change_p_value": p_change,
    }


def _directions_of_changes(
    logs: np.ndarray, place: np.ndarray, is_changed: np.ndarray, is_tested: np.ndarray
) -> np.ndarray:
    """Returns 1 for workers that are slow since a change, -1 for fast ones, or 0.

    Args:
      logs: (rows, workers), NaN for no response.
      place: First row after the change of each worker, int (workers,).
      is_changed: Workers with a significant change, bool (workers,).
      is_tested: Workers with enough responses, bool (workers,).
    """
    directions = np.zeros(len(place), dtype=int)
    unchanged = logs[:, is_tested & ~is_changed]
    for start in np.unique(place[is_changed]):
        before = _deviations(_median(logs[:start]), is_tested)
        after = _deviations(_median(logs[start:]), is_tested)
        is_slow = (after > MARGIN) & (before < _SHARE_BEFORE * after)
        is_fast = (after < -MARGIN) & (before > _SHARE_BEFORE * after)
        is_here = is_changed & (place == start)
        for worker in np.flatnonzero(is_here & (is_slow | is_fast)):
            jump = after[worker] - before[worker]
            if not _is_spell(logs[start:, worker], jump, unchanged):
                directions[worker] = 1 if is_slow[worker] else -1
    return directions


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


def _is_spell(logs: np.ndarray, jump: float, others: np.ndarray) -> bool:
    """Returns whether the speed since a change may be a spell.

    A spell of other workers is a run of rounds in which their values are more than half
    of the change away from their median. If lengths of spells are geometric, the
    longest of them is as long as that of the worker with some probability.

    Args:
      logs: Log-slowdowns of a worker after the change, (rows,).
      jump: Difference to its level before the change.
      others: Log-slowdowns of workers without a change, (rows, workers).
    """
    direction = np.sign(jump)
    length = np.sum(direction * (logs - np.nanmedian(logs) + jump / 2) > 0)
    is_away = direction * (others - _median(others) - jump / 2) > 0
    for_two = is_away[1:] & is_away[:-1]
    for_three = for_two[1:] & for_two[:-1]
    num_spells = for_two.sum() - for_three.sum()
    if not num_spells:
        return False
    # Spells of one round are mostly noise, and are left out.
    continuing = for_three.sum() / for_two.sum()
    p_value = num_spells * continuing ** max(length - 2, 0)
    return bool(p_value > FALSE_ALARMS)


class _Interval(NamedTuple):
    """Medians of columns with 95% intervals.

    Attributes:
      median: (columns,).
      low: Lower ends, (columns,).
      high: Upper ends, (columns,).
      degrees: Degrees of freedom of the distances of the ends from the median,
        (columns,).
    """

    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    degrees: np.ndarray


def _median_interval(logs: np.ndarray, scale: np.ndarray) -> _Interval:
    """Returns the median of each column, and its 95% interval.

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
    return _Interval(
        median=median,
        low=median - scale * (median - low),
        high=median + scale * (high - median),
        degrees=np.maximum(count - 2 * place, 1),
    )


def _p_values_of_level(
    interval: _Interval, is_tested: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns p-values of medians above and below the level of the median worker."""
    deviation = _deviations(interval.median, is_tested)
    normal = scipy.special.ndtri(0.975)
    error_below = np.maximum(interval.median - interval.low, 1e-12) / normal
    error_above = np.maximum(interval.high - interval.median, 1e-12) / normal
    return (
        scipy.special.stdtr(interval.degrees, (MARGIN - deviation) / error_below),
        scipy.special.stdtr(interval.degrees, (MARGIN + deviation) / error_above),
    )


def _p_values_of_stalls(deviations: np.ndarray) -> np.ndarray:
    """Returns p-values of the number of stalls of each worker.

    If all workers are alike, every response is equally likely to have a stall.

    Args:
      deviations: Log-slowdowns minus their medians, (rows, workers).
    """
    count = np.isfinite(deviations).sum(axis=0)
    is_stalled = deviations > _STALL
    # Consecutive stalled rounds count as one stall.
    num_stalls = is_stalled[0] + (is_stalled[1:] & ~is_stalled[:-1]).sum(axis=0)
    return scipy.special.bdtrc(num_stalls - 1, num_stalls.sum(), count / count.sum())


def _deviations(levels: np.ndarray, is_tested: np.ndarray) -> np.ndarray:
    """Returns levels of workers minus the level of the median worker.

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
