"""Arguments of a report: times, waits, names and steps.

`is_after_barrier` recognises times that include the wait for the slowest worker.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc._common import validation
from jaxwgc.reports._statistics import LEAST_RESPONSES, sampled_rounds
from jaxwgc.traces._frames import hardly_share_rounds, is_frame, times_of_frame
from jaxwgc.traces._measured_times import as_seconds, measured_times

# Bounds on the range of the times in a round, over the longest time. If nearly all
# ranges are within the first bound, times look as after a barrier. Within the second
# bound, this is so only if no worker is last more often than others. Within the third
# bound, times must also differ far more between rounds than within rounds.
_RANGE_OF_JITTER = 0.02
_RANGE_IN_TURNS = 0.08
_RANGE_IN_UNEQUAL_ROUNDS = 0.12
# Share of the rounds with ranges within a bound. Stalls may exceed the bound in the
# other rounds. If they do in more rounds, there is no barrier.
_NEARLY_ALL = 0.95
# Ratio of the standard deviations of log-times, within rounds to between rounds, below
# which times differ far more between rounds.
_FAR_BELOW = 0.1
# Largest share of rounds in which one worker may be last by chance: _EQUAL_SHARES times
# an equal share, plus _NUM_STANDARD_ERRORS standard errors.
_EQUAL_SHARES = 1.5
_NUM_STANDARD_ERRORS = 4
_HOW_TO_NUMBER = (
    "If each worker counts its own steps, number its times from 0, with pandas "
    "by table['step'] = table.groupby('worker').cumcount() for a row per time, or "
    "table.apply(lambda column: column.dropna().reset_index(drop=True)) for a column "
    "per worker"
)


class Tables(NamedTuple):
    """Times and waits of workers, with names of workers and steps of rounds."""

    times: Any
    waits: Any
    names: Sequence[str] | None
    steps: Sequence[int] | np.ndarray | None


def tables_of(
    times: Any,
    waits: Any,
    names: Sequence[str] | None,
    steps: Sequence[int] | np.ndarray | None,
) -> Tables:
    """Converts arrays and DataFrames to times, waits, names and steps.

    A DataFrame has names, and may have steps. The arguments `names` and `steps` replace
    them.

    Raises:
      ValueError: If two DataFrames have different workers or steps, or `names` are the
        workers of a DataFrame in another order.
    """
    frame = None
    if is_frame(times):
        frame = times_of_frame(times, names=names)
        times = frame.times
    if is_frame(waits):
        idle = times_of_frame(waits, waits=True, names=names)
        waits = idle.times
        if frame is None:
            frame = idle
        elif set(frame.workers) != set(idle.workers):
            raise ValueError(
                "waits must have the workers of times, "
                f"{', '.join(frame.workers)}; got {', '.join(idle.workers)}"
            )
        elif not np.array_equal(frame.steps, idle.steps):
            raise ValueError(
                "waits must have the steps of times; got a DataFrame with other steps, "
                "or with other row indices"
            )
        else:
            waits = waits[:, [idle.workers.index(worker) for worker in frame.workers]]
    if frame is not None:
        if names is None:
            names = frame.workers
        elif list(names) != frame.workers and set(names) == set(frame.workers):
            raise ValueError(
                "names must be in the order of the workers in the DataFrame, "
                f"{', '.join(frame.workers)}; got {', '.join(names)}. Leave names out "
                "to use the names in the DataFrame"
            )
        if steps is None and frame.has_steps:
            steps = frame.steps
    return Tables(times=times, waits=waits, names=names, steps=steps)


def checked_times(times: Any, waits: Any) -> np.ndarray:
    """Checks times and subtracts waits; missing responses become NaN.

    Args:
      times: (rounds, workers), or (rounds, workers, parts).
      waits: Waits that the times include, (rounds, workers), or None.
    """
    table = measured_times(times, least_rounds=2)
    if waits is not None:
        waits = checked_waits(waits)
        if waits.shape != table.shape:
            raise ValueError(
                f"waits must have the shape of times, {table.shape}; got {waits.shape}"
            )
        busy = np.where(np.isfinite(table), table, np.nan) - waits
        if np.any(busy <= 0):
            place = tuple(np.argwhere(busy <= 0)[0].tolist())
            raise ValueError(
                "waits must be shorter than times, since times include waits; got a "
                f"wait of {waits[place]} in a time of {table[place]} at {list(place)}"
            )
        table = busy
    if table.ndim == 3:
        table = table.sum(axis=2)
    # The report keeps the times, so they are copied.
    return np.where(np.isfinite(table), table, np.nan)


def checked_waits(waits: Any) -> np.ndarray:
    """Converts waiting times to float64; raises ValueError if they are not valid."""
    table = as_seconds("waits", waits)
    if table.ndim != 2 or len(table) < 2 or not table.size:
        raise ValueError(
            "waits must have shape (rounds, workers), with at least 2 rounds; got "
            f"{table.shape}"
        )
    if np.any(table < 0) or np.any(np.isinf(table)):
        place = tuple(np.argwhere((table < 0) | np.isinf(table))[0].tolist())
        raise ValueError(
            "waits must be finite and at least 0, or NaN if a worker did not take "
            f"part; got {table[place]} at {list(place)}"
        )
    return table


def comparable_workers(
    names: Sequence[str] | None, table: np.ndarray, argument: str
) -> np.ndarray:
    """Returns the names of the workers; raises ValueError if no round compares them.

    Args:
      names: (workers,), or None for 0, 1, ….
      table: Times or waits, (rounds, workers), NaN for no response.
      argument: Name of the table.

    Raises:
      ValueError: If there are fewer than 2 workers, another number of names, hardly any
        round with several workers, or groups of workers that respond in alternate
        rounds. One group may follow another once, as if all workers were replaced.
    """
    num_workers = table.shape[1]
    if num_workers < 2:
        raise ValueError(f"{argument} must have at least 2 workers; got {table.shape}")
    numbered = range(num_workers) if names is None else names
    labels = np.array([str(name) for name in numbered])
    validation.check_shape("names", labels, "(num_workers,)", (num_workers,))
    is_response = ~np.isnan(table)
    is_response = is_response[is_response.any(axis=1)]
    if not len(is_response):
        noun = "response" if argument == "times" else "number"
        raise ValueError(f"{argument} must have at least one {noun}; got none")
    is_response = is_response[sampled_rounds(len(is_response))]
    if hardly_share_rounds(is_response):
        num_shared = np.count_nonzero(is_response.sum(axis=1) > 1)
        raise ValueError(
            f"{argument} must have several workers in each round; got {num_shared} of "
            f"{len(is_response)} rounds with at least 2. {_HOW_TO_NUMBER}"
        )
    # Workers that respond in the same round belong to the same group.
    group_of_round = _first_of_groups(is_response)[is_response.argmax(axis=1)]
    groups, num_rounds = np.unique(group_of_round, return_counts=True)
    # Groups in few rounds are left out, because they may be due to chance.
    groups = groups[num_rounds >= LEAST_RESPONSES]
    turns = group_of_round[np.isin(group_of_round, groups)]
    num_changes = np.count_nonzero(np.diff(turns))
    if len(groups) < 2 or num_changes < len(groups):
        return labels
    one, other = labels[groups[:2]]
    raise ValueError(
        f"{argument} must have several workers in each round; got {len(groups)} groups "
        f"of workers that respond in different rounds. No round compares worker {one} "
        f"with worker {other}. {_HOW_TO_NUMBER}"
    )


def _first_of_groups(is_response: np.ndarray) -> np.ndarray:
    """Returns the index of the first worker in the group of each worker.

    Workers belong to the same group if they respond in the same round.

    Args:
      is_response: Whether there is a response, bool (rounds, workers).
    """
    responses = is_response.astype(np.float32)
    is_together = responses.T @ responses > 0
    while True:
        # Two workers are connected if both have responded together with a third worker.
        links = is_together.astype(np.float32)
        is_linked = links @ links > 0
        if np.array_equal(is_linked, is_together):
            return is_together.argmax(axis=1)
        is_together = is_linked


def checked_steps(
    steps: Sequence[int] | np.ndarray | None, num_rounds: int
) -> np.ndarray:
    """Returns the step of each round, by default 0, 1, ….

    Raises:
      ValueError: If there are not `num_rounds` steps, or if steps do not increase.
      TypeError: If steps are not integers.
    """
    if steps is None:
        return np.arange(num_rounds)
    numbers = np.asarray(steps)
    validation.check_shape("steps", numbers, "(num_rounds,)", (num_rounds,))
    if np.any(numbers % 1 != 0):
        raise TypeError(
            "steps must be integers; got a fraction or NaN. Leave steps out to number "
            "the rounds from 0"
        )
    if np.any(np.diff(numbers) <= 0):
        raise ValueError(
            "steps must increase from round to round; got a step that is at most the "
            "previous step. Leave steps out to number the rounds from 0"
        )
    return numbers.astype(np.int64)


def is_after_barrier(times: np.ndarray, medians: np.ndarray) -> bool:
    """Returns whether times seem to include the wait for the slowest worker.

    Args:
      times: (rounds, workers), NaN for no response, with at least one response in each
        round.
      medians: Time of the median worker of each round, (rounds,).
    """
    # Rounds with one response are left out, because they compare no workers.
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
    """Returns whether no worker is last more often than chance explains."""
    num_rounds, num_workers = times.shape
    is_last = times == longest[:, None]
    shares = np.mean(is_last / is_last.sum(axis=1, keepdims=True), axis=0)
    equal_share = 1 / num_workers
    standard_error = np.sqrt(equal_share / num_rounds)
    margin = _NUM_STANDARD_ERRORS * standard_error
    return bool(shares.max() <= _EQUAL_SHARES * equal_share + margin)
