"""Trace of the seconds that workers took, one row per round."""

from collections.abc import Sequence

import numpy as np

from jaxwgc.traces import missing_at_end


def mark_lost(rows: Sequence[np.ndarray], worker: int) -> None:
    """Writes infinity for a lost worker in all rows since its last response."""
    for row in reversed(rows):
        is_gap = np.isnan(row[worker])
        if row is rows[-1] or is_gap.all():
            row[worker] = np.where(is_gap, np.inf, row[worker])
        if not is_gap.all():
            break


def filled(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the trace, with runs of NaNs replaced by the worker's next seconds.

    A run of m NaNs becomes the next m seconds of the worker. After the last seconds,
    the first ones follow. Seconds before a run are not repeated: a slow response causes
    a long run, so slow responses would become more frequent than they are.

    NaNs after the last response of a worker stay if the worker has stopped responding.
    Otherwise it is only busy at the end of the trace: see `missing_at_end`.
    """
    table = np.array(rows)
    is_response = np.isfinite(table).reshape(*table.shape[:2], -1).any(axis=2)
    # Any worker may be busy at the end of a round, so the last round does not count.
    end = missing_at_end(is_response[: max(len(table) - 1, 1)])
    has_stopped = end.has_stopped & ~is_response[-1]
    for worker in range(table.shape[1]):
        num_rounds = end.start[worker] if has_stopped[worker] else len(table)
        rows_of_worker = table[:num_rounds, worker]
        seconds = rows_of_worker.ravel()
        measured = seconds[np.isfinite(seconds)]
        if not len(measured):
            continue
        is_gap = np.isnan(seconds)
        num_measured_before = np.isfinite(seconds).cumsum()
        num_gaps = is_gap.cumsum()
        num_gaps_before_run = np.maximum.accumulate(np.where(is_gap, 0, num_gaps))
        # Position of each NaN in its run, from 0.
        place_in_run = num_gaps - num_gaps_before_run - 1
        source = num_measured_before + place_in_run
        seconds[is_gap] = measured[source[is_gap] % len(measured)]
        table[:num_rounds, worker] = seconds.reshape(rows_of_worker.shape)
    return table
