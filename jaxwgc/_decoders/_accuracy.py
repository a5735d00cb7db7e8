"""How good decoding weights are, and which of several are the best."""

import jax
import jax.numpy as jnp

from jaxwgc._decoders._product import product

# A miss below this share of the target is rounding; by the bits of a real number.
ROUNDING = {32: 1e-5, 64: 1e-10}


def rounding(dtype: jax.typing.DTypeLike) -> float:
    """The share of the target below which a miss is rounding."""
    return ROUNDING[jnp.finfo(dtype).bits]


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Of the last axis, real."""
    return jnp.sum(vectors.real**2 + vectors.imag**2, axis=-1)


def relative_miss(
    weights: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The norm of a^T B - target over that of the target, over all segments."""
    miss = product(weights, matrix) - target
    scale = jnp.sqrt(squared_norm(target).sum(-1))
    return jnp.sqrt(squared_norm(miss).sum(-1)) / jnp.where(scale > 0, scale, 1)


def best_weights(
    candidates: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The candidate of the least miss, that by rounding included.

    Weights are rounded by half an eps, and so are the messages that they multiply: what
    large weights gain in the miss they lose there. The first candidate is kept unless
    another one is better by more than a tenth.

    Args:
      candidates: (count, num_segments, num_messages).
      matrix: (num_messages, c), its rows of norm about one.
      target: (num_segments, c).

    Returns:
      (num_segments, num_messages).
    """
    eps = jnp.finfo(matrix.dtype).eps
    miss = squared_norm(product(candidates, matrix) - target).sum(-1)
    cost = miss + (eps / 2) ** 2 * squared_norm(candidates).sum(-1)
    cost = jnp.where(jnp.isfinite(cost), cost, jnp.inf)
    return candidates[jnp.argmin(cost.at[0].multiply(0.9))]
