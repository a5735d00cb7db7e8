"""Collapsed gradient: the decoded gradient, computed without messages.

Messages, stragglers and decoding together multiply each partial gradient by its
effective weight. In rounds that cannot be decoded, halves and segments of the gradient
also leak into each other.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc import _arrays, _flat_vectors, _validation
from jaxwgc._arrays import product
from jaxwgc._some_masks import any_under_vmap
from jaxwgc._targets import DECODES, effective, residual


def leakage(mixing: jax.Array) -> jax.Array:
    """Returns `mixing` without the effective weights in every segment."""
    identity = jnp.eye(mixing.shape[-1])[:, None, :]
    diagonal = effective(mixing)[..., None, :, None] * identity
    return mixing - diagonal.astype(mixing.dtype)


@jax.jit
def leaks(mixing: jax.Array, target: jax.Array) -> jax.Array:
    """Returns whether the leakage of a round exceeds rounding error, bool (...).

    False for every round that decodes. Each part is also compared with its own weight.
    """
    _, failed = residual(mixing, target, DECODES)
    most = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    leaked = jnp.abs(leakage(mixing)) > most[:, None]
    return failed | jnp.any(leaked, axis=(-3, -2, -1))


@jax.jit
def collapse_leaves(mixing: jax.Array, target: jax.Array, partial_gradients: Any):
    """Computes the decoded gradient from partial gradients, see `collapse`.

    Sums are computed in at least float32. A part of weight zero may hold NaN: no worker
    has responded for it.
    """
    leaves, structure = jax.tree.flatten(partial_gradients)
    wide = [_arrays.promoted(leaf) for leaf in leaves]
    rows = [leaf.reshape(len(leaf), -1) for leaf in wide]

    def sums(weights, rows=rows):
        return jax.tree.unflatten(
            structure,
            [
                product(weights.astype(row.dtype), row)
                .reshape(*weights.shape[:-1], *leaf.shape[1:])
                .astype(jax.dtypes.canonicalize_dtype(given.dtype))
                for row, leaf, given in zip(rows, wide, leaves, strict=True)
            ],
        )

    def masked_sums(weights):
        # Selecting in every case would copy all rows, which takes longer than the sum.
        is_used = jnp.any(weights != 0, axis=0)[:, None]
        return sums(weights, [jnp.where(is_used, row, 0) for row in rows])

    return collapse(mixing, target, sums, masked_sums)


def collapse(
    mixing: jax.Array,
    target: jax.Array,
    sums: Callable[[jax.Array], Any],
    masked_sums: Callable[[jax.Array], Any] | None = None,
) -> Any:
    """Computes the decoded gradient from weighted sums of partial gradients.

    A complex code packs the halves (u, v) of a gradient as u + iv. In a round with too
    many stragglers, effective weights c have an imaginary part. The halves then leak
    into each other: u loses Im(c) v, and v gains Im(c) u. Segments leak in this way,
    too.

    Args:
      mixing: aᵀB, (num_segments, num_parts, num_segments), see `mixing`.
      target: Target of decoding, (num_parts,).
      sums: Function of real weights c (num_parts,) that returns the pytree sum over j
        of cⱼ gⱼ.
      masked_sums: Function of weights (rows, num_parts) that returns these sums with a
        leading axis, without parts of weight zero. It replaces sums that
        are not finite.
    """
    weights = effective(mixing)
    collapsed = sums(weights)
    leaked = _leaked_rows(mixing, target)
    is_rare = jnp.any(leaked != 0)
    if masked_sums is not None:
        for leaf in jax.tree.leaves(collapsed):
            is_rare |= ~jnp.isfinite(leaf).all()
    elif not len(leaked):
        return collapsed

    def compute_exactly():
        if masked_sums is None:
            return _add_leaks(collapsed, jax.vmap(sums)(leaked), mixing)
        both = masked_sums(jnp.concatenate([weights[None], leaked]))
        own = jax.tree.map(lambda leaf: leaf[0], both)
        return _add_leaks(own, jax.tree.map(lambda leaf: leaf[1:], both), mixing)

    is_rare = any_under_vmap(is_rare)
    if not _validation.is_traced(is_rare):
        # Outside of jit, lax.cond would compile its new functions at every call.
        return compute_exactly() if is_rare else collapsed
    return jax.lax.cond(is_rare, compute_exactly, lambda: collapsed)


def _leaked_rows(mixing, target):
    """Returns real weights (rows, num_parts) of the leaks of segments and halves.

    Leaks at the level of rounding are set to zero, since they would move parameters
    without a gradient. No rows if nothing is packed.
    """
    num_parts, num_segments = mixing.shape[-2:]
    is_complex = jnp.iscomplexobj(mixing)
    if num_segments == 1 and not is_complex:
        return jnp.zeros((0, num_parts), mixing.dtype)
    leaked = jnp.where(leaks(mixing, target), leakage(mixing), 0)
    rows = jnp.moveaxis(leaked, 1, -1).reshape(num_segments**2, num_parts)
    if num_segments == 1:
        return rows.imag
    return jnp.concatenate([rows.real, rows.imag]) if is_complex else rows


def _add_leaks(gradient, leaked, mixing):
    """Adds the sums with the weights of `_leaked_rows` to segments and halves."""
    num_segments, is_complex = mixing.shape[-1], jnp.iscomplexobj(mixing)
    pairs = 2 if is_complex else 1
    sums = _flat_vectors.ravel(leaked, num_batch_axes=1)
    if not len(sums):
        return gradient
    rows = _flat_vectors.blocks(sums, num_segments * pairs)
    shape = -1, num_segments, num_segments, num_segments, pairs, rows.shape[-1]
    # Segment u gains, for each v, segment v of the sum with weights (u, :, v).
    gains = jnp.trace(rows.reshape(shape), axis1=2, axis2=3)
    leak = gains[0] if num_segments > 1 else jnp.zeros(())
    if is_complex:
        turned = gains[-1]
        leak = leak + jnp.stack([-turned[:, 1], turned[:, 0]], axis=1)
    flat = _flat_vectors.ravel(gradient)
    return _flat_vectors.unravel(flat + leak.ravel()[: flat.size], gradient)
