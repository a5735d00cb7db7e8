"""Sums of the rows of dense matrices in buckets, fast on CPUs and on accelerators."""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.conversions import on_mesh_of
from jaxwgc.sketching._embeddings._fold_blocks import Index, fold_blocks

# Number of rows in one sequential sum. Longer sums are split, to keep rounding small.
_SUM_ROWS = 4096


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def bucket_sums(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds every row, times its signs, to one bucket per row of `buckets`."""
    by_rows = functools.partial(_row_by_row, num_buckets=num_buckets)
    at_once = functools.partial(_all_at_once, num_buckets=num_buckets)
    return lax.platform_dependent(arrays, buckets, signs, cpu=by_rows, default=at_once)


@bucket_sums.defjvp
def _bucket_sums_jvp(num_buckets, primals, tangents):
    # The sums are linear in the arrays. Derivatives use `_all_at_once`, which
    # transposes to a gather.
    arrays, buckets, signs = primals
    change = _all_at_once(tangents[0], buckets, signs, num_buckets)
    return bucket_sums(arrays, buckets, signs, num_buckets), change


def _row_by_row(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds wide rows to buckets in place, on CPUs 3 to 10 times as fast as a scatter.

    Sums are taken in two levels, which keeps rounding small for any number of rows.
    """
    size = max(_SUM_ROWS, num_buckets)
    # On a mesh with explicit axes, JAX rejects updates of arrays that are on no mesh.
    zeros = [
        on_mesh_of(array, jnp.zeros((num_buckets, array.shape[1]), array.dtype))
        for array in arrays
    ]

    def add_block(index: Index, totals: list[Array], num_used: int) -> list[Array]:
        def add_row(step: Array, sums: list[Array]) -> list[Array]:
            # Steps go over all rows of the block once per row of `buckets`.
            copy = step // num_used
            i = index * size + step % num_used
            bucket = buckets[copy, i]
            sign = signs[copy, i]
            new_sums = []
            for array, total in zip(arrays, sums, strict=True):
                row = lax.dynamic_slice_in_dim(array, i, 1) * sign.astype(array.dtype)
                row += lax.dynamic_slice_in_dim(total, bucket, 1)
                total = lax.dynamic_update_slice_in_dim(total, row, bucket, 0)
                new_sums.append(total)
            return new_sums

        sums = lax.fori_loop(0, num_used * len(buckets), add_row, zeros)
        return jax.tree.map(jnp.add, totals, sums)

    return fold_blocks(add_block, zeros, len(arrays[0]), size)


def _all_at_once(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    def sums(array: Array) -> Array:
        total = jnp.zeros((num_buckets, array.shape[1]), array.dtype)
        for bucket, sign in zip(buckets, signs.astype(array.dtype), strict=True):
            total += jax.ops.segment_sum(array * sign[:, None], bucket, num_buckets)
        return total

    return [sums(array) for array in arrays]
