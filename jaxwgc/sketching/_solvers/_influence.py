"""Regression diagnostics of least squares, from residuals and leverage scores."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.factors import (
    WELL_CONDITIONED,
    Factors,
    NumericalRank,
    rank_cutoff,
)
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    compiled,
    row_system_of,
    warn_of_precision,
)
from jaxwgc.sketching._linalg.matrix import RowMatrix
from jaxwgc.sketching._linalg.projector import (
    as_scores,
    orthonormaliser,
    without_derivative,
)
from jaxwgc.sketching._linalg.refinement import Problem
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._solvers._preconditioned import (
    MAX_ITERATIONS,
    preconditioner_of,
    refined,
)
from jaxwgc.sketching._solvers._solution import (
    implicit_solution,
    in_units,
    to_unit_size,
)

# Rounding error of a number near 1, in machine epsilons. Leverage scores, and shares of
# one row in all squared residuals, count as 1 if they are within this distance of 1.
_ROUNDING = 100


class StandardErrors(NamedTuple):
    """Standard errors of the coefficients by several estimators; see `influence`."""

    classical: Array
    hc0: Array
    hc1: Array
    hc2: Array
    hc3: Array


class Influence(NamedTuple):
    """Diagnostics of a least-squares fit; see `influence`."""

    coefficients: Array
    residuals: Array
    leverage: Array
    leave_one_out_residuals: Array
    standardized_residuals: Array
    studentized_residuals: Array
    cooks_distance: Array
    dffits: Array
    standard_errors: StandardErrors
    residual_variance: Array
    degrees_of_freedom: Array
    rank: NumericalRank
    converged: Array


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
      A named tuple. Below, e are the residuals and h the leverage scores. s² is the
      residual variance, and w the weights (1 if there are none). With c targets, c is
      the last axis.

      - `coefficients`: θ, (p,) or (p, c).
      - `residuals`: e = y - Xθ, (N,) or (N, c), in the units of y, without weights.
      - `leverage`: h, (N,).
      - `leave_one_out_residuals`: e / (1 - h), (N,) or (N, c): yᵢ minus its prediction
        by the fit to all other rows (PRESS residuals).
      - `standardized_residuals`: r = √w e / (s √(1 - h)), also called internally
        studentised.
      - `studentized_residuals`: t, which is r with the s of the fit to all other rows,
        also called externally studentised: t = r √((d - 1) / (d - r²)). Infinite if r²
        is within 100 machine epsilons of d, relative to d.
      - `cooks_distance`: r² h / ((1 - h) p), with p the degrees of freedom of the fit.
      - `dffits`: t √(h / (1 - h)).
      - `standard_errors`: Those of θ, a named tuple. They are the roots of the diagonal
        of K⁺ Xᵀ diag(ω) X K⁺, with K = XᵀX + ridge I and a variance ωᵢ for each row,
        where residuals and rows of X are multiplied by √w. `classical` has ω = s²,
        which assumes that all errors have one variance. `hc0` has ω = e² (White), `hc1`
        ω = e² N / (N - p), with N - p = d, `hc2` ω = e² / (1 - h), and `hc3` ω = e² /
        (1 - h)².
      - `residual_variance`: s² = Σ w e² / d, () or (c,).
      - `degrees_of_freedom`: d = N - p, a scalar: the number of rows of positive weight
        less the rank of X, or with a ridge less the sum of the ridge leverage scores.
      - `rank`: The `numerical_rank` of √w X, with a ridge of √w X stacked on √ridge I.
      - `converged`: bool, () or (c,), whether θ passed the test of `preconditioned`.

      The weighted fit is that of √w X to √w y. Its leverage,
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
      its bias. The other quantities have the formulas above, and not the
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
    if weights is not None:
        weights = _row_numbers("weights", weights, rows)
    if leverage is not None:
        leverage = _row_numbers("leverage", leverage, rows, largest=1)
    regulariser = _arguments.regulariser(ridge, rows.dtype)
    default_rcond = rank_cutoff(rows.shape, rows.dtype)
    target, rcond = _arguments.with_cutoff(target, rcond, default_rcond)
    result = _influence(rows, target, weights, leverage, regulariser, rcond)
    # With weights, no warning is given: rows of weight 0 may lower the rank.
    if regulariser is None and weights is None:
        warn_of_precision(matrix, rows, result.rank.rank)
    return result


def _row_numbers(
    name: str, value: ArrayLike, rows: RowMatrix, largest: float = jnp.inf
) -> Array:
    """Converts weights or leverage scores to an array; rejects invalid values."""
    array = _arguments.nonnegative_array(name, value, rows.dtype, largest)
    num_rows, _ = rows.shape
    validation.check_shape(name, array, "(N,) like the rows of matrix", (num_rows,))
    if rows.is_streamed:
        array_validation.check_concrete(name, value, "Blocks are read on the host")
    return array


@compiled()
def _influence(
    matrix: RowMatrix,
    target: Array,
    weights: Array | None,
    leverage: Array | None,
    ridge: Array | None,
    rcond: Array,
) -> Influence:
    to_unit = to_unit_size(target)
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
    tolerance = jnp.asarray(4 * jnp.finfo(matrix.dtype).eps, matrix.dtype)
    problem = Problem.constant(weighted, weighted_target, ridge, tolerance)
    # The scores need factors that are more accurate than those of a preconditioner.
    preconditioner = preconditioner_of(
        problem, None, rcond, "auto", threshold=WELL_CONDITIONED
    )
    factors = preconditioner.factors
    solved = refined(problem, preconditioner, MAX_ITERATIONS)
    coefficients = implicit_solution(
        solved.solution, weighted, weighted_target, ridge, factors
    )
    inverse = orthonormaliser(weighted, factors, ridge)
    if leverage is None:
        norms = weighted.row_norms(inverse, factors.scale)
        leverage = jnp.asarray(as_scores(norms, factors.finite))
    residuals = scaled_target - matrix.mv(coefficients)
    weighted_residuals = scaled(roots, residuals)
    num_parameters = _num_parameters(factors, inverse, ridge)
    degrees_of_freedom = num_rows - num_parameters
    freedom = jnp.where(degrees_of_freedom > 0, degrees_of_freedom, jnp.nan)
    # One pass over X computes all sums. The columns of `sums` are one for
    # classical standard errors, then one per target for each of HC0, HC2 and HC3.
    squared, sums = weighted.sum_rows(
        _sums_of_block,
        factors.scale,
        _gram_inverse(factors, inverse),
        along=(weighted_residuals, leverage),
    )
    variance = squared / freedom
    deviation = jnp.sqrt(variance)
    roots_of_sums = factors.scale[:, None] * jnp.sqrt(sums)
    # Without degrees of freedom, residuals are only rounding errors.
    robust = jnp.where(freedom > 0, roots_of_sums[:, 1:], jnp.nan)
    hc0, hc2, hc3 = jnp.split(robust, 3, axis=1)
    hc0 = hc0.reshape(coefficients.shape) / to_unit
    standard_errors = StandardErrors(
        classical=jnp.multiply.outer(roots_of_sums[:, 0], deviation) / to_unit,
        hc0=hc0,
        hc1=hc0 * jnp.sqrt(num_rows / freedom),
        hc2=hc2.reshape(coefficients.shape) / to_unit,
        hc3=hc3.reshape(coefficients.shape) / to_unit,
    )
    complement = _complement(leverage)
    odds = leverage / complement
    standardized = scaled(1 / jnp.sqrt(complement), weighted_residuals) / deviation
    studentized = _studentized(standardized, degrees_of_freedom)
    return Influence(
        coefficients=coefficients / to_unit,
        residuals=residuals / to_unit,
        leverage=leverage,
        leave_one_out_residuals=scaled(1 / complement, residuals) / to_unit,
        standardized_residuals=standardized,
        studentized_residuals=studentized,
        cooks_distance=scaled(odds, standardized**2) / num_parameters,
        dffits=scaled(jnp.sqrt(odds), studentized),
        standard_errors=standard_errors,
        residual_variance=variance / to_unit / to_unit,
        degrees_of_freedom=degrees_of_freedom,
        rank=factors.rank,
        converged=in_units(solved, to_unit, factors.scale).converged,
    )


def _root(weights: Array) -> Array:
    """Computes square roots of weights, with derivative 0 at 0."""
    is_zero = weights == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, weights)))


def _num_parameters(factors: Factors, inverse: Array, ridge: Array | None) -> Array:
    """Computes the effective number of parameters: the sum of exact leverage scores.

    The sum is rank - ridge tr((XᵀX + ridge I)⁺).
    """
    rank = jnp.asarray(factors.rank.rank, factors.scale.dtype)
    if ridge is None:
        return rank
    unscaled = factors.scale[:, None] * inverse
    return rank - jnp.sum(ridge * unscaled * unscaled)


def _gram_inverse(factors: Factors, inverse: Array) -> Array:
    """Computes a generalised inverse of the scaled Gram matrix with its ridge.

    It is E for which θ = diag(scale) E diag(scale) Xᵀy. It is a generalised inverse
    of the Gram matrix of the scaled columns of X stacked on √ridge I. If X has a
    null space, it is the one of minimum-norm solutions.
    """

    def of_minimum_norm() -> Array:
        return without_derivative(factors.direction(inverse.T, factors.row_space()))

    def of_full_rank() -> Array:
        return product(inverse, inverse.T)

    return lax.cond(factors.has_null_space, of_minimum_norm, of_full_rank)


def _complement(leverage: Array) -> Array:
    """Computes 1 minus each leverage score; NaN if a score is 1 up to rounding."""
    rest = 1 - leverage
    rounding = _ROUNDING * jnp.finfo(leverage.dtype).eps
    return jnp.where(rest > rounding, rest, jnp.nan)


def _studentized(standardized: Array, degrees_of_freedom: Array) -> Array:
    """Computes studentised residuals from standardised residuals.

    They are infinite if the fit to all other rows is exact up to rounding.
    """
    others = jnp.where(degrees_of_freedom > 1, degrees_of_freedom - 1, jnp.nan)
    rest = 1 - standardized**2 / degrees_of_freedom
    rounding = _ROUNDING * jnp.finfo(standardized.dtype).eps
    rest = jnp.where(rest <= rounding, 0, rest)
    return standardized * jnp.sqrt(others / degrees_of_freedom / rest)


def _sums_of_block(
    block: Array, residuals: Array, leverage: Array, scale: Array, gram_inverse: Array
) -> tuple[Array, Array]:
    """Sums squared residuals and terms of coefficient variances over a block of rows.

    The sums are Σ eᵢ² and Σ aᵢ² ωᵢ. Here e are the residuals times √w, and aᵢ is the
    derivative of θ / scale with respect to √wᵢ yᵢ. The variances ω are 1, e², e² / (1 -
    h) and e² / (1 - h)².
    """
    changes = product(block * scale, gram_inverse.T)
    squares = residuals**2
    columns = squares.reshape(len(squares), -1)
    rest = _complement(leverage)[:, None]
    row_variances = jnp.concatenate(
        [jnp.ones_like(rest), columns, columns / rest, columns / rest**2], axis=1
    )
    return jnp.sum(squares, axis=0), product((changes**2).T, row_variances)
