"""The cyclic MDS code against its definition and every pattern."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwgc.codes._cyclic import cyclic_mds


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
