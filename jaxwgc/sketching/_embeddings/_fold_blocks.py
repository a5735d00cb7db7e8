"""Accumulation of a total over blocks of rows."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import numpy as np
from jax import Array, lax

T = TypeVar("T")
# The number of a block: a NumPy scalar, or an array inside a loop.
Index: TypeAlias = Array | np.int32


def fold_blocks(
    add: Callable[[Index, T, int], T], total: T, num_rows: int, size: int
) -> T:
    """Accumulates a total by `add(index, total, number of rows)` over all blocks."""
    num_blocks, num_left = divmod(num_rows, size)
    start = np.int32(0)
    end = np.int32(num_blocks)
    if num_blocks == 1:
        total = add(start, total, size)
    elif num_blocks:
        total = lax.fori_loop(start, end, lambda i, total: add(i, total, size), total)
    if num_left:
        total = add(end, total, num_left)
    return total
