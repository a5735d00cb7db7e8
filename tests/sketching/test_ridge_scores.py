"""Ridge leverage scores against formulas in float64."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching import ridge_leverage_scores
from tests.sketching.scores import NUM_COLUMNS, NUM_ROWS

SHAPES = [(NUM_ROWS, NUM_COLUMNS), (NUM_COLUMNS, 60)]


def matrix_of(shape, condition, seed=0):
    random = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
    return left * np.geomspace(1, 1 / condition, min(shape)) @ right


def reference(matrix, ridge):
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return left**2 @ (values**2 / (values**2 + ridge))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_agrees_with_svd(shape, condition):
    eps = np.finfo(np.float32).eps
    matrix = matrix_of(shape, condition).astype(np.float32)
    for ridge in (1e-12, 1e-6, 1e-3, 1.0, 100.0):
        scores = ridge_leverage_scores(matrix, ridge)
        expected = reference(matrix.astype(np.float64), ridge)
        np.testing.assert_allclose(
            scores, expected, rtol=0, atol=100 * eps * min(condition, ridge**-0.5 + 1)
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ridge", [1e-24, 1e-20, 1e-16, 1e-12, 1e-3, 100.0])
def test_tiny_ridges_of_an_ill_conditioned_matrix(shape, ridge, with_x64):
    # The normal equations, with ridge, have a condition number of 1e20 here.
    matrix = matrix_of(shape, 1e10)
    scores = ridge_leverage_scores(matrix, ridge)
    tolerance = 100 * np.finfo(float).eps * 1e10
    np.testing.assert_allclose(scores, reference(matrix, ridge), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_zero_gives_leverage_scores(shape):
    matrix = np.random.default_rng(1).standard_normal(shape)
    matrix[:, 3] = matrix[:, 0]
    scores = ridge_leverage_scores(matrix, 0.0)
    tolerance = 100 * np.finfo(np.float32).eps
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    expected = np.sum(left[:, values > 1e-9] ** 2, axis=1)
    np.testing.assert_allclose(scores, expected, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_rank_deficient_with_a_tiny_ridge(shape, x64):
    matrix = np.random.default_rng(2).standard_normal(shape)
    matrix[:, 5:] = matrix[:, :1]
    if shape[0] < shape[1]:
        matrix[5:] = matrix[:1]
    ridge = 1e-30
    scores = ridge_leverage_scores(matrix, ridge)
    left, values, _ = np.linalg.svd(matrix)
    rank = int(np.sum(values > 1e-8))
    expected = np.sum(left[:, :rank] ** 2, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-9 if x64 else 1e-5)


def test_units_of_columns_with_a_ridge(with_x64):
    units = np.array([1e-6, *[1] * (NUM_COLUMNS - 2), 1e6])
    matrix = np.random.default_rng(3).standard_normal((NUM_ROWS, NUM_COLUMNS)) * units
    ridge = 1e-10
    # In higher precision: columns are nearly orthogonal only after scaling.
    scaled = matrix / units
    inner = scaled.T @ scaled + ridge * np.diag(units**-2)
    expected = np.einsum("ij,ij->i", scaled @ np.linalg.inv(inner), scaled)
    np.testing.assert_allclose(
        ridge_leverage_scores(matrix, ridge), expected, rtol=1e-10
    )


def test_traced_ridges():
    matrix = np.random.default_rng(4).standard_normal((NUM_ROWS, NUM_COLUMNS))
    ridges = np.array([0.1, 3.0, -1.0, np.nan])
    scores = jax.jit(jax.vmap(ridge_leverage_scores, in_axes=(None, 0)))(matrix, ridges)
    expected = [ridge_leverage_scores(matrix, ridge) for ridge in ridges[:2]]
    np.testing.assert_allclose(scores[:2], expected, atol=1e-5)
    assert np.isnan(scores[2:]).all()
