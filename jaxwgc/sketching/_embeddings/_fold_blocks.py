"""Accumulation of a total over blocks of rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax


def fold_blocks(
    add: Callable[[Any, Any, int], Any], total: Any, num_rows: int, size: int
) -> Any:
    """Accumulates a total by `add(index, total, number of rows)` over all blocks."""
    num_blocks, num_left = divmod(num_rows, size)
    start = np.int32(0)
    end = np.int32(num_blocks)
    if num_blocks == 1:
        total = add(start, total, size)
    elif num_blocks:
        total = lax.fori_loop(start, end, lambda i, total: add(i, total, size), total)
    return add(end, total, num_left) if num_left else total
