"""Lewis weights: leverage scores for norms other than the Euclidean norm."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.sparse.linalg import bicgstab
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.factors import factors_of, rank_cutoff
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.monitor import Monitor
from jaxwgc.sketching._linalg.projector import at_most_one, orthonormaliser


class LewisWeights(NamedTuple):
    """Lewis weights, and the residual of their equation; see `lewis_weights`."""

    weights: Array
    num_iterations: Array
    converged: Array
    residual: Array


def lewis_weights(
    matrix: ArrayLike,
    p: ArrayLike,
    *,
    tolerance: ArrayLike | None = None,
    max_iterations: int = 1000,
    rcond: ArrayLike | None = None,
) -> LewisWeights:
    """Computes Lewis weights: leverage scores of rows for an ℓ_p norm.

    For the ℓ_p norm, wᵢ is the leverage score of row i of W^(1/2 - 1/p) X. Rows
    sampled in proportion to Lewis weights keep ‖X z‖_p for all z, as leverage
    scores do for the Euclidean norm. At p = 2 they are the leverage scores.

    Let τ be the leverage scores of W^(1/2 - 1/p) X. A step multiplies each wᵢ by a
    power of τᵢ / wᵢ: 2p / (p + 2), or p / 2 for p below 1. The power p / 2 for all p is
    the fixed-point iteration of Cohen and Peng. It contracts by |1 - p/2|, and so for p
    < 4 only. The powers here contract by |p - 2| / (p + 2) near the solution for every
    p >= 1. If a step does not lower the residual, later steps are shorter.

    Args:
      matrix: X, real, of shape (N, d), in any units; may be rank-deficient. Integers
        and bools are converted to the default float dtype, float16 and bfloat16 to
        float32.
      p: A positive number, may be traced.
      tolerance: Largest accepted residual; by default 100 √d max(1, p) machine epsilons
        of the dtype.
      max_iterations: An int of at least 1.
      rcond: Cutoff of the numerical rank, relative to the largest singular value, a
        real scalar in [0, 1), may be traced. It applies to X once, with the default of
        `leverage_scores`. Directions that only rows below the rounding of larger rows
        span are truncated.

    Returns:
      A named tuple:

      - `weights`: (N,), each in [0, 1]. They sum to the rank. A row of zeros has the
        weight 0.
      - `num_iterations`: int32 scalar, the number of steps.
      - `converged`: bool scalar, whether `residual` is at most the tolerance.
      - `residual`: scalar, the largest |log(τᵢ / wᵢ)|, the relative error. At the
        solution, the weights w equal the leverage scores τ.

      If a traced matrix has a NaN or infinity, or a traced p is not positive, all
      weights are NaN.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if a number is out of range.
      TypeError: If the matrix is complex, sparse or not numeric.

    Note:
      Every step computes the leverage scores of a matrix of the size of X, in two to
      four products with a d×d matrix.

      Derivatives are those of the exact solution of the equation, and so wrong for
      weights that have not converged. They take as many steps again.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> result = sketching.lewis_weights(matrix, 1)
      >>> print(result.weights.round(3), bool(result.converged))
      [0.5 0.5 1. ] True

    References:
      Cohen and Peng, "ℓp row sampling by Lewis weights", STOC 2015, definition 2.2 and
      section 3; Fazel, Lee, Padmanabhan and Sidford, "Computing Lewis weights to high
      precision", SODA 2022, for steps that converge for p >= 4.
    """
    matrix = _arguments.finite_matrix("matrix", matrix)
    array_validation.check_number("p", p, positive=True, finite=True)
    max_iterations = validation.check_int("max_iterations", max_iterations, minimum=1)
    dtype = matrix.dtype
    if tolerance is None:
        # The default tolerance is above the rounding errors of the residual.
        rounding = 100 * matrix.shape[1] ** 0.5 * float(jnp.finfo(dtype).eps)
        default: Array = rounding * jnp.maximum(1, p)
        tolerance = default
    array_validation.check_number("tolerance", tolerance, minimum=0)
    default_rcond = rank_cutoff(matrix.shape, dtype)
    matrix, rcond = _arguments.with_cutoff(matrix, rcond, default_rcond)
    return _lewis_weights(
        matrix,
        p=_arguments.scalar(p, dtype),
        tolerance=_arguments.scalar(tolerance, dtype),
        max_iterations=_arguments.scalar(max_iterations, jnp.int32),
        rcond=rcond,
    )


@jax.jit
def _lewis_weights(
    matrix: Array, p: Array, tolerance: Array, max_iterations: Array, rcond: Array
) -> LewisWeights:
    rows = Dense(matrix)
    method = "gram" if matrix.shape[0] >= matrix.shape[1] else "qr"
    factors = factors_of(rows, None, rcond, method, threshold=1.0)
    # X and an orthonormal basis of its columns have equal Lewis weights.
    basis = product(matrix * factors.scale, orthonormaliser(rows, factors))
    basis = jnp.where(factors.finite, basis, 0)
    valid = factors.finite & (p > 0) & jnp.isfinite(p)
    p = jnp.where(valid, p, 2)
    # Rows are stored as directions and logarithms of norms. Powers of weights then stay
    # in the range of the dtype.
    squares = jnp.sum(basis**2, axis=1)
    is_row = squares > 0
    safe_lengths = jnp.sqrt(jnp.where(is_row, squares, 1))
    directions = basis / safe_lengths[:, None]
    log_lengths = jnp.log(safe_lengths)

    def log_ratios(log_weights: Array) -> Array:
        """Computes log(leverage score / weight) of every row; 0 for rows of zeros."""
        logs = (0.5 - 1 / p) * log_weights + log_lengths
        logs = logs - jnp.max(jnp.where(is_row, logs, -jnp.inf), initial=-jnp.inf)
        roots = jnp.where(is_row, jnp.exp(jnp.where(is_row, logs, 0)), 0)
        weighted = Dense(directions * roots[:, None])
        # `norms` are the scores divided by the squares of `roots`.
        factors = factors_of(weighted, None, cutoff)
        inverse = orthonormaliser(weighted, factors)
        norms = Dense(directions).row_norms(inverse, factors.scale)
        is_positive = is_row & (norms > 0)
        log_scores = jnp.log(jnp.where(is_positive, norms, 1)) + 2 * logs
        return jnp.where(is_positive, log_scores - log_weights, 0)

    cutoff = jnp.asarray(rank_cutoff(basis.shape, basis.dtype), basis.dtype)
    mean = jnp.sum(basis**2) / jnp.maximum(jnp.sum(is_row), 1)
    start = jnp.full(squares.shape, jnp.log(jnp.where(mean > 0, mean, 1)))
    iterate = functools.partial(
        _iterate, lax.stop_gradient(p), lax.stop_gradient(tolerance), max_iterations
    )
    log_weights, (num_iterations, residual) = lax.custom_root(
        log_ratios, lax.stop_gradient(start), iterate, _solve_tangent, has_aux=True
    )
    weights = jnp.where(is_row, at_most_one(jnp.exp(log_weights)), 0)
    return LewisWeights(
        weights=jnp.where(valid, weights, jnp.nan),
        # The number of iterations is a float until here: JAX before 0.12 fails to
        # differentiate `custom_root` with an integer output.
        num_iterations=num_iterations.astype(jnp.int32),
        converged=valid & (residual <= tolerance),
        residual=jnp.where(valid, residual, jnp.nan),
    )


class _State(NamedTuple):
    """State of the fixed-point iterations of `lewis_weights`.

    Attributes:
      log_weights: Logarithms of the weights w, (N,).
      ratios: log(τ / w) of the scores τ, (N,).
      residual: The largest absolute ratio.
      shortening: Factor that shortens the next step, at most 1.
      monitor: The progress of the iterations.
    """

    log_weights: Array
    ratios: Array
    residual: Array
    shortening: Array
    monitor: Monitor


def _iterate(
    p: Array,
    tolerance: Array,
    max_iterations: Array,
    log_ratios: Callable[[Array], Array],
    start: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Iterates log weights to convergence; also returns the count and residual."""
    power = jnp.where(p < 1, p / 2, 2 * p / (p + 2))

    def step(state: _State) -> _State:
        log_weights = state.log_weights + state.shortening * power * state.ratios
        ratios = log_ratios(log_weights)
        residual = jnp.max(jnp.abs(ratios))
        shortening = jnp.where(
            residual < state.residual,
            jnp.minimum(1, 1.2 * state.shortening),
            state.shortening / 2,
        )
        # If steps have been halved this often, the remaining residual is rounding.
        monitor = state.monitor.update(
            residual, residual <= tolerance, has_stagnated=shortening <= 1e-4
        )
        return _State(log_weights, ratios, residual, shortening, monitor)

    def is_running(state: _State) -> Array:
        return state.monitor.is_running(max_iterations)

    # Ratios start at 0, so that the first step leaves the weights unchanged and only
    # computes ratios. The code for ratios is thus compiled once, in the loop.
    one = jnp.ones((), start.dtype)
    state = _State(
        log_weights=start,
        ratios=jnp.zeros_like(start),
        residual=jnp.inf * one,
        shortening=one,
        monitor=Monitor.init(one)._replace(iteration=jnp.int32(-1)),
    )
    end = lax.while_loop(is_running, step, state)
    num_iterations = end.monitor.iteration.astype(start.dtype)
    return end.log_weights, (num_iterations, end.residual)


def _solve_tangent(derivative: Callable[[Array], Array], target: Array) -> Array:
    """Solves for the derivative of the weights, by the implicit function theorem.

    The derivative of the equation has eigenvalues from -1 to -2 / p.
    """
    tolerance = 4 * float(jnp.finfo(target.dtype).eps)

    def solve(derivative: Callable[[Array], Array], target: Array) -> Array:
        solution, _ = bicgstab(derivative, target, tol=tolerance, maxiter=1000)
        return solution

    return lax.custom_linear_solve(derivative, target, solve, solve)
