"""Projective planes and Paley designs: one error for every pattern of one size."""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from jaxwgc.codes import _block_designs, paley, projective_plane
from jaxwgc.codes._suggestions import nearest
from tests.conftest import every_pattern, random_patterns


@functools.partial(jax.jit, static_argnames="decoder")
def weights_and_errors(code, received, decoder=None):
    """In one program, which finds the weights once."""
    received = jaxwgc.decoding(code, received, decoder)
    return (
        jaxwgc.decoding_weights(code, received),
        jaxwgc.decoding_error(code, received),
    )


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


@pytest.mark.parametrize("name", ["plane-2", "plane-3", "paley-11", "paley-23"])
def test_the_library_decodes_to_that_error(name, x64):
    constructor, argument, (v, kappa, lambda_) = DESIGNS[name]
    code = constructor(argument)
    received = patterns_of(v)
    answers = received.sum(axis=1)
    gram = kappa - lambda_ + lambda_ * answers
    weights, errors = weights_and_errors(code, received)
    tolerance = 1e-9 if x64 else 1e-4
    expected = np.where(received, kappa / gram[:, None], 0)
    np.testing.assert_allclose(weights, expected, atol=tolerance)
    expected = v - kappa**2 * answers / gram
    np.testing.assert_allclose(errors, expected, atol=10 * tolerance)


def test_one_step_weights_are_right_on_average(design):
    """The effective weights add up to v from any answers, and all answers decode."""
    code, v, _, _ = design
    received = random_patterns(v, v // 2, 6)
    received[-1] = True
    weights, errors = weights_and_errors(code, received, decoder=decoders.OneStep)
    sums = (np.asarray(weights) @ code.encoding_matrix).sum(axis=1)
    np.testing.assert_allclose(sums, v, rtol=1e-5)
    np.testing.assert_allclose(errors[-1], 0, atol=1e-9)


def test_construction_does_not_depend_on_the_precision_setting(x64):
    for code in (projective_plane(3), paley(7)):
        assert isinstance(code.encoding_matrix, np.ndarray)
        assert code.encoding_matrix.dtype == np.float64
        assert code.assignment.dtype == np.bool_
        assert code.decoders[0].is_a(decoders.LeastSquares)
        assert code.num_stragglers == 0


@pytest.mark.parametrize(
    ("order", "near"),
    [
        (6, "are 5 and 7"),
        (4, "are 3 and 5"),
        (9, "are 7 and 11"),
        (1, "is 2"),
        (0, "is 2"),
        (-3, "is 2"),
    ],
)
def test_orders_that_are_no_primes(order, near):
    match = (
        f"order must be a prime .*got order = {order}; the nearest that work.* {near}$"
    )
    with pytest.raises(ValueError, match=match):
        projective_plane(order)


@pytest.mark.parametrize(
    ("num_workers", "near"),
    [
        (8, "are 7 and 11"),
        (5, "are 3 and 7"),
        (13, "are 11 and 19"),
        (15, "are 11 and 19"),
        (2, "is 3"),
        (-1, "is 3"),
    ],
)
def test_sizes_that_are_no_paley_primes(num_workers, near):
    match = f"got num_workers = {num_workers}; the nearest that work.* {near}$"
    with pytest.raises(ValueError, match=match):
        paley(num_workers)


@pytest.mark.parametrize("constructor", [projective_plane, paley])
@pytest.mark.parametrize("wrong", [3.0, True, "3", None])
def test_parameters_are_ints(constructor, wrong):
    with pytest.raises(TypeError, match="must be"):
        constructor(wrong)


def test_primes_are_those_of_the_sieve():
    sieve = np.ones(2000, bool)
    sieve[:2] = False
    for number in range(2, math.isqrt(2000) + 1):
        sieve[number * number :: number] = False
    found = [_block_designs._is_prime(number) for number in range(2000)]
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
    found = nearest(value, working.__contains__, 1, 30 if bounded else None)
    assert found.split(" is ")[-1].split(" are ")[-1] == " and ".join(expected)
    assert ("works is" in found) == (len(expected) == 1)
