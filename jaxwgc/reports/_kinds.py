"""Tests of the slowdowns of workers, which decide their kinds."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.reports._statistics import (
    FALSE_ALARMS,
    LEAST_RESPONSES,
    MARGIN,
    column_means,
    column_medians,
    column_order_statistic,
    correlation_scales,
    level_deviations,
)
from jaxwgc.reports._workers import DIFFER_AFTER, DIFFER_BEFORE, Kind

# Log-slowdown above which a time counts as a stall, relative to the usual time of the
# worker.
_STALL = np.log(1.5)
# Largest log-slowdown on the normal side of a change, as a fraction of the log-slowdown
# on the slow or fast side.
_SHARE_BEFORE = 1 / 3
# Number of tests of the speed of each worker: stalls, fast, slow, and a change.
_NUM_TESTS = 4


class Speeds(NamedTuple):
    """Kinds of workers by their speed, and intervals of their slowdowns.

    Attributes:
      kinds: `Kind` of each worker, object (workers,).
      change_round: Round of the change that the kind names, int (workers,). -1 for
        kinds without a change.
      interval: Ends of the 95% interval of the median slowdown, (2, workers).
    """

    kinds: np.ndarray
    change_round: np.ndarray
    interval: np.ndarray


def speeds_of(
    logs: np.ndarray, log_references: np.ndarray, steps: np.ndarray
) -> Speeds:
    """Classifies workers by their slowdowns.

    Args:
      logs: Log-slowdowns, (rounds, workers), NaN for no response.
      log_references: Logarithm of the time that slowdowns are relative to, (rounds,).
      steps: Number of each round, int (rounds,).
    """
    changes = _changes_of_speed(logs)
    interval = _median_interval(logs, changes.scale)
    deviations = logs - interval.median
    # A kind that is assigned later replaces an earlier kind.
    kinds = np.array([Kind.STEADY] * logs.shape[1], dtype=object)
    kinds[_is_significant(_p_values_of_stalls(deviations), logs)] = Kind.INTERMITTENT
    p_slow, p_fast = _p_values_of_level(interval, is_tested=_is_tested(logs))
    kinds[_is_significant(p_fast, logs)] = Kind.FAST
    kinds[_is_significant(p_slow, logs)] = Kind.CHRONIC
    change_round = np.full(logs.shape[1], -1)
    ends = _ends_of_slow_periods(logs, changes)
    for worker, kind in changes.kinds.items():
        place = changes.place[worker]
        if worker in ends:
            kind = Kind.UNTIL
            place = ends[worker]
        elif kind == Kind.SINCE and _others_became_faster(
            logs[:, worker], log_references, start=place
        ):
            kind = Kind.OTHERS_FASTER_SINCE
        elif kind == Kind.FAST_UNTIL and kinds[worker] != Kind.FAST:
            # A worker that was fast up to a round is named only if it is fast in most
            # rounds.
            continue
        kinds[worker] = kind
        change_round[worker] = steps[place]
    return Speeds(
        kinds=kinds,
        change_round=change_round,
        interval=np.exp([interval.low, interval.high]),
    )


def _is_tested(logs: np.ndarray) -> np.ndarray:
    """Returns which workers have enough responses for a test."""
    return np.isfinite(logs).sum(axis=0) >= LEAST_RESPONSES


def _is_significant(p_values: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Returns which tested workers have a significant p-value."""
    # Bonferroni's correction multiplies by the number of tests.
    return _is_tested(logs) & (p_values * _NUM_TESTS * len(p_values) < FALSE_ALARMS)


class _Interval(NamedTuple):
    """Median of each column, with its 95% interval.

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
    """Computes the median of each column, with its 95% interval.

    The interval is between two order statistics, and is widened for correlation by the
    factor `scale`. Each half of the interval is a sum of gaps between successive
    values. Gaps are nearly exponential variables, with 2 degrees of freedom each.
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
    """Returns p-values for being slower, and for being faster, by more than 5%.

    Workers are compared with the median worker.
    """
    deviation = level_deviations(interval.median, is_tested)
    normal = scipy.special.ndtri(0.975)
    error_below = np.maximum(interval.median - interval.low, 1e-12) / normal
    error_above = np.maximum(interval.high - interval.median, 1e-12) / normal
    return (
        scipy.special.stdtr(interval.degrees, (MARGIN - deviation) / error_below),
        scipy.special.stdtr(interval.degrees, (MARGIN + deviation) / error_above),
    )


