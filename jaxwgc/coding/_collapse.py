"""Decoded gradients from partial gradients, without messages."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from jaxwgc._common import arrays
from jaxwgc._common.arrays import product
from jaxwgc.coding import _flat_vectors
from jaxwgc.coding._block_weights import Leaks
from jaxwgc.decoders import any_under_vmap


@functools.partial(jax.jit, static_argnames="num_segments")
def collapse_leaves(
    weights: jax.Array,
    leaks: Leaks | None,
    num_segments: int,
    partial_gradients: Any,
) -> Any:
    """Computes the decoded gradient from partial gradients, see `collapse`.

    Sums are computed in at least float32. A part of weight zero may hold NaN: no worker
    has responded for it.

    Args:
      weights: Effective weights, (num_parts,).
      leaks: Leaks between blocks; None if the gradient is one block.
      num_segments: Number of segments of the code.
      partial_gradients: Pytree with leaves (num_parts, ...).
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(partial_gradients)
    if not paths:
        raise ValueError(
            f"partial_gradients must have at least one array; got {partial_gradients}"
        )
    num_parts = len(weights)
    for path, leaf in paths:
        if leaf.shape[:1] != (num_parts,):
            raise ValueError(
                f"partial_gradients{jax.tree_util.keystr(path)} must have a leading "
                f"axis of num_parts = {num_parts}; got shape {leaf.shape}"
            )

    def sums(weights, is_used=None):
        totals = []
        for _, leaf in paths:
            rows = arrays.promoted(leaf).reshape(num_parts, -1)
            if is_used is not None:
                rows = jnp.where(is_used[:, None], rows, 0)
            total = product(weights.astype(rows.dtype), rows)
            total = total.reshape(*weights.shape[:-1], *leaf.shape[1:])
            totals.append(total.astype(leaf.dtype))
        return jax.tree.unflatten(structure, totals)

    def masked_sums(weights):
        # A selection copies all rows, which takes longer than the sum. Rows are
        # therefore selected only if necessary.
        is_used = jnp.any(weights.reshape(-1, num_parts) != 0, axis=0)
        return sums(weights, is_used)

    return collapse(weights, leaks, num_segments, sums, masked_sums)


def collapse(
    weights: jax.Array,
    leaks: Leaks | None,
    num_segments: int,
    sums: Callable[[jax.Array], Any],
    masked_sums: Callable[[jax.Array], Any] | None = None,
) -> Any:
    """Computes the decoded gradient from weighted sums of partial gradients.

    In a round that decodes, every block of the gradient is the sum of partial gradients
    with the effective weights. In other rounds, blocks that messages pack leak into
    each other, and these leaks are added here, too. In a round that decodes with a
    residual, they leave entries that are zero in every partial gradient.

    Args:
      weights: Effective weights, (num_parts,).
      leaks: Leaks between blocks; None if the gradient is one block.
      num_segments: Number of segments of the code.
      sums: Function of real weights c (num_parts,) that returns the pytree sum over j
        of cⱼ gⱼ.
      masked_sums: Function of weights (..., num_parts) that returns these sums with the
        same leading axes, without parts of weight zero. It replaces sums that are not
        finite.
    """
    collapsed = sums(weights)
    is_rare = jnp.zeros((), bool) if leaks is None else leaks.is_mixed
    if masked_sums is not None:
        for leaf in jax.tree.leaves(collapsed):
            is_rare |= ~jnp.isfinite(leaf).all()
    elif leaks is None:
        return collapsed

    def compute_exactly():
        gradient = collapsed if masked_sums is None else masked_sums(weights)
        if leaks is None:
            return gradient
        sums_of_rows = masked_sums or jax.vmap(sums)
        return _with_leaks(gradient, leaks, num_segments, sums_of_rows)

    is_rare = any_under_vmap(is_rare)
    if not isinstance(is_rare, jax.core.Tracer):
        # Branches are new functions. Outside of jit, lax.cond would compile them at
        # every call.
        return compute_exactly() if is_rare else collapsed
    return jax.lax.cond(is_rare, compute_exactly, lambda: collapsed)


def _with_leaks(
    gradient: Any,
    leaks: Leaks,
    num_segments: int,
    sums_of_rows: Callable[[jax.Array], Any],
) -> Any:
    """Adds to each block of a gradient what leaks from each block of the parts.

    Args:
      gradient: Sum of partial gradients with the effective weights.
      leaks: Leaks between blocks.
      num_segments: Number of segments of the code.
      sums_of_rows: Function of weights (rows, num_parts) that returns the weighted sums
        of partial gradients, with rows as the leading axis.
    """
    weights = jnp.where(leaks.is_mixed, leaks.weights, 0)
    num_blocks = weights.shape[-1]
    halves = num_blocks // num_segments
    # The leaks of second halves are i times those of first halves. A single segment
    # leaks only from one half to the other.
    first = 1 if num_segments == 1 else 0
    rows = jnp.moveaxis(weights[first:, :, ::halves], 1, -1)
    num_into = len(rows)
    sums = sums_of_rows(rows.reshape(-1, rows.shape[-1]))
    sums = _flat_vectors.blocks(_flat_vectors.ravel(sums, 1), num_blocks)
    sums = sums.reshape(num_into, num_segments, num_segments, halves, sums.shape[-1])
    # For each segment v, block p gains segment v of the sum with weights (p, :, v).
    gained = jnp.trace(sums, axis1=1, axis2=2)
    gained = jnp.pad(gained, [(first, 0), (0, 0), (0, 0)])
    if halves == 2:
        second = gained[:, 1].reshape(num_segments, 2, gained.shape[-1])
        turned = jnp.stack([-second[:, 1], second[:, 0]], axis=1)
        gained = gained[:, 0] + turned.reshape(num_blocks, gained.shape[-1])
    flat = _flat_vectors.ravel(gradient)
    # If a round decodes, entries that are zero in the gradient stay zero.
    is_moved = leaks.is_lossy | (flat != 0)
    gained = jnp.where(is_moved, gained.ravel()[: flat.size], 0)
    return _flat_vectors.unravel(flat + gained, gradient)
