"""Weights for noisy sources: against NumPy, closed forms and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays

import jaxwgc
from jaxwgc import sketching
from jaxwgc.coding import inverse_variance_weights, source_variances

VARIANCES = arrays.arrays(
    np.float64, 5, elements=strategies.floats(1e-30, 1e30, allow_subnormal=False)
)
# One shape, so that few functions are compiled.
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(6, 8, 3))


@settings(max_examples=50)
@given(VARIANCES)
def test_weights_are_those_of_numpy(variances):
    with jax.enable_x64(True):
        found = inverse_variance_weights(variances)
    inverse = variances.min() / variances
    np.testing.assert_allclose(found, inverse / inverse.mean(), rtol=1e-12)
    with jax.enable_x64(False):
        # 1 / 1e-30² would overflow in float32.
        rounded = inverse_variance_weights(variances)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, found, rtol=1e-5, atol=1e-37)


def test_weights_under_jit_vmap_and_grad(x64):
    variances = np.array([[1.0, 2, 4, 8, 16], [5.0, 5, 5, 5, 5], [1.0, 0, 1, 1, 1]])
    found = jax.jit(jax.vmap(inverse_variance_weights))(variances)
    assert found.dtype == (np.float64 if x64 else np.float32)
    inverse = 1 / variances[0]
    np.testing.assert_allclose(found[0], inverse / inverse.mean(), rtol=1e-6)
    np.testing.assert_array_equal(found[1], 1)
    assert np.isnan(found[2]).all()
    jacobian = jax.jacrev(inverse_variance_weights)(jnp.asarray(variances[0]))
    # d log w_j / d log v_l = w_l / k - 1 where l = j.
    scaled = jacobian * variances[0] / found[0][:, None]
    np.testing.assert_allclose(scaled, found[0] / 5 - np.eye(5), atol=1e-6)


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_wrong_variances(wrong):
    variances = np.array([1.0, 2.0, 3.0, wrong, 1.0])
    with pytest.raises(ValueError, match=r"variances must be positive.*\[3\] = "):
        inverse_variance_weights(variances)
    assert np.isnan(jax.jit(inverse_variance_weights)(variances)).all()


def test_traced_leverage_without_degrees_of_freedom():
    residuals = np.ones((2, 4))
    rounded = jnp.array([[0.5] * 4, [1 - 1e-7] * 4], jnp.float32)
    found = jax.jit(source_variances)(residuals, rounded)
    np.testing.assert_array_equal(found, [2, np.nan])


def test_variances_leave_filled_up_rows_out(x64):
    rows = RNG.normal(size=(11, 2))
    residuals, row_weights = jaxwgc.partition(rows[:, 0], 3)
    leverage, _ = jaxwgc.partition(rows[:, 1] ** 2 / 20, 3)
    found = jax.jit(source_variances)(residuals, leverage, row_weights)
    expected = [
        np.sum(own[:, 0] ** 2) / np.sum(1 - own[:, 1] ** 2 / 20)
        for own in np.split(rows, [4, 8])
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    single = source_variances(np.zeros((3, 4), np.float32))
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, np.zeros(3))


def projection(weights):
    """Of ordinary or weighted least squares: fitted values are H y; by NumPy."""
    matrix = ROWS.reshape(-1, 3)
    scaled = matrix * np.repeat(weights, 8)[:, None]
    return matrix @ np.linalg.solve(matrix.T @ scaled, scaled.T)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_variances_are_unbiased_where_the_docstring_says(is_weighted, with_x64):
    """By the exact law of quadratic forms, E[r²] = diag (I - H) V (I - H)ᵀ."""
    variances = np.array([1.0, 4, 9, 16, 25, 100]) if is_weighted else np.full(6, 3.0)
    weights = np.asarray(inverse_variance_weights(variances))
    annihilator = np.eye(48) - projection(weights)
    covariance = annihilator * np.repeat(variances, 8) @ annihilator.T
    rows = ROWS.reshape(-1, 3) * np.sqrt(np.repeat(weights, 8))[:, None]
    leverage = sketching.leverage_scores(rows).reshape(6, 8)
    # Root mean squares in the place of residuals give the mean of the estimate.
    means = np.sqrt(np.diag(covariance)).reshape(6, 8)
    np.testing.assert_allclose(source_variances(means, leverage), variances)
