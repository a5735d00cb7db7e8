"""Cyclic MDS, Reed-Solomon and communication-efficient codes against definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwgc.codes import cyclic_mds, reed_solomon


def ahead(num_workers):
    """How far each part is ahead of each worker on the circle."""
    order = np.arange(num_workers)
    return (order - order[:, None]) % num_workers


class TestCyclicMds:
    @pytest.mark.parametrize(
        ("num_workers", "num_stragglers"), [(5, 2), (7, 3), (8, 3), (12, 11), (30, 20)]
    )
    def test_rows_are_a_polynomial_with_the_roots_of_the_definition(
        self, num_workers, num_stragglers
    ):
        row, *others = cyclic_mds(num_workers, num_stragglers).encoding_matrix
        first = (num_workers - num_stragglers + 1) // 2
        exponents = first + np.arange(num_stragglers)
        assert 0 not in exponents % num_workers
        assert abs(exponents.mean() - num_workers / 2) <= 0.5
        roots = np.exp(2j * np.pi / num_workers) ** exponents
        at_roots = np.polyval(row[: num_stragglers + 1][::-1], roots)
        np.testing.assert_allclose(at_roots, 0, atol=1e-12)
        for worker, other in enumerate(others, start=1):
            np.testing.assert_array_equal(other, np.roll(row, worker))

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_shape_kind_and_scale(self, data):
        num_workers = data.draw(st.integers(1, 60))
        num_stragglers = data.draw(st.integers(0, num_workers - 1))
        code = cyclic_mds(num_workers, num_stragglers)
        held = ahead(num_workers) <= num_stragglers
        np.testing.assert_array_equal(code.assignment, held)
        np.testing.assert_array_equal(code.encoding_matrix != 0, held)
        assert code.is_complex == ((num_workers + num_stragglers) % 2 == 0)
        if not code.is_complex:
            assert np.all(code.encoding_matrix[held] > 0)
        # All responses together: every weight is 1 / (s + 1).
        for axis in (0, 1):
            sums = code.encoding_matrix.sum(axis)
            np.testing.assert_allclose(sums, num_stragglers + 1)

    def test_coefficients_keep_their_accuracy(self):
        """Multiplying out 98 factors of n = 100 loses every digit."""
        row = cyclic_mds(100, 98).encoding_matrix[0, :99]
        # Roots are all exponents but 0 and 99, so g = (x^n - 1) / ((x - 1) (x - left)),
        # whose coefficients are those of the product of two geometric series.
        left = np.exp(2j * np.pi * 99 / 100)
        expected = (1 - left ** -np.arange(1, 100)) / (1 - 1 / left)
        np.testing.assert_allclose(row / row[0], expected, atol=1e-9)


def reed_solomon_columns(assignment, points):
    """Π (1 - x / x_i) at the points, over those of workers without the part."""
    factors = 1 - points[:, None] / points
    return np.stack([factors[:, ~column].prod(1) for column in assignment.T], axis=1)


class TestReedSolomon:
    def test_matches_the_product_that_defines_it(self):
        code = reed_solomon(10, 5, 4)
        points = np.exp(2j * np.pi * code.decoders[0].positions / 10)
        expected = reed_solomon_columns(code.assignment, points)
        np.testing.assert_allclose(code.encoding_matrix, expected, atol=1e-13)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_assignment_is_balanced(self, data):
        num_workers = data.draw(st.integers(1, 40))
        num_parts = data.draw(st.integers(1, 40))
        unit = num_workers // math.gcd(num_workers, num_parts)
        copies = unit * data.draw(st.integers(1, num_workers // unit))
        code = reed_solomon(num_workers, num_parts, copies)
        assert np.all(code.assignment.sum(0) == copies)
        assert np.all(code.parts_per_worker == num_parts * copies // num_workers)
        assert np.all((np.abs(code.encoding_matrix) > 1e-12) == code.assignment)

    @pytest.mark.parametrize("num_workers", [16, 21, 25])
    def test_parts_share_holders_where_d_and_n_minus_1_have_a_common_factor(
        self, num_workers
    ):
        """Which is why the published order is accurate there."""
        for copies in range(1, num_workers // 2 + 1):
            code = reed_solomon(num_workers, num_workers, copies)
            num_supports = len(np.unique(code.assignment, axis=1).T)
            shares = math.gcd(copies, num_workers - 1) > 1
            assert (num_supports < num_workers) == shares, copies

    def test_interleaving_is_the_same_code_with_workers_moved_on_the_circle(self):
        plain = reed_solomon(50, 20, 30, interleave=False)
        interleaved = reed_solomon(50, 20, 30)
        np.testing.assert_array_equal(plain.decoders[0].positions, np.arange(50))
        positions = interleaved.decoders[0].positions
        np.testing.assert_array_equal(np.sort(positions), np.arange(50))
        assert positions[1] != 1
        np.testing.assert_array_equal(plain.assignment, interleaved.assignment)
        # 14 orders of magnitude at n = 200, five of them here.
        assert np.abs(plain.encoding_matrix).max() > 1e5
        assert np.abs(interleaved.encoding_matrix).max() < 10

    def test_interleaving_minimises_the_entries(self):
        code = reed_solomon(20, 10, 6)
        norm = np.linalg.norm(code.encoding_matrix)
        for step in range(1, 20):
            if math.gcd(step, 20) == 1:
                points = np.exp(2j * np.pi * (step * np.arange(20) % 20) / 20)
                other = reed_solomon_columns(code.assignment, points)
                assert norm <= np.linalg.norm(other[code.assignment]) * (1 + 1e-9)


def test_cyclic_mds_rejects_a_code_without_responses():
    message = "num_stragglers must be less than num_workers; .* = 5"
    with pytest.raises(ValueError, match=message):
        cyclic_mds(5, 5)


@pytest.mark.parametrize(
    ("num_workers", "num_parts", "copies", "message"),
    [
        (10, 80, 11, "copies must be at most num_workers; .* = 11"),
        (50, 20, 11, "copies must be a multiple.* copies = 11"),
    ],
)
def test_reed_solomon_rejects_wrong_copies(num_workers, num_parts, copies, message):
    with pytest.raises(ValueError, match=message):
        reed_solomon(num_workers, num_parts, copies)
