"""Trace of the seconds that workers took, one row per round."""

from collections.abc import Sequence

import numpy as np


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

    As many of the next ones as there are NaNs, and the first ones after the last. The
    length of a run depends on the seconds before it. Repeated in its place, these would
    make slow responses more frequent than they are.
    """
    table = np.array(rows)
    for worker in range(table.shape[1]):
        seconds = table[:, worker].ravel()
        is_gap = np.isnan(seconds)
        is_finite = np.isfinite(seconds)
        found = seconds[is_finite]
        num_gaps = is_gap.cumsum()
        in_run = num_gaps - np.maximum.accumulate(np.where(is_gap, 0, num_gaps))
        if len(found):
            behind = (is_finite.cumsum() + in_run - 1)[is_gap]
            seconds[is_gap] = found[behind % len(found)]
        table[:, worker] = seconds.reshape(table[:, worker].shape)
    return table
