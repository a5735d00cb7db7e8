"""One mask at a time, by a singular value decomposition."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc._some_masks import is_nowhere, masked_map
from jaxwgc._targets import DECODES
from jaxwgc.decoders._accuracy import System, best_weights

# Singular values below this many sqrt(max(n, k)) eps of the largest count as zero.
_CUTOFF = 2
# Ridges that are tried, in eps of the largest singular value; first the cutoff alone.
_RIDGES = (0, 0.5, 2, 8)
_STEPS = 8
# Precision of weights of rounds that lose more than rounding, where parts that are all
# but dependent are no matter of rounding in double precision either.
_LOST = 1e-11


def decompose_some(
    is_poor: jax.Array, weights: jax.Array, mask: jax.Array, systems: System
) -> jax.Array:
    """Replaces weights (..., num_segments, num_messages) of some of the masks.

    Args:
      is_poor: bool (...), the masks to decompose.
      weights: Weights of all masks, with which to compare.
      mask: bool (..., num_messages).
      systems: Of `systems_of`.
    """
    if is_nowhere(is_poor):
        return weights
    mapped = weights, mask
    return _masked_map(is_poor, decompose, weights, mapped, (systems,))


_masked_map = jax.jit(masked_map, static_argnums=1)


def decompose(weights: jax.Array, received: jax.Array, systems: System) -> jax.Array:
    """Computes weights of one mask by singular value decompositions.

    Args:
      weights: (num_segments, num_messages), with which to compare.
      received: bool (num_messages,).
      systems: Of `systems_of`. The second is solved if the weights of the first leave
        a residual above `DECODES`.
    """
    number, eps = len(systems.norms), jnp.finfo(systems.norms.dtype).eps

    def fit(state):
        index, weights = state
        matrix, norms, target = systems.at(index)
        precision = jnp.where(index == 0, eps, max(eps, _LOST))
        weights = jnp.where(index == 0, weights * norms, 0)
        weights = solve_by_svd(weights, received, matrix, target, precision) / norms
        return index + 1, weights

    def goes_on(state):
        index, weights = state
        is_lost = ~(systems.at(0).miss(weights) <= DECODES)
        return (index == 0) | (index < number) & is_lost

    if number == 1:
        return fit((0, weights))[1]
    return jax.lax.while_loop(goes_on, fit, (0, weights))[1]


def solve_by_svd(
    weights: jax.Array,
    received: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    precision: jax.typing.ArrayLike,
) -> jax.Array:
    """Weights of one mask by a singular value decomposition, or those given.

    Directions below 2 sqrt(max(n, k)) eps of the largest singular value are left out.
    (NumPy leaves out those below max(n, k) eps, which in float32 would cost codes of
    condition 1e5 what they need. Rounding reached half a sqrt(n) eps, up to n = 400.)
    On nearly singular masks, ridges of a few eps are better: they trade the miss
    against the rounding of large weights. The best of these is taken.

    Args:
      weights: (num_segments, num_messages), with which to compare.
      received: bool (num_messages,).
      matrix: (num_messages, c), its rows of norm about one.
      target: (num_segments, c).
      precision: Stands for eps in these bounds.

    Returns:
      (num_segments, num_messages), zero at messages that were not received.
    """
    rows = jnp.where(received[:, None], matrix, 0)
    left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = _CUTOFF * math.sqrt(max(matrix.shape)) * precision * singular[0]
    ridges = jnp.array(_RIDGES, singular.dtype)[:, None, None]
    ridges = ridges * precision * singular[0]
    is_used = (singular > cutoff) | (ridges > 0)
    regularised = jnp.where(is_used, singular**2 + ridges**2, 1)
    inverses = jnp.where(is_used, singular, 0) / regularised
    inverses = product(right.conj().T * inverses, left.conj().T)
    inverses = jnp.where(received, inverses, 0)

    # The decomposition is rounded more than its use is, which refinement takes back.
    # What is left of the miss is rounding, which differs from step to step.
    def refine(solutions, _):
        misses = target - product(solutions, matrix)
        solutions = solutions + product(misses, inverses)
        return solutions, solutions

    # Made of the mask, with which it varies from device to device under shard_map.
    zeros = jnp.zeros((len(_RIDGES), len(weights), 1), weights.dtype)
    start = jnp.where(received, zeros, 0)
    _, steps = jax.lax.scan(refine, start, None, length=_STEPS)
    candidates = steps[::-1].reshape(-1, *weights.shape)
    candidates = jnp.concatenate([candidates, weights[None]])
    return best_weights(candidates, matrix, target)
