"""Projective planes and Paley designs: one error for every pattern of one size."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxwgc.codes import paley, projective_plane
from jaxwgc.codes._constructors import check_works, is_prime
from tests.conftest import every_pattern, random_patterns

# v, kappa, lambda
DESIGNS = {
    "plane-2": (projective_plane, 2, (7, 3, 1)),
    "plane-3": (projective_plane, 3, (13, 4, 1)),
    "plane-5": (projective_plane, 5, (31, 6, 1)),
    "plane-7": (projective_plane, 7, (57, 8, 1)),
    "paley-3": (paley, 3, (3, 1, 0)),
    "paley-7": (paley, 7, (7, 3, 1)),
    "paley-11": (paley, 11, (11, 5, 2)),
    "paley-19": (paley, 19, (19, 9, 4)),
    "paley-23": (paley, 23, (23, 11, 5)),
}


@pytest.fixture(params=DESIGNS.values(), ids=DESIGNS)
def design(request):
    constructor, argument, parameters = request.param
    return constructor(argument), *parameters


def patterns_of(v):
    """All that leave an answer where they are few, and random ones of every size."""
    if v <= 11:
        masks = every_pattern(v, v)
        return masks[masks.any(axis=1)]
    return np.concatenate(
        [random_patterns(v, stragglers, 20, seed=stragglers) for stragglers in range(v)]
    )


def test_two_workers_share_lambda_parts_and_two_parts_lambda_workers(design):
    code, v, kappa, lambda_ = design
    matrix = code.encoding_matrix
    expected = (kappa - lambda_) * np.eye(v) + lambda_
    assert matrix.shape == (v, v)
    assert set(np.unique(matrix)) == {0, 1}
    np.testing.assert_array_equal(matrix @ matrix.T, expected)
    np.testing.assert_array_equal(matrix.T @ matrix, expected)
    np.testing.assert_array_equal(matrix, code.assignment)


def test_optimal_error_depends_on_the_number_of_answers_alone(design):
    """By NumPy's least squares, in float64."""
    code, v, kappa, lambda_ = design
    for mask in patterns_of(v):
        f = mask.sum()
        rows = code.encoding_matrix[mask]
        weights = np.linalg.lstsq(rows.T, np.ones(v), rcond=None)[0]
        gram = kappa - lambda_ + lambda_ * f
        np.testing.assert_allclose(weights, kappa / gram, atol=1e-10)
        error = np.sum((weights @ rows - 1) ** 2)
        np.testing.assert_allclose(error, v - kappa**2 * f / gram, atol=1e-9)


def test_primes_are_those_of_the_sieve():
    sieve = np.ones(2000, bool)
    sieve[:2] = False
    for number in range(2, math.isqrt(2000) + 1):
        sieve[number * number :: number] = False
    found = [is_prime(number) for number in range(2000)]
    np.testing.assert_array_equal(found, sieve)


@given(
    working=st.sets(st.integers(1, 30), min_size=1),
    value=st.integers(-5, 40),
    bounded=st.booleans(),
)
def test_nearest_names_the_neighbours(working, value, bounded):
    """Of those that work, the largest below and the smallest above the value."""
    if not bounded:
        working = working | {41}
    below = [other for other in working if other < value]
    above = [other for other in working if other > value]
    neighbours = [max(below, default=None), min(above, default=None)]
    expected = [str(other) for other in neighbours if other is not None]
    if not expected:
        return
    bounds = (1, 30) if bounded else (1,)
    if value in working:
        return check_works("size", value, working.__contains__, "work", *bounds)
    with pytest.raises(ValueError, match=f"nearest: {' and '.join(expected)}$"):
        check_works("size", value, working.__contains__, "work", *bounds)