def _p_values_of_stalls(deviations: np.ndarray) -> np.ndarray:
    """Computes p-values for stalling more often than other workers.

    If all workers are alike, every response is equally likely to have a stall.

    Args:
      deviations: Log-slowdowns minus their medians, (rows, workers).
    """
    count = np.isfinite(deviations).sum(axis=0)
    is_stalled = deviations > _STALL
    # Consecutive rounds with stalls count as one stall.
    num_stalls = is_stalled[0] + (is_stalled[1:] & ~is_stalled[:-1]).sum(axis=0)
    return scipy.special.bdtrc(num_stalls - 1, num_stalls.sum(), count / count.sum())


class Change(NamedTuple):
    """The likeliest change of each worker's speed.

    Attributes:
      place: First row after the change, (columns,).
      jump: Largest cumulative sum of values minus their mean, in standard errors,
        (columns,).
      residuals: Clipped values minus their means before and after the change,
        (rows, columns).
    """

    place: np.ndarray
    jump: np.ndarray
    residuals: np.ndarray


def likeliest_change(logs: np.ndarray) -> Change:
    """Finds the round at which each worker's speed most likely changes."""
    median = column_medians(logs)
    # Values are clipped at 3 standard deviations (estimated by 1.4826 times the median
    # absolute deviation), so that an outlier does not look like a change.
    bound = 3 * 1.4826 * column_medians(np.abs(logs - median))
    low = median - bound
    high = median + bound
    clipped = np.clip(logs, low, high)
    sums = np.nancumsum(clipped - column_means(clipped), axis=0)
    # The change is where two levels fit best by least squares. It is at least a
    # twentieth of the rows away from both ends.
    length = len(logs)
    edge = length // 20 + 1
    places = np.arange(edge, max(length - edge, edge) + 1)
    sizes = np.maximum(places * (length - places), 1)
    squares = sums[places - 1] ** 2 / sizes[:, None]
    place = squares.argmax(axis=0) + edge
    is_before = np.arange(length)[:, None] < place
    first = np.where(is_before, logs, np.nan)
    second = np.where(is_before, np.nan, logs)
    level_before = column_means(np.clip(first, low, high))
    level_after = column_means(np.clip(second, low, high))
    residuals = clipped - np.where(is_before, level_before, level_after)
    square = np.maximum(np.nansum(residuals**2, axis=0), 1e-300)
    # The fit has three parameters: two levels and a position.
    degrees = max(length - 3, 1) / length
    return Change(
        place=place,
        jump=np.abs(sums).max(axis=0) * np.sqrt(degrees / square),
        residuals=residuals,
    )


class _SpeedChanges(NamedTuple):
    """Workers with a significant change of speed.

    Attributes:
      kinds: `Kind.SINCE`, `FAST_SINCE`, `UNTIL` or `FAST_UNTIL` of workers that have
        changed.
      place: First row after the likeliest change of each worker, int (workers,).
      scale: Factor of standard errors for the correlation of rounds, (workers,).
    """

    kinds: dict[int, Kind]
    place: np.ndarray
    scale: np.ndarray


def _changes_of_speed(logs: np.ndarray) -> _SpeedChanges:
    """Finds workers with a significant change of speed."""
    is_tested = _is_tested(logs)
    change = likeliest_change(logs)
    scale = correlation_scales(change.residuals, is_tested)
    # Without a change, the jump is distributed as the maximum of the absolute value of
    # a Brownian bridge.
    p_values = scipy.special.kolmogorov(change.jump / scale)
    is_changed = _is_significant(p_values, logs)
    unchanged = logs[:, is_tested & ~is_changed]
    kinds = {}
    for start in np.unique(change.place[is_changed]):
        middle = (start + 1) // 2
        before = level_deviations(column_medians(logs[:start]), is_tested)
        after = level_deviations(column_medians(logs[start:]), is_tested)
        first_half = level_deviations(column_medians(logs[:middle]), is_tested)
        second_half = level_deviations(column_medians(logs[middle:start]), is_tested)
        for worker in np.flatnonzero(is_changed & (change.place == start)):
            kind = _kind_of_change(before[worker], after[worker])
            jump = after[worker] - before[worker]
            if kind in DIFFER_AFTER:
                if not _is_spell(logs[start:, worker], jump, unchanged):
                    kinds[int(worker)] = kind
            elif kind in DIFFER_BEFORE:
                # The worker must differ in both halves before the change: a spell in
                # one half is not its speed.
                halves = np.array([first_half[worker], second_half[worker]])
                is_level = np.all(-np.sign(jump) * halves > MARGIN)
                if is_level and not _is_spell(logs[:start, worker], -jump, unchanged):
                    kinds[int(worker)] = kind
    return _SpeedChanges(kinds=kinds, place=change.place, scale=scale)


