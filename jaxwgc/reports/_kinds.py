"""Kinds of stragglers, from tests of log-slowdowns."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.reports._changes import (
    ends_of_slow_periods,
    jump_p_values,
    kinds_of_changes,
    likeliest_change,
    others_became_faster,
)
from jaxwgc.reports._correlation import correlation_scales
from jaxwgc.reports._levels import (
    FALSE_ALARMS,
    LEAST_RESPONSES,
    MARGIN,
    column_medians,
    column_order_statistic,
    level_deviations,
)

# Log-slowdown from which on a time is a stall, relative to the usual time of the
# worker.
_STALL = np.log(1.5)
# Number of tests of each worker.
_NUM_TESTS = 4


def kinds_of(
    logs: np.ndarray, log_references: np.ndarray, steps: np.ndarray, noun: str
) -> dict[str, np.ndarray]:
    """Classifies workers by log-slowdowns.

    Args:
      logs: (rounds, workers), NaN for no response.
      log_references: Logarithm of the time that slowdowns are relative to, (rounds,).
      steps: Number of each round, int (rounds,).
      noun: What is counted, "round" or "step".

    Returns:
      Fields of a report, each with an entry per worker.
    """
    count = np.isfinite(logs).sum(axis=0)
    is_tested = count >= LEAST_RESPONSES
    change = likeliest_change(logs)
    scale = correlation_scales(change.residuals, is_tested)
    interval = _median_interval(logs, scale)
    p_values = [
        jump_p_values(change, scale),
        *_p_values_of_level(interval, is_tested),
        _p_values_of_stalls(logs - interval.median),
    ]
    # Bonferroni's correction multiplies by the number of tests.
    p_values = np.where(is_tested, p_values, 1) * np.size(p_values)
    p_change, p_chronic, p_fast, p_stalls = np.minimum(p_values, 1)
    kinds = np.full(logs.shape[1], "steady", dtype=object)
    kinds[p_stalls < FALSE_ALARMS] = "intermittent"
    kinds[p_fast < FALSE_ALARMS] = "fast"
    kinds[p_chronic < FALSE_ALARMS] = "chronic"
    changes = _changes(logs, log_references, change.place, p_change < FALSE_ALARMS)
    places = change.place.copy()
    for worker, change_of_worker in changes.items():
        # This kind does not help with workers that are like others.
        if change_of_worker.kind == "fast until" and kinds[worker] != "fast":
            continue
        place = change_of_worker.place
        kinds[worker] = f"{change_of_worker.kind} {noun} {steps[place]}"
        places[worker] = place
    is_before = np.arange(len(logs))[:, None] < places
    return {
        "kinds": kinds.astype(str),
        "slowdown_interval": np.exp([interval.low, interval.high]),
        "change_round": steps[places],
        "slowdown_before": np.exp(column_medians(np.where(is_before, logs, np.nan))),
        "slowdown_after": np.exp(column_medians(np.where(is_before, np.nan, logs))),
        "change_p_value": p_change,
    }


class _ChangeOfWorker(NamedTuple):
    """Kind of a change, e.g. "since", and the first row after it."""

    kind: str
    place: int


def _changes(
    logs: np.ndarray,
    log_references: np.ndarray,
    place: np.ndarray,
    is_changed: np.ndarray,
) -> dict[int, _ChangeOfWorker]:
    """Returns the changes of workers.

    Args:
      logs: (rows, workers), NaN for no response.
      log_references: Logarithm of the time that slowdowns are relative to, (rows,).
      place: First row after the likeliest change of each worker, int (workers,).
      is_changed: Workers with a significant change, bool (workers,).
    """
    is_tested = np.isfinite(logs).sum(axis=0) >= LEAST_RESPONSES
    kinds = kinds_of_changes(logs, place, is_changed, is_tested)
    starts = {
        worker: int(place[worker]) for worker, kind in kinds.items() if kind == "since"
    }
    num_tests = _NUM_TESTS * logs.shape[1]
    ends = ends_of_slow_periods(logs, starts, num_tests)
    changes = {}
    for worker, kind in kinds.items():
        start = int(place[worker])
        if worker in ends:
            changes[worker] = _ChangeOfWorker(kind="until", place=ends[worker])
        elif kind == "since" and others_became_faster(
            logs[:, worker], log_references, start
        ):
            changes[worker] = _ChangeOfWorker(kind="others faster since", place=start)
        else:
            changes[worker] = _ChangeOfWorker(kind=kind, place=start)
    return changes


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
    median = column_medians(logs)
    place = np.ceil(scipy.special.bdtrik(0.025, np.maximum(count, 1), 0.5)).astype(int)
    low = np.where(place > 0, column_order_statistic(ordered, place - 1), -np.inf)
    high = np.where(
        place > 0, column_order_statistic(ordered, count - np.maximum(place, 1)), np.inf
    )
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
    deviation = level_deviations(interval.median, is_tested)
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
    # Consecutive rounds with stalls count as one stall.
    num_stalls = is_stalled[0] + (is_stalled[1:] & ~is_stalled[:-1]).sum(axis=0)
    return scipy.special.bdtrc(num_stalls - 1, num_stalls.sum(), count / count.sum())
