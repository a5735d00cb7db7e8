"""One mask at a time, by a singular value decomposition."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc._targets import DECODES
from jaxwgc.decoders._accuracy import System, best_weights

# Singular values below this many sqrt(max(n, k)) eps of the largest count as zero.
_CUTOFF = 2
# Ridges that are tried, in eps of the largest singular value; first the cutoff alone.
_RIDGES = (0, 0.5, 2, 8)
_STEPS = 8


def decompose(weights: jax.Array, received: jax.Array, *systems: Any) -> jax.Array:
    """Computes weights of one mask by singular value decompositions.

    Args:
      weights: (num_segments, num_messages), with which to compare.
      received: bool (num_messages,).
      *systems: Arrays of `systems_of`. A system is tried if the weights of those before
        it leave a residual above `DECODES`.
    """
    own = System(*systems)
    number = len(own.norms)

    def fit(state):
        index, weights = state
        matrix, norms, target = own.at(index)
        weights = solve_by_svd(weights * norms, received, matrix, target) / norms
        return index + 1, weights

    def goes_on(state):
        index, weights = state
        is_lost = ~(own.at(0).miss(weights) <= DECODES)
        return (index == 0) | (index < number) & is_lost

    if number == 1:
        return fit((0, weights))[1]
    return jax.lax.while_loop(goes_on, fit, (0, weights))[1]


def solve_by_svd(
    weights: jax.Array, received: jax.Array, matrix: jax.Array, target: jax.Array
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

    Returns:
      (num_segments, num_messages), zero at messages that were not received.
    """
    eps = jnp.finfo(matrix.dtype).eps
    rows = jnp.where(received[:, None], matrix, 0)
    left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
    cutoff = _CUTOFF * math.sqrt(max(matrix.shape)) * eps * singular[0]
    ridges = jnp.array(_RIDGES, singular.dtype)[:, None] * eps * singular[0]
    is_used = (singular > cutoff) | (ridges > 0)
    regularised = jnp.where(is_used, singular**2 + ridges**2, 1)
    inverses = jnp.where(is_used, singular, 0) / regularised

    def solve(target):
        coordinates = product(target, right.conj().T) * inverses[:, None]
        return jnp.where(received, product(coordinates, left.conj().T), 0)

    def refine(solution, _):
        solution = solution + solve(target - product(solution, matrix))
        return solution, solution

    # The decomposition is rounded more than its use is, which refinement takes back.
    # What is left of the miss is rounding, which differs from step to step.
    start = jnp.where(received, jnp.zeros((len(inverses), len(target), 1)), 0)
    _, solution = jax.lax.scan(refine, start.astype(matrix.dtype), length=_STEPS)
    candidates = solution[::-1].reshape(-1, *weights.shape)
    return best_weights(jnp.concatenate([candidates, weights[None]]), matrix, target)