def _kind_of_change(before: float, after: float) -> Kind | None:
    """Returns the kind for log-slowdowns before and after a change, or None."""
    if after > MARGIN and before < _SHARE_BEFORE * after:
        return Kind.SINCE
    if after < -MARGIN and before > _SHARE_BEFORE * after:
        return Kind.FAST_SINCE
    if before > MARGIN and after < min(MARGIN, _SHARE_BEFORE * before):
        return Kind.UNTIL
    if before < -MARGIN and after > max(-MARGIN, _SHARE_BEFORE * before):
        return Kind.FAST_UNTIL
    return None


def _ends_of_slow_periods(logs: np.ndarray, changes: _SpeedChanges) -> dict[int, int]:
    """Finds the row from which on each recovered worker is as fast as before."""
    slow = [worker for worker, kind in changes.kinds.items() if kind == Kind.SINCE]
    ends = {}
    for start in np.unique(changes.place[slow]):
        later = _changes_of_speed(logs[start:])
        for worker in slow:
            is_over = later.kinds.get(worker) == Kind.UNTIL
            if is_over and changes.place[worker] == start:
                ends[worker] = start + later.place[worker]
    return ends


def _others_became_faster(
    logs: np.ndarray, log_references: np.ndarray, start: int
) -> bool:
    """Returns whether a worker is slow because others became faster.

    If so, its own times did not get longer, and the times of the median worker got
    shorter by more than their usual deviation.

    Args:
      logs: Log-slowdowns of the worker, (rows,), NaN for no response.
      log_references: Logarithm of the time that slowdowns are relative to, (rows,).
      start: First row after the change.
    """
    own_times = logs + log_references
    before = np.median(log_references[:start])
    after = np.median(log_references[start:])
    level = np.where(np.arange(len(logs)) < start, before, after)
    usual_deviation = 1.4826 * np.median(np.abs(log_references - level))
    own_jump = np.nanmedian(own_times[start:]) - np.nanmedian(own_times[:start])
    jump_of_others = after - before
    jump = own_jump - jump_of_others
    return bool(own_jump < min(MARGIN, jump / 2) and jump_of_others < -usual_deviation)


def _is_spell(logs: np.ndarray, jump: float, others: np.ndarray) -> bool:
    """Returns whether a change may be a temporary spell, as other workers have.

    A spell of another worker is a run of rounds in which its log-slowdown is more than
    half of the change away from its median. Lengths of spells are assumed to be
    geometric. The test is whether the longest of these spells may be as long as the
    spell of the worker.

    Args:
      logs: Log-slowdowns of a worker on one side of the change, (rows,).
      jump: Level of these log-slowdowns minus the level on the other side.
      others: Log-slowdowns of workers without a change, (rows, workers).
    """
    direction = np.sign(jump)
    is_spell_here = direction * (logs - np.nanmedian(logs) + jump / 2) > 0
    is_spell_here = is_spell_here[~np.isnan(logs)]
    # A round between two rounds of a spell belongs to the spell: noise may interrupt
    # it.
    is_between = is_spell_here[:-2] & is_spell_here[2:]
    is_spell_here[1:-1] |= is_between
    length = _longest_run(is_spell_here)
    is_away = direction * (others - column_medians(others) - jump / 2) > 0
    for_two = is_away[1:] & is_away[:-1]
    for_three = for_two[1:] & for_two[:-1]
    num_spells = for_two.sum() - for_three.sum()
    if not num_spells:
        return False
    # Spells of one round are left out, because they are mostly noise.
    continuing = for_three.sum() / for_two.sum()
    p_value = num_spells * continuing ** max(length - 2, 0)
    # Spells at the beginning and at the end both look like changes, so each may cause
    # half of the false alarms.
    return bool(p_value > FALSE_ALARMS / 2)


def _longest_run(values: np.ndarray) -> int:
    """Returns the length of the longest run of True."""
    ends = np.flatnonzero(~np.concatenate([[False], values, [False]]))
    return int(np.diff(ends).max() - 1)
