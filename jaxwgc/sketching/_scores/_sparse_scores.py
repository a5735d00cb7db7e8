"""Leverage scores of sparse matrices, a few rows of them dense at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching import _checks
from jaxwgc.sketching._derivatives import orthonormal_columns
from jaxwgc.sketching._gram import Gram, column_scale
from jaxwgc.sketching._row_blocks import block_size
from jaxwgc.sketching._scores._gram_scores import at_most_one, gram_scores

# Rows, columns and values.
Entries = tuple[jax.Array, jax.Array, jax.Array]


def sparse_leverage_scores(
    matrix: Any, rcond: jax.typing.ArrayLike | None
) -> jax.Array:
    """Returns `leverage_scores` of a BCOO matrix, by `"gram"`."""
    data = _checks.sparse_entries("matrix", matrix)
    data, rcond = _checks.with_cutoff(data, rcond, shape=matrix.shape)
    return _sparse_scores(
        matrix.indices, data, rcond, matrix.shape, matrix.indices_sorted
    )


@functools.partial(jax.jit, static_argnames=("shape", "is_sorted"))
def _sparse_scores(
    indices: jax.Array,
    data: jax.Array,
    rcond: jax.Array,
    shape: tuple[int, int],
    is_sorted: bool,
) -> jax.Array:
    row, column = indices.T
    entries = row, column, data
    rows = SparseRows(entries, shape, is_sorted)
    num_rows, num_columns = shape
    if num_rows >= num_columns:
        return gram_scores(Gram.equilibrated(rows), rcond)
    finite, scale = column_scale(rows)
    norms = jnp.sqrt(rows.sum(lambda block: jnp.sum((block * scale) ** 2, axis=0)))
    finite &= jnp.isfinite(norms).all()
    # Out of bounds, any unit will do.
    data = data * scale.at[column].get(mode="clip")
    data = data * inverse_power_of_two(norms).at[column].get(mode="clip")
    # Xᵀ = U R with orthonormal columns in U: the columns of X span those of Rᵀ, which
    # is square.
    tall = SparseRows((column, row, data), (num_columns, num_rows), is_sorted=False)
    # Not equilibrated again, since these are the rows of X.
    gram = Gram.plain(tall)
    square = gram.refined(*gram.decomposed()).factor().T
    left, singular_values, _ = jnp.linalg.svd(square)
    is_kept = singular_values > rcond * singular_values[0]
    left = jnp.where(is_kept, left, 0)
    # X Xᵀ has the same columns' span: for derivatives.
    inverse = left / jnp.where(is_kept, singular_values, 1) ** 2
    left, _ = orthonormal_columns(gram.matrix, left, inverse, left)
    scores = jnp.sum(left**2, axis=1)
    return jnp.where(finite, at_most_one(scores), jnp.nan)


class SparseRows:
    """The rows of a sparse matrix given by its entries; see `Rows`.

    Entries out of bounds, with which JAX fills up, are dropped, and those in one place
    add up. The memory is that of the entries, sorted, and of one block of rows.
    """

    def __init__(self, entries: Entries, shape: tuple[int, int], is_sorted: bool):
        row, column, data = entries
        self.num_rows, self.num_columns = shape
        self.dtype = data.dtype
        self._size = block_size(*shape)
        self._num_blocks = -(-self.num_rows // self._size)
        # As unsigned, so that negative ones are out of bounds as well.
        row, column = row.astype(jnp.uint32), column.astype(jnp.uint32)
        if not is_sorted:
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
