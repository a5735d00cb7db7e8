"""Decoded gradients from partial gradients, without messages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _flat_vectors, _validation
from jaxwgc._arrays import product
from jaxwgc._some_masks import any_under_vmap
from jaxwgc.coding._block_weights import effective, is_lossy, leakage, unmixed

# Leakage in machine epsilons of the weight of a part, up to which it is dropped as
# rounding if no part exceeds it. Larger leakage also occurs in rounds that decode.
_ROUNDED_LEAKAGE = 100


def _mixes(blocks, target):
    """Returns whether blocks leak into each other by more than rounding."""
    most = _ROUNDED_LEAKAGE * jnp.finfo(blocks.dtype).eps * jnp.abs(target)
    leaks = jnp.abs(leakage(blocks)) > most[:, None]
    return is_lossy(blocks, target) | jnp.any(leaks)


@jax.jit
def collapse_leaves(blocks: jax.Array, target: jax.Array, partial_gradients: Any):
    """Computes the decoded gradient from partial gradients.

    In a round that decodes, every block of the gradient is the sum of partial gradients
    with the effective weights. In other rounds, packed blocks leak into each other, and
    the gradient is the one of the messages, with block weights. Entries that are zero
    in every partial gradient stay zero in a round that decodes, even if it decodes with
    a residual.

    Sums are computed in at least float32. A part of weight zero may hold NaN: no worker
    has responded for it.

    Args:
      blocks: From `block_weights`, (num_blocks, num_parts, num_blocks).
      target: Target of decoding, (num_parts,).
      partial_gradients: Pytree with leaves (num_parts, ...).
    """
    leaves, structure = jax.tree.flatten(partial_gradients)
    wide = [_arrays.promoted(leaf) for leaf in leaves]
    weights = effective(blocks)
    collapsed = []
    is_rare = jnp.zeros((), bool)
    for leaf in wide:
        rows = leaf.reshape(len(leaf), -1)
        total = product(weights.astype(leaf.dtype), rows).reshape(leaf.shape[1:])
        collapsed.append(total)
        is_rare |= ~jnp.isfinite(total).all()
    num_blocks = blocks.shape[-1]
    if num_blocks > 1:
        mixes = _mixes(blocks, target)
        used = jnp.where(mixes, blocks, unmixed(weights, num_blocks))
        is_rare |= mixes
    else:
        used = blocks

    def by_blocks():
        # Rows are selected only here, because selecting copies all rows, which takes
        # longer than the sum.
        is_used = jnp.any(used != 0, axis=(0, 2))
        rows = _flat_vectors.ravel(wide, num_batch_axes=1)
        rows = jnp.where(is_used[:, None], rows, 0)
        rows = _flat_vectors.blocks(rows, num_blocks)
        rows = rows.reshape(-1, rows.shape[-1])
        matrix = used.reshape(num_blocks, -1).astype(rows.dtype)
        own = _flat_vectors.ravel(collapsed)
        flat = product(matrix, rows).ravel()[: own.size]
        is_kept = is_lossy(blocks, target) | (own != 0)
        return _flat_vectors.unravel(jnp.where(is_kept, flat, 0), collapsed)

    is_rare = any_under_vmap(is_rare)
    collapsed = jax.lax.cond(is_rare, by_blocks, lambda: collapsed)
    dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
    cast = [leaf.astype(dtype) for leaf, dtype in zip(collapsed, dtypes, strict=True)]
    return jax.tree.unflatten(structure, cast)


def collapse_function(
    blocks: jax.Array,
    target: jax.Array,
    sums: Callable[[jax.Array], Any],
    num_segments: int,
) -> Any:
    """Computes the decoded gradient from weighted sums, as `collapse_leaves` does.

    Args:
      blocks: See `collapse_leaves`.
      target: See `collapse_leaves`.
      sums: Function of real weights c (num_parts,) that returns the pytree sum over j
        of cⱼ gⱼ.
      num_segments: Number of segments of the code.
    """
    collapsed = sums(effective(blocks))
    num_blocks = blocks.shape[-1]
    if num_blocks == 1:
        return collapsed
    mixes = _mixes(blocks, target)
    leaks = jnp.where(mixes, leakage(blocks), 0)
    # The two halves of a segment have equal weights, so that one segment leaks only
    # between its halves.
    pairs = [
        (into, block)
        for into in range(num_blocks)
        for block in range(num_blocks)
        if into != block or num_segments > 1
    ]
    gaining, lost = np.array(pairs).T

    def with_leaks():
        leaked = jax.vmap(sums)(leaks[gaining, :, lost])
        rows = _flat_vectors.ravel(leaked, num_batch_axes=1)
        rows = _flat_vectors.blocks(rows, num_blocks)[np.arange(len(lost)), lost]
        gained = jax.ops.segment_sum(rows, gaining, num_blocks)
        own = _flat_vectors.ravel(collapsed)
        is_moved = is_lossy(blocks, target) | (own != 0)
        gained = jnp.where(is_moved, gained.ravel()[: own.size], 0)
        return _flat_vectors.unravel(own + gained, collapsed)

    mixes = any_under_vmap(mixes)
    if not _validation.is_traced(mixes):
        # Outside of jit, lax.cond would compile its branches, which are new functions,
        # at every call.
        return with_leaks() if mixes else collapsed
    return jax.lax.cond(mixes, with_leaks, lambda: collapsed)
