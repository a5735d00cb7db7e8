"""Inputs of a straggler report: arrays or DataFrames, waits, and steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxwgc import traces
from jaxwgc._common import validation
from jaxwgc.reports._levels import LEAST_RESPONSES
from jaxwgc.traces import as_seconds, measured_times


class ReportTimes(NamedTuple):
    """Times (rounds, workers), with names of workers and steps if they are known."""

    times: Any
    workers: Sequence[str] | None
    steps: Sequence[int] | np.ndarray | None


def aligned_tables(times: Any, waits: Any) -> tuple[traces.WorkerTimes, np.ndarray]:
    """Returns times and waits of DataFrames with equal steps.

    Raises:
      ValueError: If they have other workers or other steps.
    """
    busy = traces.times_of_frame(times)
    idle = traces.times_of_frame(waits, waits=True)
    if set(busy.workers) != set(idle.workers):
        raise ValueError(
            "waits must be of the workers of times; got "
            f"{', '.join(idle.workers)} and {', '.join(busy.workers)}"
        )
    if not np.array_equal(busy.steps, idle.steps):
        raise ValueError(
            "waits must be of the steps of times; their steps, or the indices of their "
            "rows, differ"
        )
    order = [idle.workers.index(worker) for worker in busy.workers]
    return busy, idle.times[:, order]


def report_times(
    table: Any,
    names: Sequence[str] | None,
    steps: Sequence[int] | np.ndarray | None,
    waits: bool,
) -> ReportTimes:
    """Returns the array, the names and the steps of a table.

    A DataFrame has names, and may have steps. Arguments replace both.
    """
    if not traces.is_frame(table):
        return ReportTimes(table, names, steps)
    frame = traces.times_of_frame(table, waits)
    if names is None:
        names = frame.workers
    if steps is None and frame.has_steps:
        steps = frame.steps
    return ReportTimes(frame.times, names, steps)


def without_waits(times: Any, waits: Any) -> np.ndarray:
    """Returns times (rounds, workers) before workers wait, NaN for no response."""
    table = measured_times(times, least_rounds=2)
    waits = waiting_times(waits)
    if waits.shape != table.shape:
        raise ValueError(
            f"waits must have the shape of times, {table.shape}; got {waits.shape}"
        )
    busy = np.where(np.isfinite(table), table, np.nan) - waits
    if np.any(busy <= 0):
        place = tuple(np.argwhere(busy <= 0)[0].tolist())
        raise ValueError(
            "waits must be shorter than times, which include them; got a wait of "
            f"{waits[place]} in a time of {table[place]} at {list(place)}"
        )
    return busy


def waiting_times(waits: Any) -> np.ndarray:
    """Checks waiting times (rounds, workers), and converts them to float64."""
    table = as_seconds("waits", waits)
    if table.ndim != 2 or len(table) < 2 or not table.size:
        raise ValueError(
            "waits must have shape (rounds, workers), with at least 2 rounds; got "
            f"{table.shape}"
        )
    if np.any(table < 0) or np.any(np.isinf(table)):
        place = tuple(np.argwhere((table < 0) | np.isinf(table))[0].tolist())
        raise ValueError(
            "waits must be finite and at least 0, and NaN for a worker that did not "
            f"take part; got {table[place]} at {list(place)}"
        )
    return table


def numbers_of_rounds(
    steps: Sequence[int] | np.ndarray | None, num_rounds: int
) -> np.ndarray:
    """Returns the steps of rounds, or 0, 1, ..., int (rounds,).

    Raises:
      ValueError: If there is another number of steps, or they do not increase.
      TypeError: If they are no integers.
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
            "steps must increase from round to round; got a step that is not above the "
            "one before. Leave steps out to number the rounds from 0"
        )
    return numbers.astype(np.int64)


def check_rounds_are_shared(
    argument: str, table: np.ndarray, names: np.ndarray
) -> None:
    """Raises ValueError if groups of workers take turns, so that they share no round.

    Each worker of a log may count its own steps. A group that follows another one, as
    if its workers were replaced, is no such case.

    Args:
      argument: Name of the table.
      table: (rounds, workers), NaN for no response, with a response in each round.
      names: Names of workers, str (workers,).
    """
    is_response = ~np.isnan(table)
    first_of_group = _first_of_groups(is_response)
    # All workers of a round are of one group.
    group_of_round = first_of_group[is_response.argmax(axis=1)]
    groups, num_rounds = np.unique(group_of_round, return_counts=True)
    # Few rounds may have few responses by chance.
    groups = groups[num_rounds >= LEAST_RESPONSES]
    turns = group_of_round[np.isin(group_of_round, groups)]
    num_changes = np.count_nonzero(np.diff(turns))
    if len(groups) < 2 or num_changes < len(groups):
        return
    one, other = names[groups[:2]]
    raise ValueError(
        f"{argument} must have several workers in each round; got {len(groups)} groups "
        f"of workers that respond in turns, so that no round compares worker {one} "
        f"with worker {other}. If each worker counts its own steps, number the times "
        "of each from 0, with pandas by table['step'] = table.groupby('worker')."
        "cumcount() for a row per time, or table.apply(lambda column: column.dropna()."
        "reset_index(drop=True)) for a column per worker"
    )


def _first_of_groups(is_response: np.ndarray) -> np.ndarray:
    """Returns the first worker of the group of each worker, int (workers,).

    Workers that respond in one round are of one group.

    Args:
      is_response: Whether there is a response, bool (rounds, workers).
    """
    responses = is_response.astype(np.float32)
    is_together = responses.T @ responses > 0
    while True:
        # Workers of which both are together with a third one.
        links = is_together.astype(np.float32)
        is_linked = links @ links > 0
        if np.array_equal(is_linked, is_together):
            return is_together.argmax(axis=1)
        is_together = is_linked
