"""Regression diagnostics of least squares: the fit, its scores and the result."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.factors import WELL_CONDITIONED, Factors, rank_cutoff
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    compiled,
    row_system_of,
    warn_of_precision,
)
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix
from jaxwgc.sketching._linalg.projector import (
    as_scores,
    orthonormaliser,
    without_derivative,
)
from jaxwgc.sketching._linalg.refinement import Problem
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._solvers._diagnostics import Fit, Influence, diagnostics
from jaxwgc.sketching._solvers._preconditioners import by_factors
from jaxwgc.sketching._solvers._solution import Solution, implicit_solution, in_units

# Largest number of iterations for θ, as in `preconditioned`.
_MAX_ITERATIONS = 49


def influence(
    matrix: MatrixLike,
    target: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    ridge: ArrayLike = 0.0,
    leverage: ArrayLike | None = None,
    rcond: ArrayLike | None = None,
) -> Influence:
    """Computes regression diagnostics of a least-squares fit from leverage scores.

    The fit minimises Σ wᵢ (yᵢ - xᵢᵀθ)² + ridge ‖θ‖². All diagnostics come from this one
    fit. No row is deleted and no regression is repeated.

    X is factored once, as in `leverage_scores`, and the factors precondition the
    iterations of `preconditioned`. So residuals are as accurate as those of a QR
    factorisation, also in float32. Two further products give the scores and all
    standard errors.

    Args:
      matrix: X, (N, p), of any rank and of any kind that `leverage_scores` takes. Add a
        column of ones for an intercept.
      target: y, of shape (N,), or (N, c) for c regressions, which share the scores.
      weights: w, (N,), not negative, such as inverse variances of the errors. By
        default all 1. A row of weight 0 is not part of the fit: its residual is an
        error of prediction, and it counts in no degree of freedom.
      ridge: A non-negative number, may be traced.
      leverage: h, (N,), each in [0, 1], of X with rows multiplied by √w, if it has been
        computed before. It may be approximate, from `approximate_leverage_scores`. The
        coefficients, residuals, s², d, and the first three standard errors are exact in
        any case. By default, exact scores are computed.
      rcond: See `leverage_scores`.

    Returns:
      An `Influence`. The weighted fit is that of √w X to √w y. Its leverage,
      standardised residuals, distances and standard errors are those of these rows, as
      in R; the two other kinds of residuals have the units of y. statsmodels' influence
      of a WLS result has another leverage, without the weight of the row. A row of
      weight 0 has standardised residuals and distances of 0: look at its residual.

      If h is 1 (within 100 machine epsilons), a row alone determines its fit, and its
      deletion lowers the rank. All quantities of this row that divide by 1 - h are NaN,
      and so are HC2 and HC3. Their rounding errors are in proportion to 1 / (1 - h): in
      float32, enable x64 for rows with h above 0.99. If d is 0, s² and all standard
      errors are NaN. With d = 1, studentised residuals are 0 or NaN.

      If X is rank-deficient, θ is the minimum-norm solution, and p is the rank.

      With a ridge, h are ridge leverage scores, and p is their sum. Residuals of
      deleted rows are exact. Standard errors are those of θ as an estimator, without
      its bias. The other quantities have the formulas of `Influence`, and not the
      distributions that they have without a ridge.

      If a traced argument is not finite, negative or out of range, the result is NaN.

    Raises:
      ValueError: If shapes do not match, or entries are not finite (unless traced); if
        weights or the ridge are negative, leverage is outside [0, 1], or rcond outside
        [0, 1).
      TypeError: If an array is complex or not numeric, or the matrix is a
        `LinearOperator`.

    Note:
      Under `jax.jit`, quantities that your function does not use are not computed.

      `Blocks` are read six times: three times for factors and θ as in `preconditioned`,
      and once each for residuals, scores and standard errors.

      Derivatives are those of `leverage_scores` and `preconditioned`. If X is
      rank-deficient, standard errors have none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> steps = jnp.arange(5.0)
      >>> line = jnp.stack([jnp.ones(5), steps], axis=1)
      >>> fit = sketching.influence(line, jnp.array([1.0, 1.0, 2.0, 3.0, 9.0]))
      >>> print((100 * fit.leave_one_out_residuals).round())
      [ 350.  -57. -150. -286.  550.]
      >>> print((100 * fit.cooks_distance).round())
      [ 89.   1.   5.  30. 220.]
      >>> print((100 * fit.standard_errors.hc3).round())
      [240. 134.]

    References:
      Belsley, Kuh and Welsch, "Regression diagnostics" (1980), section 2.1, for the
      residuals and DFFITS. Cook, "Detection of influential observation in linear
      regression", Technometrics 19 (1977). MacKinnon and White, "Some
      heteroskedasticity-consistent covariance matrix estimators with improved finite
      sample properties", J. Econometrics 29 (1985), for HC1 to HC3 (there: the
      jackknife, with a slightly different factor).
    """
    rows, target = row_system_of(matrix, target)
    num_rows, num_columns = rows.shape
    if weights is not None:
        weights = _row_numbers("weights", weights, rows)
    if leverage is not None:
        leverage = _row_numbers("leverage", leverage, rows)
    regulariser = _arguments.regulariser(ridge, rows.dtype)
    default_rcond = rank_cutoff(rows.shape, rows.dtype)
    target, rcond = _arguments.with_cutoff(target, rcond, default_rcond)
    is_tall = num_rows >= 4 * num_columns
    has_gram = not rows.is_streamed and (is_tall or not isinstance(rows, Dense))
    result = _influence(
        rows,
        target,
        weights,
        leverage,
        regulariser,
        rcond,
        method="gram" if has_gram else "factor",
    )
    # With weights, no warning is given: rows of weight 0 may lower the rank.
    if regulariser is None and weights is None:
        warn_of_precision(matrix, rows, result.rank.rank)
    return result


def _row_numbers(name: str, value: ArrayLike, rows: RowMatrix) -> Array:
    """Checks and converts weights or leverage scores, (N,).

    Traced numbers out of range become NaN.
    """
    array = _arguments.finite_array(name, value)
    num_rows, _ = rows.shape
    validation.check_shape(name, array, "(N,) like the rows of matrix", (num_rows,))
    if rows.is_streamed:
        array_validation.check_concrete(name, value, "Blocks are read on the host")
    array = array.astype(rows.dtype)
    largest = 1.0 if name == "leverage" else jnp.inf
    values = conversions.concrete(value, rows.dtype)
    if values is None:
        return jnp.where((array >= 0) & (array <= largest), array, jnp.nan)
    if name == "leverage":
        is_valid = (values >= 0) & (values <= 1)
        validation.check_entries(name, values, is_valid, "between 0 and 1")
    else:
        validation.check_entries(name, values, values >= 0, "not negative")
    return array


@compiled("method")
def _influence(
    matrix: RowMatrix,
    target: Array,
    weights: Array | None,
    leverage: Array | None,
    ridge: Array | None,
    rcond: Array,
    *,
    method: str,
) -> Influence:
    # Targets are scaled to size 1 by powers of two, to avoid overflow of squares.
    largest = jnp.max(jnp.abs(lax.stop_gradient(target)), axis=0)
    to_unit = inverse_power_of_two(largest)
    scaled_target = target * to_unit
    if weights is None:
        roots = jnp.ones((), matrix.dtype)
        weighted = matrix
        num_rows = len(target)
    else:
        roots = _root(weights)
        weighted = matrix.row_scaled(roots)
        num_rows = jnp.sum(weights > 0)
    weighted_target = scaled(roots, scaled_target)
    solution, factors = _solve(weighted, weighted_target, ridge, rcond, method)
    inverse = factors.inverse
    if not matrix.is_streamed:
        inverse = orthonormaliser(weighted, factors, ridge)
    if leverage is None:
        norms = weighted.row_norms(inverse, factors.scale)
        leverage = jnp.asarray(as_scores(norms, factors.finite))
    fit = Fit(
        coefficients=solution.solution,
        residuals=scaled_target - matrix.mv(solution.solution),
        roots=roots,
        leverage=leverage,
        num_rows=num_rows,
        num_parameters=_num_parameters(factors, inverse, ridge),
        scale=factors.scale,
        gram_inverse=_gram_inverse(factors, inverse),
        rank=factors.rank,
        converged=in_units(solution, to_unit, factors.scale).converged,
        to_unit=to_unit,
    )
    return diagnostics(weighted, fit)


def _root(weights: Array) -> Array:
    """Computes √w with a derivative of 0 at w = 0."""
    is_zero = weights == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, weights)))


def _solve(
    matrix: RowMatrix,
    target: Array,
    ridge: Array | None,
    rcond: Array,
    method: str,
) -> tuple[Solution, Factors]:
    """Solves for θ, and returns the factors of X stacked on √ridge I."""
    fixed_ridge = lax.stop_gradient(ridge)
    problem = Problem(
        matrix=lax.stop_gradient(matrix),
        target=lax.stop_gradient(target),
        root_ridge=None if fixed_ridge is None else jnp.sqrt(fixed_ridge),
        tolerance=jnp.asarray(4 * jnp.finfo(matrix.dtype).eps, matrix.dtype),
    )
    # The scores need factors that are more accurate than those of a preconditioner.
    result = by_factors(
        problem, None, rcond, method, _MAX_ITERATIONS, threshold=WELL_CONDITIONED
    )
    factors = result.factors
    assert isinstance(factors, Factors)
    solution = result.unscaled()
    differentiable = implicit_solution(
        solution.solution, matrix, target, ridge, factors
    )
    return solution._replace(solution=differentiable), factors


def _num_parameters(factors: Factors, inverse: Array, ridge: Array | None) -> Array:
    """Computes the sum of the exact scores: rank - ridge tr((XᵀX + ridge I)⁺)."""
    rank = jnp.asarray(factors.rank.rank, factors.scale.dtype)
    if ridge is None:
        return rank
    unscaled = factors.scale[:, None] * inverse
    return rank - jnp.sum(ridge * unscaled * unscaled)


def _gram_inverse(factors: Factors, inverse: Array) -> Array:
    """Computes E for which θ = diag(scale) E diag(scale) Xᵀy.

    It is a generalised inverse of the Gram matrix of the scaled columns of X stacked on
    √ridge I. If X has a null space, it is the one of minimum-norm solutions.
    """

    def of_minimum_norm() -> Array:
        return without_derivative(factors.direction(inverse.T, factors.row_space()))

    def of_full_rank() -> Array:
        return product(inverse, inverse.T)

    return lax.cond(factors.has_null_space, of_minimum_norm, of_full_rank)
