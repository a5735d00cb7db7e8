"""Changes of the speed of workers: when, and from which level to which."""

from typing import NamedTuple

import numpy as np
import scipy

from jaxwgc.reports._correlation import correlation_scales
from jaxwgc.reports._levels import (
    FALSE_ALARMS,
    LEAST_RESPONSES,
    MARGIN,
    column_means,
    column_medians,
    level_deviations,
)

# Largest log-slowdown before a change of speed, as a fraction of the log-slowdown after
# it.
_SHARE_BEFORE = 1 / 3


class Change(NamedTuple):
    """The likeliest change of the level of each column.

    Attributes:
      place: First row after it, (columns,).
      jump: Largest cumulative sum of values minus their mean, in standard errors,
        (columns,).
      residuals: Clipped values minus their means before and after the change,
        (rows, columns).
    """

    place: np.ndarray
    jump: np.ndarray
    residuals: np.ndarray


def likeliest_change(logs: np.ndarray) -> Change:
    """Finds the row at which the level of each column most likely changes."""
    if len(logs) < 2:
        num_columns = logs.shape[1]
        return Change(
            place=np.zeros(num_columns, dtype=int),
            jump=np.zeros(num_columns),
            residuals=np.zeros_like(logs),
        )
    median = column_medians(logs)
    # Values are clipped at 3 standard deviations. An outlier then does not look like a
    # change.
    bound = 3 * 1.4826 * column_medians(np.abs(logs - median))
    low = median - bound
    high = median + bound
    clipped = np.clip(logs, low, high)
    sums = np.nancumsum(clipped - column_means(clipped), axis=0)
    # Least squares find the change, at least a twentieth of the rows away from both
    # ends.
    length = len(logs)
    edge = length // 20 + 1
    places = np.arange(edge, length - edge + 1)[:, None]
    squares = sums[places[:, 0] - 1] ** 2 / (places * (length - places))
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


def jump_p_values(change: Change, scale: np.ndarray) -> np.ndarray:
    """Returns p-values of the jumps of changes, (columns,).

    Without a change, the jump is distributed as the maximum of a Brownian bridge.
    """
    return scipy.special.kolmogorov(change.jump / scale)


def kinds_of_changes(
    logs: np.ndarray, place: np.ndarray, is_changed: np.ndarray, is_tested: np.ndarray
) -> dict[int, str]:
    """Returns "since", "fast since", "until" or "fast until" for workers with a change.

    Args:
      logs: (rows, workers), NaN for no response.
      place: First row after the change of each worker, int (workers,).
      is_changed: Workers with a significant change, bool (workers,).
      is_tested: Workers with enough responses, bool (workers,).
    """
    changes = {}
    unchanged = logs[:, is_tested & ~is_changed]
    for start in np.unique(place[is_changed]):
        middle = (start + 1) // 2
        before = level_deviations(column_medians(logs[:start]), is_tested)
        after = level_deviations(column_medians(logs[start:]), is_tested)
        first_half = level_deviations(column_medians(logs[:middle]), is_tested)
        second_half = level_deviations(column_medians(logs[middle:start]), is_tested)
        for worker in np.flatnonzero(is_changed & (place == start)):
            jump = after[worker] - before[worker]
            name = _name_of_change(before[worker], after[worker])
            if not name:
                continue
            if name.endswith("until"):
                # A spell in the middle is not the speed at the start.
                sign = -np.sign(jump)
                halves = sign * np.array([first_half[worker], second_half[worker]])
                is_change = np.all(halves > MARGIN) and not _is_spell(
                    logs[:start, worker], -jump, unchanged
                )
            else:
                is_change = not _is_spell(logs[start:, worker], jump, unchanged)
            if is_change:
                changes[int(worker)] = name
    return changes


def ends_of_slow_periods(
    logs: np.ndarray, starts: dict[int, int], num_tests: int
) -> dict[int, int]:
    """Returns the first row after the slow rounds of workers that have recovered.

    Args:
      logs: (rows, workers), NaN for no response.
      starts: First slow row of workers.
      num_tests: Number of tests in the report.
    """
    ends = {}
    for start in set(starts.values()):
        rest = logs[start:]
        is_tested = np.isfinite(rest).sum(axis=0) >= LEAST_RESPONSES
        if not is_tested.any():
            continue
        change = likeliest_change(rest)
        scale = correlation_scales(change.residuals, is_tested)
        p_values = np.where(is_tested, jump_p_values(change, scale), 1) * num_tests
        is_changed = p_values < FALSE_ALARMS
        kinds = kinds_of_changes(rest, change.place, is_changed, is_tested)
        for worker, kind in kinds.items():
            if kind == "until" and starts.get(worker) == start:
                ends[worker] = int(start + change.place[worker])
    return ends


def _name_of_change(before: float, after: float) -> str:
    """Returns the name of a change of the log-slowdown of a worker, or ""."""
    if after > MARGIN and before < _SHARE_BEFORE * after:
        return "since"
    if after < -MARGIN and before > _SHARE_BEFORE * after:
        return "fast since"
    if before > MARGIN and after < min(MARGIN, _SHARE_BEFORE * before):
        return "until"
    if before < -MARGIN and after > max(-MARGIN, _SHARE_BEFORE * before):
        return "fast until"
    return ""


def others_became_faster(
    logs: np.ndarray, log_references: np.ndarray, start: int
) -> bool:
    """Returns whether a worker is slow since a change because others became faster.

    Its own times did not get longer, and the times of the median worker got shorter by
    more than their usual deviation.

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
    is_spell_here = direction * (logs - np.nanmedian(logs) + jump / 2) > 0
    is_spell_here = is_spell_here[~np.isnan(logs)]
    # Noise may interrupt a spell for a round.
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
    # Spells at the beginning and at the end look like changes.
    return bool(p_value > FALSE_ALARMS / 2)


def _longest_run(values: np.ndarray) -> int:
    """Returns the largest number of successive True values, bool (n,)."""
    ends = np.flatnonzero(~np.concatenate([[False], values, [False]]))
    return int(np.diff(ends).max() - 1)
