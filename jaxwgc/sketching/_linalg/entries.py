"""Functions of the entries of sparse matrices: sums in buckets, and row samples."""

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO


class Entries(NamedTuple):
    """Entries of a sparse matrix: row indices, column indices and values."""

    row: Array
    column: Array
    data: Array


def entries_of_bcoo(matrix: "BCOO") -> Entries:
    """Returns the entries of a BCOO, padding included."""
    # Negative indices become large unsigned ones, and so count as out of bounds.
    row, column = matrix.indices.T.astype(jnp.uint32)
    return Entries(row, column, matrix.data)


def bucket_entries(
    entries: Entries, buckets: Array, factors: Array, shape: tuple[int, int]
) -> Array:
    """Sums, for each bucket, the rows assigned to the bucket, each times its factor.

    The result, (num_buckets, p), has shape `shape`. `buckets` and `factors`, (k, N),
    assign each row to k buckets. Entries are dropped if they or their buckets are out
    of bounds.
    """
    row, column, data = entries
    total = jnp.zeros(shape, data.dtype)
    for bucket, factor in zip(buckets, factors.astype(data.dtype), strict=True):
        factor = factor.at[row].get(mode="fill", fill_value=0)
        bucket = bucket.at[row].get(mode="fill", fill_value=shape[0])
        total = total.at[bucket, column].add(data * factor, mode="drop")
    return total


def slots_of_rows(indices: Array, scale: Array, num_rows: int) -> Array:
    """Returns the position of each row in a sample, or num_slots if it is not drawn.

    Positions in the sample are called slots.

    Args:
      indices: The row of each slot, (num_slots,).
      scale: The factor of each slot, (num_slots,), 0 for unused slots.
      num_rows: N.
    """
    num_slots = indices.shape[0]
    # Unused slots get the row num_rows, which is out of bounds and dropped.
    used_indices = jnp.where(scale != 0, indices, num_rows)
    slots = jnp.arange(num_slots, dtype=jnp.int32)
    none = jnp.full(num_rows, num_slots, jnp.int32)
    return none.at[used_indices].set(slots, mode="drop")


def sampled_bcoo(matrix: "BCOO", indices: Array, scale: Array) -> "BCOO":
    """Returns the sampled rows of a sparse matrix, each times its factor.

    The number of stored entries does not depend on the rows that were drawn. Entries
    that are not drawn become padding, out of bounds.

    Args:
      matrix: X, (N, p).
      indices: The row of each slot, (num_slots,).
      scale: The factor of each slot, (num_slots,), 0 for unused slots.
    """
    from jax.experimental import sparse

    num_slots = indices.shape[0]
    num_rows, num_columns = matrix.shape
    row, column, data = entries_of_bcoo(matrix)
    slot_of_row = slots_of_rows(indices, scale, num_rows)
    slot = slot_of_row.at[row].get(mode="fill", fill_value=num_slots)
    # The number of stored entries must be static for `jax.jit`. Entries of drawn rows
    # come first, and padding follows.
    num_entries = matrix.nse
    if matrix.unique_indices:
        num_entries = min(num_entries, num_slots * num_columns)
    is_drawn = (slot < num_slots) & (column < num_columns)
    (kept,) = jnp.nonzero(is_drawn, size=num_entries, fill_value=matrix.nse)
    slot = slot.at[kept].get(mode="fill", fill_value=num_slots)
    column = column.at[kept].get(mode="fill", fill_value=num_columns)
    data = data.at[kept].get(mode="fill", fill_value=0)
    factors = scale.astype(data.dtype)
    data = data * factors.at[slot].get(mode="fill", fill_value=0)
    # Invalid probabilities make `scale` NaN. Entries then become NaN, with indices in
    # bounds, so that none of them is dropped as padding.
    is_valid = jnp.all(jnp.isfinite(scale))
    place = jnp.arange(num_entries, dtype=slot.dtype)
    slot = jnp.where(is_valid, slot, place % num_slots)
    column = jnp.where(is_valid, column.astype(slot.dtype), place % num_columns)
    return sparse.BCOO(
        (jnp.where(is_valid, data, jnp.nan), jnp.stack([slot, column], axis=1)),
        shape=(num_slots, num_columns),
        unique_indices=matrix.unique_indices,
    )
