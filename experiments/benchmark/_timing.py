"""The timer of all sections."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def median_seconds(repeats: int, *functions: Callable[[], Any]) -> list[float]:
    """Median times of functions that are called in turn, after one call each."""
    for function in functions:
        jax.block_until_ready(function())
    times = np.empty((repeats, len(functions)))
    for row in times:
        for column, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function())
            row[column] = time.perf_counter() - start
    return np.median(times, axis=0).tolist()
