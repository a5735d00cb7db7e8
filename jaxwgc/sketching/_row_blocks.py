"""Sums and values over the rows of a matrix, taken in blocks, wherever the rows are."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc._arrays import is_sparse


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


class SparseRows:
    """The rows of a BCOO with two axes.

    Entries out of bounds, with which JAX fills up, are dropped, and those in one place
    add up. The memory is that of the entries, sorted, and of one block of rows.
    """

    def __init__(self, matrix: Any):
        (row, column), data = matrix.indices.T, matrix.data
        self.num_rows, self.num_columns = matrix.shape
        self.dtype = data.dtype
        self._size = block_size(*matrix.shape)
        self._num_blocks = -(-self.num_rows // self._size)
        # As unsigned, so that negative ones are out of bounds as well.
        row, column = row.astype(jnp.uint32), column.astype(jnp.uint32)
        if not matrix.indices_sorted:
            row, column, data = lax.sort((row, column, data), num_keys=1)
        # Entries are taken in windows of one size, about as many as a block has.
        self._window = max(256, -(-data.shape[0] // self._num_blocks))
        width = (0, self._window)
        self._row = jnp.pad(row, width, constant_values=np.uint32(2**32 - 1))
        self._column = jnp.pad(column, width)
        self._data = jnp.pad(data, width)
        firsts = self._size * jnp.arange(self._num_blocks + 1, dtype=jnp.uint32)
        self._starts = jnp.searchsorted(row, firsts)

    def largest(self) -> jax.Array:
        inside = self._row < self.num_rows
        values = jnp.abs(lax.stop_gradient(self._data))
        values = jnp.where(inside, values, 0)
        largest = jnp.zeros(self.num_columns, self.dtype)
        return largest.at[self._column].max(values, mode="drop")

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + function(self._block(i))

        return lax.fori_loop(1, self._num_blocks, add, function(self._block(0)))

    def map(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        values = lax.map(
            lambda i: function(self._block(i)), jnp.arange(self._num_blocks)
        )
        return values.reshape(-1)[: self.num_rows]

    def _block(self, i: jax.typing.ArrayLike) -> jax.Array:
        """Returns rows i * size, ..., dense; zero rows at the end."""
        first = jnp.asarray(i * self._size, jnp.uint32)
        end = self._starts[i + 1]

        def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            start, block = carry
            row, column, data = (
                lax.dynamic_slice_in_dim(entries, start, self._window)
                for entries in (self._row, self._column, self._data)
            )
            # Those of later blocks fall out.
            row = jnp.where(row < first + self._size, row - first, self._size)
            block = block.at[row, column].add(data, mode="drop")
            return start + self._window, block

        block = jnp.zeros((self._size, self.num_columns), self.dtype)
        return lax.while_loop(
            lambda carry: carry[0] < end, add, (self._starts[i], block)
        )[1]


def rows_of(matrix: Any) -> Rows:
    """Returns the rows of an array or a BCOO."""
    return SparseRows(matrix) if is_sparse(matrix) else DenseRows(matrix)


class RidgedRows:
    """The rows of a matrix on top of those of √ridge I, which count in sums only.

    The columns of the two together may be multiplied by anything, so that units of the
    columns matter as little as without a ridge.
    """

    def __init__(self, rows: Rows, ridge: jax.Array):
        self.num_columns, self.dtype = rows.num_columns, rows.dtype
        self.map = rows.map
        self._rows, self._root = rows, jnp.sqrt(ridge)

    def largest(self) -> jax.Array:
        return jnp.maximum(self._rows.largest(), self._root)

    def sum(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        added = function(ridge_rows(self.num_columns, self._root))
        return self._rows.sum(function) + added


def ridge_rows(num_columns: int, root: jax.Array) -> jax.Array:
    """Returns `root` I, (p, p), to go below a matrix (N, p)."""
    return root * jnp.eye(num_columns, dtype=root.dtype)


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
