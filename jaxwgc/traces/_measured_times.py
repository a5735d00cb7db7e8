"""Checks measured times and converts them to float64 seconds."""

from typing import Any

import numpy as np

from jaxwgc.traces._frames import is_frame, times_of_frame


def as_seconds(name: str, values: Any) -> np.ndarray:
    """Converts an array of real numbers or timedelta64 to seconds in float64."""
    if hasattr(values, "to_frame"):
        raise TypeError(
            f"{name} must be an array or a DataFrame; got a Series. Pass "
            "series.to_frame('seconds') if its index has steps and workers"
        )
    try:
        seconds = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name} must have equally many rounds at each load, and equally many "
            f"workers in each round; {error}"
        ) from error
    if seconds.dtype.kind == "m":
        seconds = seconds / np.timedelta64(1, "s")
    if seconds.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers; got {seconds.dtype}")
    return seconds.astype(np.float64, copy=False)


def measured_times(times: Any, least_rounds: int = 1) -> np.ndarray:
    """Checks measured times and converts them to float64; NaN becomes infinity.

    Returns a copy only if necessary. A DataFrame becomes an array (rounds, workers),
    and timedelta64 becomes seconds.
    """
    if is_frame(times):
        times = times_of_frame(times).times
    table = as_seconds("times", times)
    if table.ndim not in (2, 3) or len(table) < least_rounds or table.size == 0:
        raise ValueError(
            "times must have shape (rounds, workers) or (rounds, workers, parts), not "
            f"empty and with at least {least_rounds} rounds; got {table.shape}"
        )
    if np.isnan(table).any():
        table = np.where(np.isnan(table), np.inf, table)
    if np.any(table <= 0):
        place = np.argwhere(table <= 0)[0].tolist()
        raise ValueError(
            "times must be positive, or NaN or infinity if a worker did not respond; "
            f"got {table[*place]} at {place}"
        )
    return table
