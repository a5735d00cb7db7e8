"""How good decoding weights are, and which of several are the best."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import power_below, product, squares


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Returns the squared norm over the last axis, real."""
    return jnp.sum(squares(vectors), axis=-1)


def relative_miss(
    weights: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """The norm of aᵀB - target over that of the target, over all segments."""
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
    advantage = np.ones(len(candidates))
    advantage[0] = 0.9
    return candidates[jnp.argmin(cost * jnp.asarray(advantage, cost.dtype))]


def scaled_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A matrix with rows of norm about one, and the powers of two that scaled them.

    Powers of two, since other numbers would round the matrix: what decodes the rounded
    one misses the target of the other. Rows of zeros stay, with one.
    """
    largest = jnp.max(jnp.abs(matrix), axis=1)
    # First by the largest entry, so that squares neither under- nor overflow.
    coarse = 2 * power_below(jnp.where(largest > 0, largest, 0.5))
    matrix = matrix * (1 / coarse)[:, None]
    norm = jnp.sqrt(squared_norm(matrix))
    # Codes of small integers have norms whose squares are integers: 1.44 times a power
    # of four is none of them, so that rounding does not decide between two powers.
    fine = 2 * power_below(jnp.where(norm > 0, norm / 1.2, 0.5))
    return matrix * (1 / fine)[:, None], coarse * fine
