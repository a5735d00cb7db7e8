"""The error of each ridge, against leaving out one row after the other."""

import jax
import numpy as np
import pytest

from jaxwgc.sketching import choose_ridge
from tests.oracles import ridge_solution
from tests.sketching.references import cross_validation_error

RIDGES = np.logspace(-2, 3, 6)


# Tall, nearly square, and wide.
@pytest.mark.parametrize("num_rows", [60, 12, 5])
def test_errors_match_their_definition(with_x64, num_rows):
    random = np.random.default_rng(0)
    # Columns in units of their own, in which the ridge is.
    matrix = random.standard_normal((num_rows, 8)) * np.logspace(-2, 1, 8)
    target = matrix @ random.standard_normal((8, 2))
    target += random.standard_normal((num_rows, 2))
    choice = choose_ridge(matrix, target, RIDGES)
    expected = [cross_validation_error(matrix, target, ridge) for ridge in RIDGES]
    np.testing.assert_allclose(choice.errors, expected, rtol=1e-7)
    assert choice.ridge == RIDGES[np.argmin(expected)]
    expected = ridge_solution(matrix, target, float(choice.ridge))
    np.testing.assert_allclose(choice.solution, expected, rtol=1e-9)


def errors_of_wide(matrix, target, ridges):
    """Errors by the inverse of the Gram matrix of the rows."""
    errors = []
    for ridge in ridges:
        inverse = np.linalg.inv(matrix @ matrix.T + ridge * np.eye(len(matrix)))
        errors.append(np.mean((inverse @ target / np.diag(inverse)) ** 2))
    return errors


def test_ridges_far_below_all_singular_values():
    """Wide matrices in float32 have solutions of minimum norm without a ridge."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((9, 30))
    target = random.standard_normal(9)
    ridges = [0, 1e-6, 1e-3]
    choice = choose_ridge(matrix, target, ridges)
    expected = errors_of_wide(matrix, target, ridges)
    np.testing.assert_allclose(choice.errors, expected, rtol=1e-5)


def test_a_row_that_no_other_row_predicts_beside_one_relation_of_the_others():
    """Rounding errors of either sign do not hide it; one of 20 matrices would show."""
    random = np.random.default_rng(0)
    ridges = [0, 1.0, 10.0]
    for _ in range(20):
        matrix = random.standard_normal((9, 30))
        matrix[0] = random.standard_normal(7) @ matrix[1:8]
        target = random.standard_normal(9)
        errors = choose_ridge(matrix, target, ridges).errors
        assert np.isinf(errors[0])
        expected = errors_of_wide(matrix, target, ridges[1:])
        np.testing.assert_allclose(errors[1:], expected, rtol=1e-4)


@pytest.mark.parametrize("num_rows", [60, 5])
def test_any_units_in_float32(num_rows):
    """Squares of singular values and of residuals are beyond its range."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((num_rows, 8))
    target = matrix[:, 0] + random.standard_normal(60)[:num_rows]
    expected = choose_ridge(matrix, target, RIDGES)
    for unit, size in ((1e-17, 1e-20), (1e17, 1e20)):
        choice = choose_ridge(matrix * unit, target * size, RIDGES * unit**2)
        assert choice.ridge == np.float32(float(expected.ridge) * unit**2)
        solution = choice.solution * np.float32(unit / size)
        bound = 1e-5 * np.abs(expected.solution).max()
        np.testing.assert_allclose(solution, expected.solution, rtol=0, atol=bound)
    # Beside ridges of 1, X of 1e-20 is nothing, and these nothing beside one of 1e20.
    for unit, size, scale in ((1e-20, 1, 1), (1e-28, 1e26, 1e15)):
        choice = choose_ridge(matrix * unit, target * size, RIDGES * scale)
        solution = choice.solution * np.float32(float(choice.ridge) / unit / size)
        np.testing.assert_allclose(solution, matrix.T @ target, rtol=1e-4)
    by_matrix = choose_ridge(matrix * 1e20, target, RIDGES)
    large = np.linalg.lstsq(matrix, target)[0]
    # Rounding errors are relative to the largest entry.
    bound = 1e-5 * np.abs(large).max()
    np.testing.assert_allclose(by_matrix.solution * 1e20, large, rtol=0, atol=bound)


def test_a_row_that_no_other_row_predicts_has_an_infinite_error_without_a_ridge():
    """A duplicated column does not change the errors."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((20, 3))
    target = random.standard_normal(20)
    matrix[:, 2] = matrix[:, 1]
    choose = jax.jit(choose_ridge)
    ridges = np.array([0.0, 1.0])
    choice = choose(matrix, target, ridges)
    expected = cross_validation_error(matrix[:, :2], target[:, None], 0.0)
    np.testing.assert_allclose(choice.errors[0], expected, rtol=1e-5)
    alone = np.zeros((20, 3))
    alone[:3, :2] = [[2, 0], [0, 1], [0, 3]]
    for rows in (alone, np.eye(20, 3) + np.eye(20, 1)):
        choice = choose(rows, target, ridges)
        assert np.isinf(choice.errors[0]) and choice.ridge == 1
    wrong = choose(matrix, target * np.nan, ridges)
    assert all(np.isnan(field).all() for field in wrong)
