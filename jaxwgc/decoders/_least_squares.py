"""Least-squares decoding by conjugate gradients."""

import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import product, varying_with
from jaxwgc._common.conjugate_gradients import cg_start, cg_step, step_length
from jaxwgc._common.some_rows import in_batches
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._systems import (
    EXCESS,
    System,
    has_equal_weights,
    solve_in_turn,
    solve_poor,
    squared_norm,
    systems_of,
)

# Number of masks that iterate together. Their vectors fit into the cache.
_BATCH = 128
# Bound of the gradient of the squared residual at convergence, relative to the norms of
# matrix and residual: a few machine epsilons. The excess of the squared residual is of
# second order in this bound, but the error of the decoded gradient is of first order.
_GRADIENT = {32: 5e-7, 64: 1e-15}
# Residual, in machine epsilons of the target, below which iterations also end.
_DONE_EPS = 64


@functools.partial(jax.jit, static_argnames="is_unweighted")
def least_squares_weights(
    mask: jax.Array,
    matrix: Array,
    target: Array,
    num_missing: int | jax.Array,
    is_unweighted: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes minimum-norm least-squares weights.

    Weights are multiplied by the norms of the rows of B, rounded to powers of two, in
    this norm, so that the scale of a message does not matter. The norm bounds the noise
    of the decoded sum if noise, such as rounding, is proportional to the size of
    messages.

    Masks without convergence of conjugate gradients are left to a decomposition. So are
    masks that decode exactly, but not with these weights, e.g. nearly singular masks.

    Args:
      mask: bool (..., num_messages).
      matrix: (num_messages, c).
      target: (num_segments, c).
      num_missing: Number of messages that may be missing for exact decoding.
      is_unweighted: Whether all parts have equal weights.

    Returns:
      Weights (..., num_segments, num_messages), zero at messages that were not
      received; and which of them are inaccurate, bool (...).
    """
    systems = systems_of(matrix, target, is_unweighted)
    plain = systems[0]
    zeros = jnp.zeros((len(target), 1), plain.matrix.dtype)
    weights = varying_with(mask[..., None, :], zeros)
    weights, is_solved = solve_in_turn(_from_zero, weights, mask, systems)
    count = (~mask).sum(-1)
    is_decodable = (count <= num_missing) & (num_missing > 0)
    is_off = ~plain.is_solved_by(weights)
    return weights, ~is_solved | (is_decodable & is_off)


def _from_zero(
    weights: jax.Array, mask: jax.Array, system: System
) -> tuple[jax.Array, jax.Array]:
    """Computes `nearest_weights` with the arguments that `solve_in_turn` passes."""
    del weights
    return nearest_weights(mask, system)


@jax.jit
def nearest_weights(mask: jax.Array, system: System) -> tuple[jax.Array, jax.Array]:
    """Computes weights by conjugate gradients, and which of them are solved.

    Args:
      mask: bool (..., num_messages).
      system: Matrix and target.
    """
    iterate = functools.partial(
        _conjugate_gradients, matrix=system.matrix, target=system.target
    )
    weights, converged = in_batches(iterate, mask, _BATCH)
    return weights / system.norms, converged


class _Problem(NamedTuple):
    """Least-squares problems of several masks, with their convergence criteria.

    Attributes:
      mask: bool (masks, 1, num_messages).
      matrix: (num_messages, c).
      gram: Products of the rows of matrix, (num_messages, num_messages).
      target: (num_segments, c).
      matrix_norm: Squared norm of the rows that have arrived, (masks, 1).
      tolerance: Squared gradient at convergence, relative to the squared residual,
        (masks, 1).
      floor: Squared residual at convergence, (num_segments,).
      noise: Rounding of the squared gradient, (masks, num_segments); further iterations
        would accumulate noise.
    """

    mask: jax.Array
    matrix: jax.Array
    gram: jax.Array
    target: jax.Array
    matrix_norm: jax.Array
    tolerance: jax.Array
    floor: jax.Array
    noise: jax.Array

    def residual_and_gradient(self, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the squared residual, and half of its gradient."""
        residual = self.target - product(weights, self.matrix)
        gradient = jnp.where(self.mask, product(residual, self.matrix.conj().T), 0)
        return squared_norm(residual), gradient

    def is_minimum(self, gradient: jax.Array, residual: jax.Array) -> jax.Array:
        """Returns whether squared norms of gradient and residual are small enough."""
        enough = jnp.maximum(self.tolerance * residual, self.noise)
        return (gradient <= enough) | (residual <= self.floor)


def _conjugate_gradients(
    masks: jax.Array, matrix: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes weights by conjugate gradients, and which have converged."""
    mask = masks[:, None, :]
    precision = jnp.finfo(matrix.dtype)
    matrix_norm = jnp.sum(jnp.where(mask, squared_norm(matrix), 0), axis=-1)
    target_norm = squared_norm(target)
    problem = _Problem(
        mask=mask,
        matrix=matrix,
        gram=product(matrix, matrix.conj().T),
        target=target,
        matrix_norm=matrix_norm,
        tolerance=_GRADIENT[precision.bits] ** 2 * matrix_norm,
        floor=(_DONE_EPS * precision.eps) ** 2 * target_norm,
        noise=(2 * precision.eps) ** 2 * matrix_norm * target_norm,
    )
    weights = varying_with(mask, jnp.zeros((len(target), 1), matrix.dtype))
    longest = squared_norm(weights)

    def descend(_, state):
        weights, longest = state
        return _descend(problem, weights, longest)

    # The second run starts from a new residual, without accumulated rounding. It stops
    # at once if the first run was enough.
    weights, longest = jax.lax.fori_loop(0, 2, descend, (weights, longest))
    residual, gradient = problem.residual_and_gradient(weights)
    norm = squared_norm(gradient)
    is_accurate = norm * longest <= EXCESS[precision.bits] * residual
    is_accurate |= residual <= problem.floor
    is_minimum = problem.is_minimum(norm / 4, residual)
    return weights, (is_minimum & is_accurate).all(axis=-1)


def _descend(
    problem: _Problem, weights: jax.Array, longest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Runs conjugate gradients; returns the weights and the longest step."""
    max_steps = 4 * min(problem.matrix.shape) + 10
    residual, gradient = problem.residual_and_gradient(weights)
    cg = cg_start(gradient, axis=-1)
    is_done = problem.is_minimum(cg.gamma, residual) | (cg.gamma == 0)

    def is_unfinished(state):
        *_, is_done, step = state
        return (step < max_steps) & ~is_done.all()

    def advance(state):
        weights, longest, residual, cg, is_done, step = state
        image = jnp.where(problem.mask, product(cg.p, problem.gram), 0)
        curvature = jnp.sum((cg.p.conj() * image).real, axis=-1)
        # Directions with a curvature below this bound are rounding errors in the null
        # space.
        rounding = jnp.finfo(image.dtype).eps * problem.matrix_norm
        is_usable = ~is_done & (curvature > rounding * squared_norm(cg.p))
        alpha = step_length(cg, jnp.where(is_usable, curvature, 0))
        weights = weights + alpha[..., None] * cg.p
        longest = jnp.maximum(longest, alpha)
        # In exact arithmetic, the squared residual falls by α ‖s‖².
        residual = residual - alpha * cg.gamma
        cg = cg_step(cg, cg.s - alpha[..., None] * image, axis=-1)
        enough = jnp.maximum(problem.tolerance * residual, problem.noise)
        is_done = is_done | (cg.gamma <= enough) | ~is_usable
        return weights, longest, residual, cg, is_done, step + 1

    start = (weights, longest, residual, cg, is_done, 0)
    weights, longest, *_ = jax.lax.while_loop(is_unfinished, advance, start)
    return weights, longest


class LeastSquares(Decoder):
    """Decodes any code with the least error, by weights of minimum norm.

    Weights are multiplied by the norms of the rows of B, rounded to powers of two, in
    this norm, so that the scale of a message does not matter. Many masks are solved
    together by conjugate gradients. Masks without convergence are decomposed.

    A weighted code is decoded like the unweighted one, so that the error of each part
    is relative to its weight. The weighted target is fitted only if the residual
    exceeds a thousandth.

    Attributes:
      num_missing: Number of messages that may be missing for exact decoding, for every
        choice of them. On such masks, weights with a residual are replaced. 0 if the
        code guarantees nothing.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> decoder = jaxwgc.decoders.LeastSquares
      >>> jaxwgc.decoding(code, received, decoder).weights.round(3)
      Array([[1. , 0.5, 0. , 0.5]], dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017 ("optimal decoding").
    """

    num_missing: int | jax.Array = 0

    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        array_validation.check_dtypes("num_missing", self.num_missing, "integers")
        array_validation.check_number("num_missing", self.num_missing, minimum=0)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        num_missing = jnp.asarray(self.num_missing)
        weights, is_poor = least_squares_weights(
            mask, matrix, target, num_missing, has_equal_weights(target)
        )
        return solve_poor(is_poor, weights, mask, matrix, target)
