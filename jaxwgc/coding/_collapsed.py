"""The collapsed gradient: what decoding gives, without forming any message.

Messages, stragglers and decoding together multiply each partial gradient by a number,
its effective weight; where a round cannot be decoded, halves and segments of the
gradient leak into each other besides.
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
    """Returns `mixing` less the effective weights in every segment."""
    identity = jnp.eye(mixing.shape[-1])[:, None, :]
    diagonal = effective(mixing)[..., None, :, None] * identity
    return mixing - diagonal.astype(mixing.dtype)


@jax.jit
def leaks(mixing: jax.Array, target: jax.Array) -> jax.Array:
    """Returns whether the leakage of a round is more than rounding error, bool (...).

    It never is if the round decodes. Each part is judged by its own weight, too.
    """
    _, failed = residual(mixing, target, DECODES)
    most = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    leaked = jnp.abs(leakage(mixing)) > most[:, None]
    return failed | jnp.any(leaked, axis=(-3, -2, -1))


def weighted_sums(partial_gradients: Any) -> Callable[[jax.Array], Any]:
    """Weights (num_parts,) to the weighted sum over the leading axis of each leaf.

    In at least float32, as messages are. What has no weight may hold anything.
    """

    def sums(weights):
        def of_leaf(leaf):
            wide = _arrays.promoted(leaf)
            flat = wide.reshape(len(wide), -1)
            summed = _weighted_sum(weights.astype(flat.dtype), flat)
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            return summed.reshape(wide.shape[1:]).astype(dtype)

        return jax.tree.map(of_leaf, partial_gradients)

    return sums


@jax.jit
def _weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """The sum of rows; one of weight zero may be NaN, as nobody has answered for it."""
    summed = product(weights, rows)

    def without() -> jax.Array:
        return product(weights, jnp.where(weights[:, None] == 0, 0, rows))

    # Selecting at once would copy all rows, which takes longer than their sum.
    is_poisoned = any_under_vmap(~jnp.isfinite(summed).all())
    return jax.lax.cond(is_poisoned, without, lambda: summed)


def collapse(
    mixing: jax.Array, target: jax.Array, weighted_sum: Callable[[jax.Array], Any]
) -> Any:
    """Returns the decoded gradient from weighted sums of partial gradients.

    A complex code packs the halves (u, v) of a gradient as u + iv. Effective weights
    with an imaginary part, so those of a round with too many stragglers, therefore turn
    a share Im(c) of each half into the other: u loses v's, v gains u's. In the same
    way the segments of a code with segments leak into each other in such a round.

    Args:
      mixing: aᵀB (num_segments, num_parts, num_segments), see `mixing`.
      target: (num_parts,).
      weighted_sum: real weights c (num_parts,) to the pytree sum over j of cⱼ gⱼ.
    """
    collapsed = weighted_sum(effective(mixing))
    num_parts, segments = mixing.shape[-2:]
    is_complex = jnp.iscomplexobj(mixing)
    if segments == 1 and not is_complex:
        return collapsed
    leaked = leakage(mixing)

    def segments_of_sums(weights):
        """Segment u: the sum over v of segment v of the sum with weights (u, :, v)."""
        weights = jnp.moveaxis(weights, 1, -1).reshape(segments**2, num_parts)
        sums = jax.vmap(lambda row: _flat_vectors.ravel(weighted_sum(row)))(weights)
        pairs = 2 if is_complex else 1
        rows = _flat_vectors.blocks(sums, segments * pairs)
        rows = rows.reshape(segments, segments, segments, pairs, rows.shape[-1])
        return jnp.trace(rows, axis1=1, axis2=2)

    def add_leak():
        flat = _flat_vectors.ravel(collapsed)
        leak = jnp.zeros(())
        if segments > 1:
            leak = segments_of_sums(leaked.real)
        if is_complex:
            turned = segments_of_sums(leaked.imag)
            leak = leak + jnp.stack([-turned[:, 1], turned[:, 0]], axis=1)
        return _flat_vectors.unravel(flat + leak.ravel()[: flat.size], collapsed)

    # Rounding that is added would move parameters whose gradient is zero.
    matters = any_under_vmap(leaks(mixing, target))
    if not _validation.is_traced(matters):
        # Outside of jit, lax.cond would compile its new functions at every call.
        return add_leak() if matters else collapsed
    return jax.lax.cond(matters, add_leak, lambda: collapsed)
