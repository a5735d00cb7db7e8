"""The cyclic MDS code against its definition and every pattern."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes._cyclic_mds import cyclic_mds
from tests.codes.reference import check_round_trip, patterns_within, worst_miss
from tests.conftest import random_patterns


@pytest.mark.parametrize("num_workers", range(1, 13))
def test_every_pattern_decodes(num_workers):
    for num_stragglers in range(num_workers):
        code = cyclic_mds(num_workers, num_stragglers)
        assert code.num_stragglers == num_stragglers
        received = patterns_within(num_workers, num_stragglers)
        assert worst_miss(code, received).max() < 1e-9, code


@pytest.mark.parametrize("num_stragglers", [0, 1, 5, 6, 10, 11])
def test_random_patterns_of_a_hundred_workers(num_stragglers):
    code = cyclic_mds(100, num_stragglers)
    misses = worst_miss(code, random_patterns(100, num_stragglers, 200))
    # Rare runs of neighbours that straggle together cost more digits.
    assert np.quantile(misses, 0.99) < 1e-9
    assert misses.max() < (1e-9 if num_stragglers < 10 else 1e-7)


@pytest.mark.parametrize(
    ("num_workers", "num_stragglers"), [(5, 2), (7, 3), (8, 3), (12, 11), (30, 20)]
)
def test_rows_are_a_polynomial_with_the_roots_of_the_definition(
    num_workers, num_stragglers
):
    code = cyclic_mds(num_workers, num_stragglers)
    omega = np.exp(2j * np.pi / num_workers)
    first = (num_workers - num_stragglers + 1) // 2
    exponents = first + np.arange(num_stragglers)
    assert 0 not in exponents % num_workers
    assert abs(exponents.mean() - num_workers / 2) <= 0.5
    polynomial = code.encoding_matrix[0, : num_stragglers + 1]
    at_roots = np.polyval(polynomial[::-1], omega**exponents)
    np.testing.assert_allclose(at_roots, 0, atol=1e-12)
    for worker in range(num_workers):
        shifted = np.roll(code.encoding_matrix[0], worker)
        np.testing.assert_array_equal(code.encoding_matrix[worker], shifted)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shape_kind_and_scale(data):
    num_workers = data.draw(st.integers(1, 60))
    num_stragglers = data.draw(st.integers(0, num_workers - 1))
    code = cyclic_mds(num_workers, num_stragglers)
    held = (np.arange(num_workers) - np.arange(num_workers)[:, None]) % num_workers
    np.testing.assert_array_equal(code.assignment, held <= num_stragglers)
    np.testing.assert_array_equal(code.encoding_matrix != 0, code.assignment)
    is_real = (num_workers + num_stragglers) % 2 == 1
    assert code.is_complex == (not is_real)
    if is_real:
        assert code.encoding_matrix.dtype == np.float64
        assert np.all(code.encoding_matrix[code.assignment] > 0)
    np.testing.assert_allclose(code.encoding_matrix.sum(1), num_stragglers + 1)
    # All answers together: every weight is 1 / (s + 1).
    np.testing.assert_allclose(code.encoding_matrix.sum(0), num_stragglers + 1)


def test_coefficients_keep_their_accuracy():
    """Multiplying out 98 factors of n = 100 loses every digit."""
    code = cyclic_mds(100, 98)
    # Roots are all exponents but 0 and 99, so g = (x^n - 1) / ((x - 1) (x - left)),
    # whose coefficients are those of the product of two geometric series.
    left = np.exp(2j * np.pi * 99 / 100)
    order = np.arange(1, 100)
    expected = (1 - left**-order) / (1 - 1 / left)
    row = code.encoding_matrix[0, :99]
    np.testing.assert_allclose(row / row[0], expected, atol=1e-9)


@pytest.mark.parametrize("num_stragglers", [2, 3], ids=["complex", "real"])
def test_weighted_round_trip(num_stragglers, x64):
    code = cyclic_mds(6, num_stragglers)
    received = patterns_within(6, num_stragglers)
    check_round_trip(code, received, 1e-9 if x64 else 1e-3)


@pytest.mark.parametrize("num_stragglers", [10, 11], ids=["complex", "real"])
def test_decoding_of_a_hundred_workers(num_stragglers, with_x64):
    code = cyclic_mds(100, num_stragglers)
    received = random_patterns(100, num_stragglers, 32)
    weights = np.asarray(jax.jit(jaxwgc.decoding_weights)(code, received))
    assert np.abs(weights @ code.encoding_matrix - 1).max() < 1e-9


def test_impossible_parameters():
    with pytest.raises(ValueError, match="num_stragglers must be less than"):
        cyclic_mds(5, 5)
    with pytest.raises(ValueError, match="num_stragglers must be at least 0; got -1"):
        cyclic_mds(5, -1)
    with pytest.raises(ValueError, match="num_workers must be at least 1; got 0"):
        cyclic_mds(0, 0)
    with pytest.raises(TypeError, match="num_workers must be"):
        cyclic_mds(5.0, 1)
