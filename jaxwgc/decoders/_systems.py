"""Linear systems for decoding weights: scaling, residuals and decompositions."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxwgc._common.arrays import (
    Array,
    power_below,
    product,
    scale_of,
    squares,
    varying_with,
)
from jaxwgc._common.some_rows import any_under_vmap, keep, masked_map
from jaxwgc._common.tolerances import DECODES, ROUNDING

# Singular values below _CUTOFF sqrt(max(n, k)) eps times the largest are truncated.
_CUTOFF = 2
# Ridge in machine epsilons of the largest singular value. Smaller and larger ridges
# leave larger errors for nearly singular masks.
_RIDGE = 2
# The given weights are kept if their cost is below this fraction of the cost after each
# refinement step.
_ADVANTAGE = 0.9
# Number of refinement steps that nearly singular masks need.
_STEPS = 8
# Number of refinement steps for masks that are well-conditioned enough for a Cholesky
# factorisation.
_FEW_STEPS = 4
# Smallest squared diagonal entry of a Cholesky factor, in machine epsilons. Below it,
# rows are nearly dependent, and weights may not have minimum norm.
_SMALLEST_PIVOT = 1e3
# Bound of the relative excess of the squared residual over its minimum. Its square root
# bounds the change of the decoded gradient.
EXCESS = {32: 1e-8, 64: 1e-20}


class System(NamedTuple):
    """Linear system for the decoding weights of a code.

    The system is aᵀB = target for decoding weights a.

    Attributes:
      matrix: Rows of B divided by `norms`, (num_messages, c).
      norms: Norms of these rows, as powers of two, (num_messages,).
      target: (num_segments, c).
    """

    matrix: jax.Array
    norms: jax.Array
    target: jax.Array

    def residual(self, weights: jax.Array) -> jax.Array:
        """Computes the relative residual of weights.

        It is the norm of aᵀB - target, relative to the norm of the target.
        """
        residual = product(weights * self.norms, self.matrix) - self.target
        scale = jnp.sqrt(squared_norm(self.target).sum(-1))
        norm = jnp.sqrt(squared_norm(residual).sum(-1))
        return norm / jnp.where(scale > 0, scale, 1)

    def is_solved_by(self, weights: jax.Array) -> jax.Array:
        """Returns whether the residual of weights is within rounding."""
        bits = jnp.finfo(self.norms.dtype).bits
        return self.residual(weights) <= ROUNDING[bits]


# Systems, in the order of use. There is no second one if all parts have equal weights,
# because it would equal the first.
Systems: TypeAlias = tuple[System, ...]


def has_equal_weights(target: Array) -> bool:
    """Returns whether all parts are known to have equal weights.

    The system with part weights then does not become part of compiled programs.
    """
    if not isinstance(target, np.ndarray):
        return False
    columns = target.sum(axis=0)
    return bool(np.all(columns == columns[:1]))


def column_weights(target: Array) -> jax.Array:
    """Returns the weight of the part of each column.

    Each column belongs to one segment. Dividing a column in matrix and target does not
    change the decoding weights.
    """
    weights = jnp.asarray(target).sum(0)
    return jnp.where(weights == 0, scale_of(target), weights)


@functools.partial(jax.jit, static_argnames="is_unweighted")
def systems_of(matrix: Array, target: Array, is_unweighted: bool) -> Systems:
    """Returns the linear systems for decoding weights, in the order of their use.

    In the first system, columns are divided by the weights of their parts. The error of
    each part is then relative to its weight, and no part is lost in the rounding of
    larger ones. The second system is for masks with a residual above `DECODES` in the
    first.

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, theorem 4.1 (weights do not change the decoding weights).

    Args:
      matrix: B, (num_messages, c).
      target: (num_segments, c).
      is_unweighted: Whether all parts have equal weights.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    scales = [column_weights(target)]
    if not is_unweighted:
        scales.append(jnp.full_like(scales[0], scale_of(target)))
    systems = []
    for scale in scales:
        columns = scale.astype(jnp.finfo(dtype).dtype)
        # Division of complex numbers compiles to a large program, so inverses are
        # multiplied.
        rows, norms = scaled_rows(matrix.astype(dtype) * (1 / columns))
        scaled_target = jnp.asarray(target, columns.dtype) / columns
        systems.append(System(rows, norms, scaled_target))
    return tuple(systems)


