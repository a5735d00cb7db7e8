"""Sums and values over the rows of a matrix, taken in blocks, wherever the rows are."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax


class Rows(Protocol):
    """Access to a matrix by blocks of rows, never all of them at a time."""

    num_columns: int
    dtype: jnp.dtype

    def largest(self) -> jax.Array:
        """Returns bounds (p,) of absolute values in every column, up to a factor."""
        ...

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Returns the sum of `function` over blocks of rows; zero rows may be added."""
        ...

    def map(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Returns `function`, which gives one number a row, of all rows."""
        ...


class DenseRows:
    """The rows of an array."""

    def __init__(self, matrix: jax.Array):
        self.matrix = matrix
        self.num_columns = matrix.shape[1]
        self.dtype = matrix.dtype

    def largest(self) -> jax.Array:
        return jnp.abs(lax.stop_gradient(self.matrix)).max(axis=0)

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return sum_over_blocks(function, self.matrix)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        num_rows = self.matrix.shape[0]
        size = block_size(*self.matrix.shape)
        num_blocks = -(-num_rows // size)
        if num_blocks == 1:
            return function(self.matrix)

        def fill(i: jax.Array, values: jax.Array) -> jax.Array:
            # The last block starts early enough to be whole, and repeats some rows.
            start = jnp.minimum(i * size, num_rows - size)
            block = function(lax.dynamic_slice_in_dim(self.matrix, start, size))
            return lax.dynamic_update_slice_in_dim(values, block, start, 0)

        return lax.fori_loop(0, num_blocks, fill, jnp.zeros(num_rows, self.dtype))


class RidgedRows(DenseRows):
    """The rows of a matrix on top of those of √ridge I, which count in sums only.

    The columns of the two together may be multiplied by anything, so that units of the
    columns matter as little as without a ridge.
    """

    def __init__(self, matrix: jax.Array, ridge: jax.Array):
        super().__init__(matrix)
        self._root = jnp.sqrt(ridge)

    def largest(self) -> jax.Array:
        return jnp.maximum(super().largest(), self._root)

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return super().sum(function) + function(ridge_rows(self.matrix, self._root))


def ridge_rows(matrix: jax.Array, root: jax.Array) -> jax.Array:
    """Returns `root` I, (p, p), to go below a matrix (N, p)."""
    return root * jnp.eye(matrix.shape[1], dtype=matrix.dtype)


def sum_over_blocks(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Returns the sum of `function` over blocks of rows of all the arrays."""
    size = block_size(*arrays[0].shape)
    num_blocks, num_left = divmod(arrays[0].shape[0], size)
    if num_blocks == 1 and not num_left:
        return function(*arrays)

    def add(i: jax.Array, total: Any) -> Any:
        rows = (lax.dynamic_slice_in_dim(array, i * size, size) for array in arrays)
        return jax.tree.map(jnp.add, total, function(*rows))

    last = function(*(array[num_blocks * size :] for array in arrays))
    return lax.fori_loop(0, num_blocks, add, last)


def fold_blocks(
    add: Callable[[Any, Any, int], Any], total: Any, num_rows: int, size: int
) -> Any:
    """Runs `add(index, total, number of rows)` for one block after the other."""
    num_blocks, num_left = divmod(num_rows, size)
    if num_blocks == 1:
        total = add(jnp.int32(0), total, size)
    elif num_blocks:
        total = lax.fori_loop(
            0, num_blocks, lambda i, total: add(jnp.int32(i), total, size), total
        )
    return add(jnp.int32(num_blocks), total, num_left) if num_left else total


def block_size(num_rows: int, num_columns: int) -> int:
    """Returns the number of rows to take at a time."""
    # About 4 MiB in float64: a block and its product stay in a cache, and sums over
    # rows are taken in two levels, which keeps their rounding small.
    return min(num_rows, max(256, min(8192, 2**19 // num_columns)))
