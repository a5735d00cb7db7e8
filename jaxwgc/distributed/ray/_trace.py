"""Rows of `RayCluster.trace`, one for each round: seconds by worker, or by part.

NaN stands for what a worker has not finished: it was busy with an earlier round, left
the part to others, or is still at it.
"""

from collections.abc import Sequence

import numpy as np


def mark_lost(rows: Sequence[np.ndarray], worker: int) -> None:
    """Writes infinity for what a lost worker has not finished since it last did."""
    for row in reversed(rows):
        is_gap = np.isnan(row[worker])
        if row is rows[-1] or is_gap.all():
            row[worker] = np.where(is_gap, np.inf, row[worker])
        if not is_gap.all():
            break


def filled(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the trace: the worker's next seconds replace each run of NaNs.

    As many of the next ones as there are NaNs, and the first ones after the last. The
    length of a run depends on the seconds before it. Repeated in its place, these would
    make slow responses more frequent than they are.
    """
    table = np.array(rows)
    for worker in range(table.shape[1]):
        seconds = table[:, worker].ravel()
        is_gap, is_finite = np.isnan(seconds), np.isfinite(seconds)
        found, num_gaps = seconds[is_finite], is_gap.cumsum()
        in_run = num_gaps - np.maximum.accumulate(np.where(is_gap, 0, num_gaps))
        if len(found):
            behind = (is_finite.cumsum() + in_run - 1)[is_gap]
            seconds[is_gap] = found[behind % len(found)]
        table[:, worker] = seconds.reshape(table[:, worker].shape)
    return table
