"""Regression diagnostics of a fit from its residuals and leverage scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc._common.arrays import product
from jaxwgc.sketching._linalg.factors import NumericalRank
from jaxwgc.sketching._linalg.matrix import RowMatrix
from jaxwgc.sketching._linalg.rows import scaled

# A leverage within this number of machine epsilons of 1 counts as 1, since rounding
# errors are of this size. So does the share of a row in the sum of squared residuals.
_ROUNDING = 100


class StandardErrors(NamedTuple):
    """Standard errors of the coefficients, each of shape (p,) or (p, c).

    They are the roots of the diagonal of K⁺ Xᵀ diag(ω) X K⁺, with K = XᵀX + ridge I and
    a variance ωᵢ for each row. Residuals e and rows of X are multiplied by the root of
    their weight.

    Attributes:
      classical: ω = s², the residual variance. It assumes that all errors have one
        variance.
      hc0: ω = e² (White).
      hc1: ω = e² N / (N - p), with the residual degrees of freedom as N - p.
      hc2: ω = e² / (1 - h).
      hc3: ω = e² / (1 - h)².
    """

    classical: Array
    hc0: Array
    hc1: Array
    hc2: Array
    hc3: Array


class Influence(NamedTuple):
    """Diagnostics of a least-squares fit; with c targets, c is the last axis.

    Below, e are the residuals and h the leverage scores. s² is the residual variance,
    and w the weights (1 if there are none).

    Attributes:
      coefficients: θ, (p,) or (p, c).
      residuals: e = y - Xθ, (N,) or (N, c), in the units of y, without weights.
      leverage: h, (N,).
      leave_one_out_residuals: e / (1 - h), (N,) or (N, c): yᵢ minus its prediction by
        the fit to all other rows (PRESS residuals).
      standardized_residuals: r = √w e / (s √(1 - h)), also called internally
        studentised.
      studentized_residuals: t, which is r with the s of the fit to all other rows, also
        called externally studentised: t = r √((d - 1) / (d - r²)). Infinite if r² is
        within 100 machine epsilons of d, relative to d.
      cooks_distance: r² h / ((1 - h) p), with p the degrees of freedom of the fit.
      dffits: t √(h / (1 - h)).
      standard_errors: The `StandardErrors` of θ.
      residual_variance: s² = Σ w e² / d, () or (c,).
      degrees_of_freedom: d = N - p, a scalar: the number of rows of positive weight
        less the rank of X, or with a ridge less the sum of the ridge leverage scores.
      rank: The `NumericalRank` of √w X, with a ridge of √w X stacked on √ridge I.
      converged: bool, () or (c,), whether θ passed the test of `preconditioned`.
    """

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


class Fit(NamedTuple):
    """A least-squares fit to targets of unit size.

    Attributes:
      coefficients: θ, (p,) or (p, c).
      residuals: y - Xθ, (N,) or (N, c), without weights.
      roots: √w, (N,), or 1 without weights.
      leverage: h, (N,).
      num_rows: N, without rows of weight 0.
      num_parameters: The sum of the exact scores.
      scale: (p,), powers of two that scale the columns of X.
      gram_inverse: E, (p, p), for which θ = diag(scale) E diag(scale) XᵀWy: a
        generalised inverse of the Gram matrix of √w X diag(scale), with the ridge.
      rank: The `NumericalRank`, see `Influence`.
      converged: Whether θ is backward stable.
      to_unit: The powers of two that make targets unit size, () or (c,).
    """

    coefficients: Array
    residuals: Array
    roots: Array
    leverage: Array
    num_rows: Array | int
    num_parameters: Array
    scale: Array
    gram_inverse: Array
    rank: NumericalRank
    converged: Array
    to_unit: Array


def diagnostics(matrix: RowMatrix, fit: Fit) -> Influence:
    """Computes all diagnostics of a fit to X, with rows multiplied by √w."""
    degrees_of_freedom = fit.num_rows - fit.num_parameters
    weighted = scaled(fit.roots, fit.residuals)
    complement = _complement(fit.leverage)
    odds = fit.leverage / complement
    variance, errors = _variances(matrix, fit, weighted, degrees_of_freedom)
    deviation = jnp.sqrt(variance)
    standardized = scaled(1 / jnp.sqrt(complement), weighted) / deviation
    studentized = _studentized(standardized, degrees_of_freedom)
    return Influence(
        coefficients=fit.coefficients / fit.to_unit,
        residuals=fit.residuals / fit.to_unit,
        leverage=fit.leverage,
        leave_one_out_residuals=scaled(1 / complement, fit.residuals) / fit.to_unit,
        standardized_residuals=standardized,
        studentized_residuals=studentized,
        cooks_distance=scaled(odds, standardized**2) / fit.num_parameters,
        dffits=scaled(jnp.sqrt(odds), studentized),
        standard_errors=jax.tree.map(lambda error: error / fit.to_unit, errors),
        residual_variance=variance / fit.to_unit / fit.to_unit,
        degrees_of_freedom=degrees_of_freedom,
        rank=fit.rank,
        converged=fit.converged,
    )


def _complement(leverage: Array) -> Array:
    """Computes 1 - h, which is NaN if h is 1 up to rounding."""
    rest = 1 - leverage
    rounding = _ROUNDING * jnp.finfo(leverage.dtype).eps
    return jnp.where(rest > rounding, rest, jnp.nan)


def _studentized(standardized: Array, degrees_of_freedom: Array) -> Array:
    """Computes studentised residuals from standardised ones.

    They are infinite if the fit to all other rows is exact up to rounding.
    """
    others = jnp.where(degrees_of_freedom > 1, degrees_of_freedom - 1, jnp.nan)
    rest = 1 - standardized**2 / degrees_of_freedom
    rounding = _ROUNDING * jnp.finfo(standardized.dtype).eps
    rest = jnp.where(rest <= rounding, 0, rest)
    return standardized * jnp.sqrt(others / degrees_of_freedom / rest)


def _variances(
    matrix: RowMatrix, fit: Fit, residuals: Array, degrees_of_freedom: Array
) -> tuple[Array, StandardErrors]:
    """Computes s² and all standard errors, in one pass over X.

    Args:
      matrix: X, with rows multiplied by √w.
      fit: The fit.
      residuals: √w e.
      degrees_of_freedom: N - p.
    """
    squared, sums = matrix.sum_rows(
        _sums_of_block, fit.scale, fit.gram_inverse, along=(residuals, fit.leverage)
    )
    freedom = jnp.where(degrees_of_freedom > 0, degrees_of_freedom, jnp.nan)
    variance = squared / freedom
    # The columns of `sums`: one for the classical errors, then one per target for each
    # other kind.
    roots = fit.scale[:, None] * jnp.sqrt(sums)
    # Without degrees of freedom, residuals are only rounding errors.
    robust = jnp.where(freedom > 0, roots[:, 1:], jnp.nan)
    shape = fit.coefficients.shape
    hc0, hc2, hc3 = (part.reshape(shape) for part in jnp.split(robust, 3, axis=1))
    errors = StandardErrors(
        classical=jnp.multiply.outer(roots[:, 0], jnp.sqrt(variance)),
        hc0=hc0,
        hc1=hc0 * jnp.sqrt(fit.num_rows / freedom),
        hc2=hc2,
        hc3=hc3,
    )
    return variance, errors


def _sums_of_block(
    block: Array, residuals: Array, leverage: Array, scale: Array, gram_inverse: Array
) -> tuple[Array, Array]:
    """Computes the terms of one block of rows in Σ e² and in Σ ω a².

    e are the residuals times √w, and aᵢ is the derivative of θ / scale with respect to
    √wᵢ yᵢ. The variances ω are 1, e², e² / (1 - h) and e² / (1 - h)².
    """
    changes = product(block * scale, gram_inverse.T)
    squares = residuals**2
    columns = squares.reshape(len(squares), -1)
    rest = _complement(leverage)[:, None]
    row_variances = jnp.concatenate(
        [jnp.ones_like(rest), columns, columns / rest, columns / rest**2], axis=1
    )
    return jnp.sum(squares, axis=0), product((changes**2).T, row_variances)