def scaled_rows(matrix: Array) -> tuple[jax.Array, jax.Array]:
    """Scales rows to norms near one by powers of two; returns also these powers.

    Other factors would round the matrix, and weights that decode the rounded matrix
    leave a residual in the exact one. Rows of zeros get the factor one.
    """
    matrix = jnp.asarray(matrix)
    if jnp.iscomplexobj(matrix):
        sizes = jnp.maximum(jnp.abs(matrix.real), jnp.abs(matrix.imag))
    else:
        sizes = jnp.abs(matrix)
    largest = jnp.max(sizes, axis=-1)
    # The first scale is that of the largest entries, so that squares stay in range.
    coarse = 2 * power_below(jnp.where(largest > 0, largest, 0.5))
    norm = jnp.sqrt(squared_norm(matrix * (1 / coarse)[..., None]))
    # Squared norms of integer codes are integers, which are never 1.44 times a power of
    # four. So rounding cannot change the power of two.
    fine = 2 * power_below(jnp.where(norm > 0, norm / 1.2, 0.5))
    powers = coarse * fine
    return matrix * (1 / powers)[..., None], powers


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Computes the squared norm over the last axis."""
    return jnp.sum(squares(vectors), axis=-1)


@functools.partial(jax.jit, static_argnames="num_steps")
def refine(
    correct: Partial,
    weights: jax.Array,
    system: System,
    num_steps: int = _STEPS,
) -> jax.Array:
    """Improves weights by iterative refinement, as long as it lowers the residual.

    Refinement starts from zero and adds the correction of the residual, which removes
    rounding errors of the factors in `correct`. What remains are rounding errors that
    differ from step to step, so the best step is kept.

    Weights, and the messages that they multiply, are rounded by half an epsilon. Large
    weights may have smaller residuals, but larger rounding errors. Both count.

    Args:
      correct: `correct(iterate, residual)` returns the change of the iterate
        (num_segments, num_messages), weights times norms, that removes most of its
        residual (num_segments, c).
      weights: Kept if better than every step by more than a tenth, (num_segments,
        num_messages).
      system: Rows of B, and target, by which weights are compared.
      num_steps: Number of corrections.

    Returns:
      Weights (num_segments, num_messages).
    """
    rounding = jnp.finfo(system.matrix.dtype).eps / 2

    def advance(step, state):
        iterate, best, lowest_cost = state
        residual = system.target - product(iterate, system.matrix)
        cost = (squared_norm(residual) + rounding**2 * squared_norm(iterate)).sum()
        # The first iterate is the given one.
        cost = jnp.where(step == 0, cost / _ADVANTAGE, cost)
        is_better = cost < lowest_cost
        best = jnp.where(is_better, iterate, best)
        lowest_cost = jnp.where(is_better, cost, lowest_cost)
        # The second iterate is zero.
        iterate = jnp.where(step == 0, 0, iterate + correct(iterate, residual))
        return iterate, best, lowest_cost

    start = weights * system.norms
    infinity = jnp.asarray(jnp.inf, system.norms.dtype)
    infinity = varying_with(start[0, 0].real < 0, infinity)
    _, best, _ = jax.lax.fori_loop(0, num_steps + 2, advance, (start, start, infinity))
    return best / system.norms


def solve_in_turn(
    solve: Callable[..., tuple[jax.Array, jax.Array]],
    weights: jax.Array,
    mask: jax.Array,
    systems: Systems,
) -> tuple[jax.Array, jax.Array]:
    """Solves for unit weights first, and for the given weights if that fails.

    Args:
      solve: `solve(weights, mask, system)` returns weights, and which masks are solved.
      weights: Given to `solve`, (..., num_segments, num_messages).
      mask: bool (..., num_messages).
      systems: From `systems_of`.

    Returns:
      Weights, and which masks are solved.
    """
    plain = systems[0]
    if len(systems) == 1:
        return solve(weights, mask, plain)
    sizes = jnp.abs(systems[1].target).sum(0)
    has_unequal_weights = sizes.max() > sizes.min()
    # A loop compiles `solve` once.
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *systems)

    def is_unfinished(state):
        step, *_, is_left = state
        return (step < len(systems)) & any_under_vmap(is_left.any())

    def advance(state):
        step, weights, is_solved, is_left = state
        system = jax.tree.map(lambda leaf: leaf[step], stacked)
        new_weights, is_now_solved = solve(weights, mask, system)
        weights = jnp.where(is_left[..., None, None], new_weights, weights)
        is_solved = jnp.where(is_left, is_now_solved, is_solved)
        is_decoded = plain.residual(weights) <= DECODES
        is_left = is_left & is_solved & ~is_decoded & has_unequal_weights
        return step + 1, weights, is_solved, is_left

    is_left = mask[..., 0] | True
    start = (0, weights, ~is_left, is_left)
    _, weights, is_solved, _ = jax.lax.while_loop(is_unfinished, advance, start)
    return weights, is_solved


def _by_svd(
    weights: jax.Array, mask: jax.Array, system: System
) -> tuple[jax.Array, jax.Array]:
    """Computes the weights of one mask by a singular value decomposition.

    Singular values below 2 sqrt(max(n, k)) eps of the largest are truncated. (NumPy
    truncates below max(n, k) eps, which is too much in float32 for codes of condition
    number 1e5. Rounding reached sqrt(n) eps / 2 for n up to 400.) On nearly singular
    masks, a ridge is better: it trades the residual against the rounding of large
    weights. The better of both is returned.
    """
    rows = jnp.where(mask[:, None], system.matrix, 0)
    left, singular, right = jnp.linalg.svd(rows, full_matrices=False)
    unit = jnp.finfo(rows.dtype).eps * singular[0]
    squared_ridge = (_RIDGE * unit) ** 2
    # The ridge of a matrix of zeros is zero.
    ridged = singular / jnp.where(unit > 0, singular**2 + squared_ridge, 1)
    # Smaller singular values are rounding errors, e.g. of equal rows. After many
    # refinement steps, a ridge would still fit the target along them.
    ridged *= singular > unit
    cutoff = _CUTOFF * math.sqrt(max(rows.shape)) * unit
    truncated = ridged * (singular > cutoff)

    def improve(weights, inverses):
        inverse = product(right.conj().T * inverses, left.conj().T)
        correct = Partial(_by_inverse, inverse=jnp.where(mask, inverse, 0))
        return refine(correct, weights, system), None

    weights, _ = jax.lax.scan(improve, weights, jnp.stack([ridged, truncated]))
    return weights, varying_with(mask[0], True)


def _by_inverse(_: jax.Array, residual: jax.Array, inverse: jax.Array) -> jax.Array:
    """Computes the change of weights that removes a residual, by an inverse matrix."""
    return product(residual, inverse)


def _by_cholesky(
    weights: jax.Array, masks: jax.Array, system: System
) -> tuple[jax.Array, jax.Array]:
    """Computes decoding weights of several masks, and whether Cholesky solves each.

    The Gram matrix has the square of the condition number of the mask. Masks of nearly
    dependent rows are not solved.
    """
    matrix = system.matrix
    gram = product(matrix, matrix.conj().T)
    is_used = masks[:, :, None] & masks[:, None, :]
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    factors = jnp.linalg.cholesky(jnp.where(is_used, gram, identity))

    def solve(weights, mask, factor):
        correct = Partial(_by_factor, matrix=matrix, mask=mask, factor=factor)
        weights = refine(correct, weights, system, num_steps=_FEW_STEPS)
        residual = system.target - product(weights * system.norms, matrix)
        half = _half_solution(residual, matrix, mask, factor)
        return weights, squared_norm(half), squared_norm(residual)

    weights, excess, residual = jax.vmap(solve)(weights, masks, factors)
    precision = jnp.finfo(matrix.dtype)
    pivots = jnp.diagonal(factors, axis1=1, axis2=2).real ** 2
    is_solved = (excess <= EXCESS[precision.bits] * residual).all(-1)
    return weights, is_solved & (pivots.min(-1) >= _SMALLEST_PIVOT * precision.eps)


def _by_factor(
    _: jax.Array,
    residual: jax.Array,
    matrix: jax.Array,
    mask: jax.Array,
    factor: jax.Array,
) -> jax.Array:
    """Computes the change of weights that removes a residual, by a Cholesky factor."""
    half = _half_solution(residual, matrix, mask, factor)
    return jax.lax.linalg.triangular_solve(factor, half, lower=True)


def _half_solution(
    residual: jax.Array, matrix: jax.Array, mask: jax.Array, factor: jax.Array
) -> jax.Array:
    """Computes the first of two triangular solves of `_by_factor`.

    Returns g L⁻ᴴ for half the gradient g of the squared residual. Its squared norm
    is the excess of the squared residual over the minimum.
    """
    gradient = jnp.where(mask, product(residual, matrix.conj().T), 0)
    return jax.lax.linalg.triangular_solve(
        factor, gradient, lower=True, transpose_a=True, conjugate_a=True
    )


_decompose = functools.partial(solve_in_turn, _by_svd)
_factorise = functools.partial(solve_in_turn, _by_cholesky)


def _attempt_first(
    weights: jax.Array, mask: jax.Array, systems: Systems, attempt: Partial
) -> tuple[jax.Array, jax.Array]:
    """Computes weights by the attempt; by a decomposition if it does not decode."""
    weights = attempt(weights, mask, systems[0])
    is_solved = systems[0].is_solved_by(weights)
    decompose = Partial(_decompose, systems=systems)
    return jax.lax.cond(is_solved, keep, decompose, weights, mask)


def solve_poor(
    is_poor: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    matrix: Array,
    target: Array,
    attempt: Partial | None = None,
) -> jax.Array:
    """Replaces inaccurate weights by weights from decompositions of the matrix.

    Args:
      is_poor: Which weights are inaccurate, bool (...).
      weights: (..., num_segments, num_messages), kept where they are better.
      mask: bool (..., num_messages).
      matrix: B, (num_messages, c).
      target: (num_segments, c).
      attempt: `attempt(weights, mask, system)` returns weights of one mask at a lower
        cost. The mask is decomposed only if they do not decode it up to rounding.

    Returns:
      (..., num_segments, num_messages), zero at messages that were not received.
    """
    # Outside of jit, decompositions are compiled only if a mask needs them.
    if not isinstance(is_poor, jax.core.Tracer) and not np.any(is_poor):
        return weights
    is_unweighted = has_equal_weights(target)
    return _solve_poor(is_poor, weights, mask, matrix, target, is_unweighted, attempt)


@functools.partial(jax.jit, static_argnames="is_unweighted")
def _solve_poor(
    is_poor: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    is_unweighted: bool,
    attempt: Partial | None,
) -> jax.Array:
    """Computes `solve_poor` as one compiled program."""
    systems = systems_of(matrix, target, is_unweighted)
    one_by_one = Partial(_decompose, systems=systems)
    if attempt is not None:
        one_by_one = Partial(_attempt_first, systems=systems, attempt=attempt)
    # A Gram matrix that is larger than the matrix saves no work.
    num_messages, num_columns = matrix.shape
    is_wide = num_messages <= num_columns
    together = Partial(_factorise, systems=systems) if is_wide else None
    return masked_map(is_poor, one_by_one, together, weights, mask)
