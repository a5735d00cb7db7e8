"""Lewis weights satisfy their fixed-point equation."""

import functools

import jax
import numpy as np
import pytest

from jaxwgc.sketching import lewis_weights


@functools.cache
def cases():
    random = np.random.default_rng(0)
    gaussian = random.standard_normal((200, 6))
    coherent = gaussian.copy()
    coherent[:6] = 1e3 * np.eye(6)
    coherent[50:60] = 0
    return {
        "gaussian": (gaussian, 6),
        "rows of all sizes": (gaussian * 10 ** random.uniform(-2, 2, (200, 1)), 6),
        "coherent, zero rows": (coherent, 6),
        "rank-deficient": (gaussian[:, :3] @ random.standard_normal((3, 6)), 3),
    }


def fixed_point(matrix, weights, p, rank):
    """Leverage scores of W^(1/2 - 1/p) X in float64."""
    weights = np.asarray(weights, np.float64)
    # Weights that are zero, or too small for float32, are those of rows of no account.
    powers = np.where(weights > 0, weights, 1) ** (0.5 - 1 / p) * (weights > 0)
    weighted = powers[:, None] * matrix
    left = np.linalg.svd(weighted / np.abs(weighted).max(), full_matrices=False)[0]
    return np.sum(left[:, :rank] ** 2, axis=1)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 3.0, 3.9, 4.0, 6.0, 20.0])
def test_fixed_point(p, x64):
    for matrix, rank in cases().values():
        result = jax.tree.map(np.asarray, lewis_weights(matrix, p))
        assert result.converged
        expected = fixed_point(matrix, result.weights, p, rank)
        tolerance = 1e-11 if x64 else 2e-4
        np.testing.assert_allclose(result.weights, expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.weights.sum(), rank, rtol=tolerance)
        zero = ~matrix.any(axis=1)
        np.testing.assert_array_equal(result.weights[zero], 0)
        assert np.all(result.weights[~zero] > 0) or not x64


def test_relative_accuracy_of_small_weights(with_x64):
    matrix, rank = cases()["rows of all sizes"]
    result = lewis_weights(matrix, 3.0)
    assert np.min(result.weights) < 1e-9
    expected = fixed_point(matrix, result.weights, 3.0, rank)
    np.testing.assert_allclose(result.weights, expected, rtol=1e-9)


def test_two_gives_leverage_scores(x64):
    for matrix, rank in cases().values():
        result = lewis_weights(matrix, 2)
        expected = fixed_point(matrix, np.ones(len(matrix)), 2, rank)
        np.testing.assert_allclose(
            result.weights, expected, atol=1e-12 if x64 else 1e-5
        )
        assert result.converged and result.num_iterations <= 1


def test_large_p_counts_the_ellipse_around_all_rows(with_x64):
    """For p to infinity: weights on the rows that touch the John ellipsoid."""
    matrix = np.zeros((200, 6))
    matrix[:4, :2] = [[1.0, 0], [0, 1], [0.5, 0.5], [0.1, -0.3]]
    result = lewis_weights(matrix, 100.0)
    np.testing.assert_allclose(result.weights, [1, 1] + [0] * 198, atol=1e-6)


def test_zero_matrix_one_row_and_wide(with_x64):
    result = lewis_weights(np.zeros((200, 6)), 1.0)
    np.testing.assert_array_equal(result.weights, 0)
    assert result.converged
    np.testing.assert_allclose(lewis_weights([[3.0]], 5.0).weights, 1, atol=1e-5)
    wide = np.random.default_rng(2).standard_normal((3, 8))
    np.testing.assert_allclose(lewis_weights(wide, 1.0).weights, 1, atol=1e-4)


def test_too_few_iterations_are_told():
    matrix, _ = cases()["gaussian"]
    result = lewis_weights(matrix, 0.5, max_iterations=2)
    assert not result.converged
    assert result.num_iterations == 2 and result.residual > 1e-3
    loose = lewis_weights(matrix, 0.5, tolerance=0.1)
    assert loose.converged and loose.residual <= 0.1


def test_a_tolerance_out_of_reach_ends():
    matrix, _ = cases()["gaussian"]
    result = lewis_weights(matrix, 3.0, tolerance=0.0)
    assert result.num_iterations < 200
    assert result.residual < 1e-4


def test_jit_vmap_and_traced_values(with_x64):
    matrix = cases()["gaussian"][0]
    bad_matrix = matrix.copy()
    bad_matrix[0, 0] = np.nan
    matrices = np.stack([bad_matrix] + [matrix] * 7)
    powers = np.array([1.0, -1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 6.0])
    cutoffs = np.array([0, 0, 0, np.nan, -1, 2, 1e-12, 1e-12])
    mapped = jax.jit(jax.vmap(lambda *each: lewis_weights(*each[:2], rcond=each[2])))(
        matrices, powers, cutoffs
    )
    assert np.isnan(np.asarray(mapped.weights)[:6]).all()
    np.testing.assert_array_equal(mapped.converged, [0] * 6 + [1, 1])
    for p, weights in zip([1.0, 6.0], np.asarray(mapped.weights)[6:]):
        np.testing.assert_allclose(
            weights, lewis_weights(matrix, p).weights, atol=1e-10
        )
