"""The balanced Reed-Solomon code against its definition and every pattern."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc


def test_matches_the_product_that_defines_it():
    code = jaxwgc.codes.reed_solomon(10, 5, 4)
    points = np.exp(2j * np.pi * code.decoders[0].positions / 10)
    for part in range(5):
        without = points[~code.assignment[:, part]]
        values = np.prod(1 - points[:, None] / without, axis=1)
        np.testing.assert_allclose(code.encoding_matrix[:, part], values, atol=1e-13)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_assignment_is_balanced(data):
    num_workers = data.draw(st.integers(1, 40))
    num_parts = data.draw(st.integers(1, 40))
    unit = num_workers // math.gcd(num_workers, num_parts)
    replication = unit * data.draw(st.integers(1, num_workers // unit))
    code = jaxwgc.codes.reed_solomon(num_workers, num_parts, replication)
    assert np.all(code.assignment.sum(0) == replication)
    assert np.all(code.parts_per_worker == num_parts * replication // num_workers)
    assert np.all((np.abs(code.encoding_matrix) > 1e-12) == code.assignment)


@pytest.mark.parametrize("num_workers", [16, 21, 25])
def test_parts_share_their_holders_where_d_and_n_minus_1_have_a_common_factor(
    num_workers,
):
    """Which is why the published order is accurate there."""
    for replication in range(1, num_workers // 2 + 1):
        code = jaxwgc.codes.reed_solomon(num_workers, num_workers, replication)
        num_supports = len(np.unique(code.assignment, axis=1).T)
        shares = math.gcd(replication, num_workers - 1) > 1
        assert (num_supports < num_workers) == shares, replication


def test_interleaving_is_the_same_code_with_workers_moved_on_the_circle():
    plain = jaxwgc.codes.reed_solomon(50, 20, 30, interleave=False)
    interleaved = jaxwgc.codes.reed_solomon(50, 20, 30)
    np.testing.assert_array_equal(plain.decoders[0].positions, np.arange(50))
    positions = interleaved.decoders[0].positions
    np.testing.assert_array_equal(np.sort(positions), np.arange(50))
    assert positions[1] != 1
    np.testing.assert_array_equal(plain.assignment, interleaved.assignment)
    # 14 orders of magnitude at n = 200, five of them here.
    assert np.abs(plain.encoding_matrix).max() > 1e5
    assert np.abs(interleaved.encoding_matrix).max() < 10


def test_interleaving_minimises_the_entries():
    code = jaxwgc.codes.reed_solomon(20, 10, 6)
    norm = np.linalg.norm(code.encoding_matrix)
    points = np.exp(2j * np.pi * np.arange(20) / 20)
    for step in range(1, 20):
        if math.gcd(step, 20) == 1:
            own = points[step * np.arange(20) % 20]
            factors = 1 - own[:, None] / own
            other = np.stack(
                [factors[:, ~column].prod(axis=1) for column in code.assignment.T], 1
            )
            assert norm <= np.linalg.norm(other[code.assignment]) * (1 + 1e-9)
