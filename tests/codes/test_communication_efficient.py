"""Communication-efficient codes against polynomials fitted to their entries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes import communication_efficient
from jaxwgc.codes._communication_efficient import _best_step
from tests.conftest import random_patterns
from tests.oracles import targets


class TestCommunicationEfficient:
    # One segment is a Reed-Solomon code, whose constant terms carry the gradient.
    @pytest.mark.parametrize(
        "parameters", [(5, 1, 2), (8, 2, 3), (10, 3, 2), (7, 2, 1)], ids=str
    )
    def test_segments_are_the_outermost_coefficients(self, parameters):
        """A polynomial has n - s coefficients; with the zeros of a column it is unique.

        The rows of a real code are those of polynomials times x^((1 - f) / 2).
        """
        num_workers, num_stragglers, num_segments = parameters
        code = communication_efficient(*parameters)
        # Where the workers are on the circle, from 0 to 1.
        turns = _best_step(*parameters) * np.arange(num_workers) % num_workers
        order = np.arange(num_workers - num_stragglers)
        order = order - (0 if num_segments % 2 else order.mean())
        powers = np.exp(2j * np.pi * turns[:, None] * order / num_workers)
        solved, residual, *_ = np.linalg.lstsq(powers, code.encoding_matrix, rcond=None)
        assert residual.max() < 1e-20
        num_high = num_segments // 2
        low = solved[: num_segments - num_high]
        high = solved[::-1][:num_high]
        if code.is_complex:
            result = np.concatenate([low, high])
        else:
            # The real and the imaginary parts of coefficients that are conjugate.
            np.testing.assert_allclose(high, low.conj(), atol=1e-12)
            result = np.sqrt(2) * np.concatenate([low.real, -low.imag])
        np.testing.assert_allclose(result, targets(code), atol=1e-12)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_shape_and_kind(self, data):
        num_workers = data.draw(st.integers(1, 40))
        num_stragglers = data.draw(st.integers(0, num_workers - 1))
        num_segments = data.draw(st.integers(1, num_workers - num_stragglers))
        code = communication_efficient(num_workers, num_stragglers, num_segments)
        assert code.num_workers == code.num_parts == num_workers
        assert code.num_segments == num_segments
        assert code.is_complex == (num_segments % 2 == 1)
        # How far each part is ahead of each worker on the circle.
        order = np.arange(num_workers)
        ahead = (order - order[:, None]) % num_workers
        held = ahead < num_stragglers + num_segments
        np.testing.assert_array_equal(code.assignment, held)
        blocks = code.encoding_matrix.reshape(num_workers, num_workers, num_segments)
        np.testing.assert_array_equal(blocks.any(2), held)

    def test_a_hundred_workers_in_float32(self):
        """Interleaving keeps entries small."""
        code = communication_efficient(100, 10, 4)
        assert math.gcd(_best_step(100, 10, 4), 100) == 1
        assert np.abs(code.encoding_matrix).max() < 20
        received = random_patterns(100, 10, 32)
        weights = np.asarray(jaxwgc.decoding(code, received).weights)
        # The product in float64 leaves the error of the weights themselves.
        reached = weights.astype(np.float64) @ code.encoding_matrix
        misses = np.abs(reached - targets(code)).max((1, 2))
        assert np.median(misses) < 1e-5
        assert misses.max() < 2e-2


@pytest.mark.parametrize(
    ("num_workers", "num_stragglers", "num_segments", "message"),
    [
        (10, 6, 5, "num_segments.* = 4; got 5"),
        (10, 10, 1, "num_stragglers must be less"),
    ],
)
def test_too_many_stragglers_or_segments_are_rejected(
    num_workers, num_stragglers, num_segments, message
):
    with pytest.raises(ValueError, match=message):
        communication_efficient(num_workers, num_stragglers, num_segments)
