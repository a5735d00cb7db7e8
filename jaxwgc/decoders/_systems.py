"""Systems aᵀB = target: scaling, residuals, and solution by decompositions."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import power_below, product, squares
from jaxwgc._targets import DECODES, target_scale

# Another sequence of iterates replaces the first one only if its cost is below this
# fraction of the first one's cost.
_ADVANTAGE = 0.9
# Singular values below this times sqrt(max(n, k)) eps times the largest are truncated.
_CUTOFF = 2
# Ridges to try, in eps of the largest singular value; 0 only truncates.
_RIDGES = (0, 0.5, 2, 8)
# Number of refinement steps.
_STEPS = 8
# Precision, in place of eps, in rounds that do not decode. In these rounds, nearly
# dependent parts cannot be told apart in double precision either.
_LOST = 1e-11


class System(NamedTuple):
    """System aᵀB = target for decoding weights a, or several systems.

    Attributes:
      matrix: Rows of B divided by `norms`, (..., num_messages, c).
      norms: Norms of these rows, as powers of two, (..., num_messages).
      target: (..., num_segments, c).
    """

    matrix: jax.Array
    norms: jax.Array
    target: jax.Array

    def at(self, index: Any) -> "System":
        """Selects one of several systems."""
        return System(*(array[index] for array in self))

    def residual(self, weights: jax.Array) -> jax.Array:
        """Computes the residual of weights, relative to the norm of the target."""
        return relative_residual(weights * self.norms, self.matrix, self.target)


def is_uniform(target: Any) -> bool:
    """Returns whether all parts are known to have equal weights."""
    known = isinstance(target, np.ndarray)
    return known and bool(np.ptp(np.abs(target).sum(0)) == 0)


def systems_of(matrix: jax.Array, target: jax.Array, is_uniform: bool) -> System:
    """Returns the systems of a code, in the order in which to try them.

    The first is the one of the unweighted code. There, the error of each part is
    relative to the weight of the part, and no part is lost in the rounding of larger
    ones (theorem 4.1 of the paper). The second has the weights, unless they are equal.
    It is for masks with a residual above `DECODES` in the first.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    target = target.astype(jnp.finfo(dtype).dtype)
    # Each column belongs to one segment. Dividing a column in matrix and target does
    # not change the decoding weights.
    scale, columns = target_scale(target), target.sum(0)
    columns = jnp.where(columns == 0, scale, columns)[None]
    if not is_uniform:
        columns = jnp.concatenate([columns, jnp.full_like(columns, scale)])
    columns = columns[:, None]
    # The matrix is multiplied by inverses, because division of complex numbers compiles
    # to a large program.
    matrix = matrix.astype(dtype) * (1 / columns)
    return System(*scaled_rows(matrix), target / columns)


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Returns the squared norm over the last axis, real."""
    return jnp.sum(squares(vectors), axis=-1)


def relative_residual(
    weights: jax.Array, matrix: jax.Array, target: jax.Array
) -> jax.Array:
    """Returns the norm of aᵀB - target over all segments, relative to the target."""
    residual = product(weights, matrix) - target
    scale = jnp.sqrt(squared_norm(target).sum(-1))
    return jnp.sqrt(squared_norm(residual).sum(-1)) / jnp.where(scale > 0, scale, 1)


def best_iterate(
    step: Callable[..., jax.Array], start: jax.Array, system: System, num_steps: int
) -> jax.Array:
    """Returns the iterate with the smallest residual, including rounding errors.

    Weights, and the messages that they multiply, are rounded by half an epsilon. Large
    weights may have smaller residuals, but larger rounding errors. The first sequence
    is kept unless another one is better by more than a tenth.

    Args:
      step: `step(iterates, residuals)` returns the next iterates.
      start: First iterates of several sequences, multiplied by the norms of the rows of
        B, (count, num_segments, num_messages).
      system: Rows of B, and target.
      num_steps: Number of steps.

    Returns:
      Weights (num_segments, num_messages).
    """
    matrix, norms, target = system
    rounding = jnp.finfo(matrix.dtype).eps / 2

    def advance(_, state):
        iterates, best, least = state
        residuals = target - product(iterates, matrix)
        costs = squared_norm(residuals) + rounding**2 * squared_norm(iterates)
        costs = costs.sum(-1)
        is_better = costs < least
        best = jnp.where(is_better[:, None, None], iterates, best)
        return step(iterates, residuals), best, jnp.where(is_better, costs, least)

    # Infinity is derived from the start, so that under shard_map it varies over the
    # mesh axes of the start.
    least = jnp.where(start[:, 0, 0].real < 0, jnp.inf, jnp.inf)
    state = start, start, least.astype(norms.dtype)
    _, best, least = jax.lax.fori_loop(0, num_steps + 1, advance, state)
    return best[jnp.argmin(least.at[0].multiply(_ADVANTAGE))] / norms


def scaled_rows(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scales rows to norm about one by powers of two; returns also these powers.

    Other factors would round the matrix, and weights that decode the rounded matrix
    leave a residual in the exact one. Rows of zeros get the factor one.
    """
    parts = [matrix.real, matrix.imag] if jnp.iscomplexobj(matrix) else [matrix]
    largest = jnp.max(functools.reduce(jnp.maximum, map(jnp.abs, parts)), axis=-1)
    # Rows are scaled by their largest entries first, so that squares stay in range.
    coarse = 2 * power_below(jnp.where(largest > 0, largest, 0.5))
    norm = jnp.sqrt(squared_norm(matrix * (1 / coarse)[..., None]))
    # Codes of small integers have integer squared norms, which are never 1.44 times a
    # power of four. So rounding does not decide between two powers.
    fine = 2 * power_below(jnp.where(norm > 0, norm / 1.2, 0.5))
    powers = coarse * fine
    return matrix * (1 / powers)[..., None], powers


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
