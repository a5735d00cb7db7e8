"""Noise: parts from noisier sources are to count for less."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _validation

# Degrees of freedom of so many units of rounding a row are none.
_ROUNDING = 10


def inverse_variance_weights(variances: jax.typing.ArrayLike) -> jax.Array:
    """Weights in proportion to 1 / σ², for parts whose data have noise of variance σ².

    For `jaxwgc.weighted`: the decoded gradient is then that of weighted least squares,
    whose solution has the least variance of all linear unbiased ones. Their mean is 1,
    as that of no weights is: equal variances give ones, and where parts are alike the
    sum of the losses keeps its mean curvature, so that a step size keeps its meaning.

    Args:
      variances: σ², real (num_parts,), positive and finite; only their ratios matter.
        Of sources with several parts each, repeat them: `jnp.repeat(variances, 4)`.

    Returns:
      (num_parts,), floats of at least 32 bits. All NaN where traced variances are not
      positive and finite.

    Raises:
      ValueError: where variances have not one axis or no entry, or (where not traced)
        one is negative, NaN, infinite or zero. A source without noise would get all the
        weight, and the others none; a zero that was estimated mostly says that the fit
        went through all data of the source.
      TypeError: where variances are not real numbers.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> variances = jnp.array([1.0, 2.0, 4.0, 4.0])
      >>> weights = jaxwgc.coding.inverse_variance_weights(variances)
      >>> weights
      Array([2. , 1. , 0.5, 0.5], dtype=float32)
      >>> code = jaxwgc.weighted(jaxwgc.codes.cyclic_mds(4, num_stragglers=1), weights)

    References:
      The end of the paper's section 4; Aitken, "On least squares and linear combination
      of observations", 1936.
    """
    name, kind = "variances", "real numbers"
    given = _validation.as_array(name, variances, kind, num_parts="any")
    values = _arrays.promoted(given)
    if not _validation.is_traced(given):
        # What overflows in the dtype that is computed in is to be found, too.
        with np.errstate(over="ignore"):
            array = np.asarray(given).astype(values.dtype)
        is_right = np.isfinite(array) & (array >= np.finfo(array.dtype).tiny)
        _validation.check_entries("variances", array, is_right, "positive and finite")
    return _weights(values)


@jax.jit
def _weights(variances: jax.Array) -> jax.Array:
    """Computes from checked arguments, in one compiled function."""
    tiny = jnp.finfo(variances.dtype).tiny
    is_right = jnp.isfinite(variances) & (variances >= tiny)
    # Over the smallest, so that nothing overflows.
    ratios = jax.lax.stop_gradient(jnp.min(variances)) / variances
    return jnp.where(jnp.all(is_right), ratios / jnp.mean(ratios), jnp.nan)


def source_variances(
    residuals: jax.typing.ArrayLike,
    leverage: jax.typing.ArrayLike = 0.0,
    row_weights: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The noise variance of each source, from the residuals of a fit to all of them.

    A fit goes too near to its own data: what it takes of the degrees of freedom of a
    source is the sum of the leverage scores of the source's rows. So the sum of squared
    residuals is divided by the sum of 1 - leverage, not by the number of rows. Where
    the fit was weighted by the true variances that is unbiased (as after an unweighted
    fit where all are equal), otherwise nearly so: residuals of the least noisy sources
    also hold the error of the fit. To come nearer, weigh by the estimates, fit and
    estimate again.

    Args:
      residuals: y - Xθ without weights, real (num_sources, m).
      leverage: of each row in that fit, (num_sources, m) or one number for all. For
        least squares `jaxwgc.sketching.leverage_scores` of X, for a fit with weights of
        √w X; p / N for all is near to it where rows are alike. 0 where the residuals
        are of other data than those of the fit.
      row_weights: 1 for a row, 0 for a filled-up one, (num_sources, m), as from
        `jaxwgc.partition`. All ones by default.

    Returns:
      (num_sources,), floats of at least 32 bits. Where an argument is traced, NaN for a
      source with residuals that are none or without degrees of freedom.

    Raises:
      ValueError: where shapes do not fit, or (where not traced) a residual is NaN or
        infinite, or a source has no degrees of freedom left.
      TypeError: where an argument is not of real numbers.

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
    if row_weights is None:
        row_weights = np.ones(np.shape(residuals), np.float32)
    given = {"residuals": residuals, "leverage": leverage, "row_weights": row_weights}
    shape = "any", "any"
    for name, array in given.items():
        sizes = {"or_number": name == "leverage"}
        sizes |= dict(zip(("num_sources", "m"), shape))
        array = _validation.as_array(name, array, "real numbers or bools", **sizes)
        given[name], shape = array, np.shape(residuals)
    if not _validation.is_traced(*given.values()):
        _check_degrees(**given)
    residuals, leverage, row_weights = map(_arrays.promoted, given.values())
    if jnp.ndim(leverage) == 0:
        leverage = jnp.asarray(leverage, jnp.result_type(residuals))
    return _variances(residuals, leverage, row_weights)


def _check_degrees(**given):
    """Finite entries, and something left of every source."""
    exact = {name: np.asarray(array, np.float64) for name, array in given.items()}
    for name, array in exact.items():
        _validation.require(np.isfinite(array).all(), name, "be finite", array)
    residuals, leverage, row_weights = exact.values()
    slack = 1e-3  # of leverage scores in half precision
    is_right = np.all(np.abs(leverage - 0.5) <= 0.5 + slack)
    shown = f"{leverage.min()} to {leverage.max()}"
    _validation.require(is_right, "leverage", "be from 0 to 1", shown)
    least = row_weights.min()
    _validation.require(least >= 0, "row_weights", "be at least 0", least)
    degrees = np.sum(row_weights * (1 - leverage), axis=1)
    eps = jnp.finfo(_arrays.promoted(given["leverage"]).dtype).eps
    is_right = (degrees > _ROUNDING * eps * residuals.shape[1]).all()
    rule = "leave each source degrees of freedom, the sum of 1 - leverage over its rows"
    shown = f"{degrees.min():.3g} for source {degrees.argmin()}"
    _validation.require(is_right, "leverage", rule, shown)


@jax.jit
def _variances(residuals, leverage, row_weights):
    """Computes from checked arguments, in one compiled function."""
    squares = jnp.sum(row_weights * residuals**2, axis=1)
    degrees = jnp.sum(row_weights * (1 - leverage), axis=1)
    rounding = _ROUNDING * jnp.finfo(leverage.dtype).eps * residuals.shape[1]
    return squares / jnp.where(degrees > rounding, degrees, jnp.nan)
