"""Weighted codes, and weights of parts by the noise of their sources."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, arrays, validation
from jaxwgc.codes import GradientCode

# Machine epsilons per row, up to which the degrees of freedom of a source count as
# rounding.
_ROUNDING = 10


def weighted(code: GradientCode, weights: jax.typing.ArrayLike) -> GradientCode:
    """Returns a code that decodes to a weighted sum of the partial gradients.

    The decoded gradient is Σⱼ wⱼ gⱼ. Scales the columns of B and the target of
    decoding. Works for every code; weights of a code that is already weighted
    multiply.

    Args:
      code: Gradient code.
      weights: Real (num_parts,), e.g. the counts of a sample.

    Returns:
      A code with encoding matrix B diag(w).

    Raises:
      ValueError: If weights has the wrong shape, or (if not traced) has an entry that
        is NaN or infinite.
      TypeError: If weights are not real numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.weighted(jaxwgc.codes.uncoded(3), jnp.array([2.0, 1.0, 3.0]))
      >>> jaxwgc.decoding(code, jnp.array([True, True, True])).effective_weights
      Array([2., 1., 3.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, theorem 4.1.
    """
    GradientCode.check(code)
    factors = array_validation.as_array(
        "weights", weights, "real numbers or bools", num_parts=code.num_parts
    )
    if not array_validation.is_traced(factors):
        # Concrete weights stay in NumPy, so that codes in NumPy keep their precision.
        factors = np.asarray(factors)
        if not np.isfinite(factors).all():
            part = np.flatnonzero(~np.isfinite(factors))[0]
            raise ValueError(
                f"weights must be finite; got {factors[part]} for part {part}"
            )
    columns = factors.repeat(code.num_segments) if code.num_segments > 1 else factors
    return dataclasses.replace(
        code,
        encoding_matrix=_floats(code.encoding_matrix) * columns,
        target=_floats(code.target) * factors,
    )


def _floats(array: arrays.Array) -> arrays.Array:
    """Converts to floats, so that products of integers do not overflow."""
    if not isinstance(array, np.ndarray):
        return arrays.promoted(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def inverse_variance_weights(variances: jax.typing.ArrayLike) -> jax.Array:
    """Computes weights of parts from the variances of their noise.

    Weights are proportional to 1 / σ² for parts with noise of variance σ². With
    `jaxwgc.weighted`, the decoded gradient is the one of weighted least squares,
    the linear unbiased estimator of least variance. The weights have mean 1: equal
    variances give ones, and for similar parts the mean curvature of the loss, and
    therefore the step size, need not change.

    Args:
      variances: σ², real (num_parts,), positive and finite; only their ratios matter.
        For sources with several parts each, repeat them: `jnp.repeat(variances, 4)`.

    Returns:
      (num_parts,), floats of at least 32 bits. All NaN if traced variances are not
      positive and finite.

    Raises:
      ValueError: If variances does not have exactly one axis, is empty, or (if not
        traced) has an entry that is zero, negative, NaN or infinite. A source without
        noise would receive the whole weight. An estimate of zero usually means that the
        fit interpolates the data of the source.
      TypeError: If variances are not real numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> variances = jnp.array([1.0, 2.0, 4.0, 4.0])
      >>> weights = jaxwgc.coding.inverse_variance_weights(variances)
      >>> weights
      Array([2. , 1. , 0.5, 0.5], dtype=float32)
      >>> code = jaxwgc.weighted(jaxwgc.codes.cyclic_mds(4, num_stragglers=1), weights)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, end of section 4; Aitken, "On least squares and linear
      combination of observations", 1936.
    """
    values = array_validation.as_array(
        "variances", variances, "real numbers", num_parts="any"
    )
    # The check follows the conversion, because variances may overflow in the new dtype.
    values = arrays.promoted(values)
    if not array_validation.is_traced(values):
        is_usable = np.isfinite(values) & (values >= jnp.finfo(values.dtype).tiny)
        validation.check_entries("variances", values, is_usable, "positive and finite")
    return _weights(values)


@jax.jit
def _weights(variances: jax.Array) -> jax.Array:
    """Computes weights of checked variances, as one compiled program."""
    tiny = jnp.finfo(variances.dtype).tiny
    is_usable = jnp.isfinite(variances) & (variances >= tiny)
    # Ratios to the smallest variance cannot overflow.
    ratios = jax.lax.stop_gradient(jnp.min(variances)) / variances
    return jnp.where(jnp.all(is_usable), ratios / jnp.mean(ratios), jnp.nan)


def source_variances(
    residuals: jax.typing.ArrayLike,
    leverage: jax.typing.ArrayLike = 0.0,
    row_weights: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Estimates the noise variance of each source from the residuals of a joint fit.

    A fit follows its own data too closely: the degrees of freedom of a source are its
    number of rows minus the sum of their leverage scores. The sum of squared residuals
    is therefore divided by the sum of 1 - leverage.

    The estimate is unbiased if the fit was weighted by the true variances, or if all
    variances are equal and the fit is unweighted. Otherwise it is nearly unbiased:
    residuals of the least noisy sources contain the error of the fit. To reduce this
    bias, weight by the estimates, fit and estimate again.

    Args:
      residuals: y - Xθ without weights, real (num_sources, m).
      leverage: Leverage score of each row in that fit, (num_sources, m) or one number
        for all. For least squares `jaxwgc.sketching.leverage_scores` of X, for a
        weighted fit of √w X; for similar rows p / N is close. 0 if the residuals are
        on data that the fit has not used.
      row_weights: 1 for a row, 0 for a padded one, (num_sources, m), as from
        `jaxwgc.partition`. All ones by default.

    Returns:
      (num_sources,), floats of at least 32 bits. If an argument is traced, NaN for a
      source with invalid residuals or without degrees of freedom.

    Raises:
      ValueError: If shapes do not match, or (if not traced) a residual is NaN or
        infinite, or a source has no degrees of freedom.
      TypeError: If an argument is not real.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> residuals = jnp.array([[1.0, -1.0, 1.0, -1.0], [3.0, 3.0, -3.0, -3.0]])
      >>> jaxwgc.coding.source_variances(residuals, leverage=0.5)
      Array([ 2., 18.], dtype=float32)

    References:
      Horn, Horn, Duncan, "Estimating heteroscedastic variances in linear models",
      Journal of the American Statistical Association 70 (1975): the almost unbiased
      estimator.
    """
    rows = array_validation.as_array(
        "residuals", residuals, "real numbers or bools", num_sources="any", m="any"
    )
    num_sources, num_rows = rows.shape
    scores = array_validation.as_array(
        "leverage",
        leverage,
        "real numbers or bools",
        or_number=True,
        num_sources=num_sources,
        m=num_rows,
    )
    if row_weights is None:
        row_weights = np.ones(rows.shape, np.float32)
    counts = array_validation.as_array(
        "row_weights",
        row_weights,
        "real numbers or bools",
        num_sources=num_sources,
        m=num_rows,
    )
    rows = arrays.promoted(rows)
    scores = arrays.promoted(scores)
    counts = arrays.promoted(counts)
    if scores.ndim == 0:
        scores = jnp.asarray(scores, rows.dtype)
    variances = _variances(rows, scores, counts)
    if not array_validation.is_traced(variances):
        slack = 1e-3  # Rounding of leverage scores in half precision.
        is_share = np.abs(scores - 0.5) <= 0.5 + slack
        validation.check_entries(
            "leverage", np.asarray(scores), is_share, "from 0 to 1"
        )
        validation.check_entries("residuals", rows, np.isfinite(rows), "finite")
        validation.check_entries("row_weights", counts, counts >= 0, "at least 0")
        unknown = np.isnan(variances)
        if unknown.any():
            raise ValueError(
                "each source must have a positive sum of 1 - leverage over its rows; "
                f"got 0 for source {unknown.argmax()}. Add rows to this source"
            )
    return variances


@jax.jit
def _variances(
    residuals: jax.Array, leverage: jax.Array, row_weights: jax.Array
) -> jax.Array:
    """Computes variances for checked arguments, as one compiled program."""
    squares = jnp.sum(row_weights * residuals**2, axis=1)
    degrees = jnp.sum(row_weights * (1 - leverage), axis=1)
    rounding = _ROUNDING * jnp.finfo(leverage.dtype).eps * residuals.shape[1]
    return squares / jnp.where(degrees > rounding, degrees, jnp.nan)
