"""Communication-efficient codes against their definition and every pattern."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes._communication_efficient import _best_step, communication_efficient
from tests.conftest import random_patterns
from tests.zoo import targets


def test_decoding_of_a_hundred_workers_in_float32():
    code = communication_efficient(100, 10, 4)
    received = random_patterns(100, 10, 32)
    weights = np.asarray(jaxwgc.decoding_weights(code, received))
    # The product in float64 leaves the error of the weights themselves.
    reached = weights.astype(np.float64) @ code.encoding_matrix
    misses = np.abs(reached - targets(code)).max((1, 2))
    assert np.median(misses) < 1e-5
    assert misses.max() < 2e-2


def published_columns(num_workers, num_stragglers, num_segments, points):
    """p_i^(u)(theta_w), by the published recursion: (workers, parts, segments).

    With coefficients from the highest down, p_i^(u) has the degree n - d + u.
    """
    replication = num_stragglers + num_segments
    degree = num_workers - replication
    columns = np.zeros((num_workers, num_workers, num_segments), complex)
    for part in range(num_workers):
        without = (part + 1 + np.arange(degree)) % num_workers
        base = np.atleast_1d(np.poly(points[without])).astype(complex)
        own = base
        for segment in range(num_segments):
            columns[:, part, segment] = np.polyval(own, points)
            # x p - [coefficient of x^(n - d - 1) in p] p_i.
            below = own[len(own) - degree] if degree else 0
            own = np.append(own, 0)
            own[len(own) - len(base) :] -= below * base
    return columns


@pytest.mark.parametrize("parameters", [(5, 1, 2), (8, 2, 3), (10, 3, 2)], ids=str)
class TestDefinition:
    def turns(self, parameters):
        """Where the workers are on the circle, from 0 to 1."""
        num_workers = parameters[0]
        return (
            _best_step(*parameters)
            * np.arange(num_workers)
            % num_workers
            / (num_workers)
        )

    def row_phases(self, parameters):
        """The rows of a real code are those of polynomials times x^((1 - f) / 2)."""
        num_workers, num_stragglers, num_segments = parameters
        if num_segments % 2:
            return np.ones((num_workers, 1))
        degree = num_workers - num_stragglers - 1
        return np.exp(-1j * np.pi * degree * self.turns(parameters))[:, None]

    def test_parts_have_the_polynomials_of_the_definition(self, parameters):
        """The same space of polynomials a part, in another basis."""
        num_workers, _, num_segments = parameters
        code = communication_efficient(*parameters)
        columns = code.encoding_matrix.reshape(num_workers, num_workers, num_segments)
        points = np.exp(2j * np.pi * self.turns(parameters))
        published = published_columns(*parameters, points)
        for part in range(num_workers):
            own = columns[:, part]
            theirs = self.row_phases(parameters) * published[:, part]
            for some in (own, theirs, np.concatenate([own, theirs], axis=1)):
                assert np.linalg.matrix_rank(some, tol=1e-8) == num_segments

    def test_segments_are_the_outermost_coefficients(self, parameters):
        num_workers, num_stragglers, num_segments = parameters
        code = communication_efficient(*parameters)
        order = np.arange(num_workers - num_stragglers)
        powers = np.exp(2j * np.pi * self.turns(parameters)[:, None] * order)
        solved, residual, *_ = np.linalg.lstsq(
            self.row_phases(parameters) * powers, code.encoding_matrix, rcond=None
        )
        assert residual.max() < 1e-20
        num_high = num_segments // 2
        low, high = solved[: num_segments - num_high], solved[::-1][:num_high]
        if code.is_complex:
            found = np.concatenate([low, high])
        else:
            # The real and the imaginary parts of coefficients that are conjugate.
            np.testing.assert_allclose(high, low.conj(), atol=1e-12)
            found = np.sqrt(2) * np.concatenate([low.real, -low.imag])
        np.testing.assert_allclose(found, targets(code), atol=1e-12)


def test_one_segment_is_reed_solomon():
    """With the same points: the constant term carries the gradient."""
    code = communication_efficient(7, 2, 1)
    points = np.exp(2j * np.pi * _best_step(7, 2, 1) * np.arange(7) / 7)
    for part in range(7):
        without = points[~code.assignment[:, part]]
        values = np.prod(1 - points[:, None] / without, axis=1)
        np.testing.assert_allclose(code.encoding_matrix[:, part], values, atol=1e-13)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_shape_and_kind(data):
    num_workers = data.draw(st.integers(1, 40))
    num_stragglers = data.draw(st.integers(0, num_workers - 1))
    num_segments = data.draw(st.integers(1, num_workers - num_stragglers))
    code = communication_efficient(num_workers, num_stragglers, num_segments)
    assert code.num_workers == code.num_parts == num_workers
    assert code.num_segments == num_segments
    assert code.is_complex == (num_segments % 2 == 1)
    ahead = (np.arange(num_workers) - np.arange(num_workers)[:, None]) % num_workers
    np.testing.assert_array_equal(
        code.assignment, ahead < num_stragglers + num_segments
    )
    blocks = code.encoding_matrix.reshape(num_workers, num_workers, num_segments)
    assert np.all(blocks[~code.assignment] == 0)
    assert np.all(np.abs(blocks[code.assignment]).max(1) > 0)


def test_interleaving_keeps_entries_small():
    code = communication_efficient(100, 10, 4)
    assert math.gcd(_best_step(100, 10, 4), 100) == 1
    assert np.abs(code.encoding_matrix).max() < 20
