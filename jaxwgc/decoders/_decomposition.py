"""Decoding of one mask by singular value decomposition."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product
from jaxwgc._targets import DECODES
from jaxwgc.decoders._accuracy import System, best_iterate

# Singular values below this times sqrt(max(n, k)) eps times the largest are truncated.
_CUTOFF = 2
# Ridges to try, in eps of the largest singular value; 0 only truncates.
_RIDGES = (0, 0.5, 2, 8)
_STEPS = 8
# Precision, in place of eps, in rounds that do not decode. In these rounds, nearly
# dependent parts cannot be told apart in double precision either.
_LOST = 1e-11


def decompose(weights: jax.Array, received: jax.Array, systems: System) -> jax.Array:
    """Computes weights of one mask by singular value decompositions.

    Args:
      weights: (num_segments, num_messages), kept if they are better.
      received: bool (num_messages,).
      systems: From `systems_of`. The second is solved if weights of the first have a
        residual above `DECODES`.
    """
    number, eps = len(systems.norms), jnp.finfo(systems.norms.dtype).eps

    def fit(state):
        index, weights = state
        precision = jnp.where(index == 0, eps, max(eps, _LOST))
        weights = jnp.where(index == 0, weights, 0)
        return index + 1, _solve(weights, received, systems.at(index), precision)

    def goes_on(state):
        index, weights = state
        is_lost = ~(systems.at(0).residual(weights) <= DECODES)
        return (index == 0) | (index < number) & is_lost

    if number == 1:
        return fit((0, weights))[1]
    return jax.lax.while_loop(goes_on, fit, (0, weights))[1]


def _solve(weights, received, system, precision):
    """Computes weights of one mask by singular value decomposition.

    Singular values below 2 sqrt(max(n, k)) eps of the largest are truncated. (NumPy
    truncates below max(n, k) eps, which is too much in float32 for codes of condition
    number 1e5. Rounding reached sqrt(n) eps / 2 for n up to 400.) On nearly singular
    masks, ridges of a few eps are better: they trade the residual against the rounding
    of large weights. The best of these weights is returned.

    Args:
      weights: (num_segments, num_messages), kept if they are better.
      received: bool (num_messages,).
      system: Rows of B, and target.
      precision: Used as eps in these bounds.

    Returns:
      (num_segments, num_messages), zero at messages that were not received.
    """
    matrix, norms, _ = system
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

    # The given weights are the last sequence. Its inverse is zero, so it is not
    # refined.
    inverses = jnp.pad(inverses, [(0, 1), (0, 0), (0, 0)])
    start = jnp.zeros((len(_RIDGES), *weights.shape), weights.dtype)
    start = jnp.concatenate([start, (weights * norms)[None]])

    # Refinement removes rounding errors of the decomposition. What remains are rounding
    # errors that differ from step to step, so the best step is kept.
    def refine(solutions, residuals):
        return solutions + product(residuals, inverses)

    return best_iterate(refine, start, system, _STEPS)
