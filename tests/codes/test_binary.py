"""Binary and fractional-repetition codes: exact by counting, for every pattern."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from jaxwgc.codes._repetition import binary
from tests.conftest import own_decoder

decoding_weights = jax.jit(jaxwgc.decoding_weights)
decoding_error = jax.jit(jaxwgc.decoding_error)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_groups_and_classes(data):
    num_workers = data.draw(st.integers(1, 40))
    num_stragglers = data.draw(st.integers(0, num_workers - 1))
    code = binary(num_workers, num_stragglers)
    assert set(np.unique(code.encoding_matrix)) <= {0.0, 1.0}
    assert code.encoding_matrix.dtype == np.float64
    np.testing.assert_array_equal(code.encoding_matrix, code.assignment)
    classes = np.arange(num_workers) % (num_stragglers + 1)
    for one in range(num_stragglers + 1):
        rows = code.assignment[classes == one]
        # The workers of a class hold every part once, in runs as even as can be.
        np.testing.assert_array_equal(rows.sum(0), 1)
        assert np.ptp(rows.sum(1)) <= 1
        held_by = rows.argmax(0)
        assert np.all(np.diff(held_by) >= 0)
    for family in code.decoders[0].groups:
        groups = sorted(set(family) - {-1})
        total = np.zeros(num_workers)
        for group in groups:
            rows = code.encoding_matrix[family == group]
            assert np.all(rows == rows[0])
            total += rows[0]
        np.testing.assert_array_equal(total, 1)
    # Every worker is in the family of its class, and in no other.
    np.testing.assert_array_equal((code.decoders[0].groups >= 0).sum(0), 1)
    assert len(code.decoders[0].groups) == (
        1 if num_workers % (num_stragglers + 1) == 0 else 2
    )
    assert own_decoder(code, decoders.OneStep).scale == num_workers / (
        num_stragglers + 1
    )
    np.testing.assert_array_equal(
        own_decoder(code, decoders.Peeling).assignment, code.assignment
    )


def test_is_fractional_repetition_where_that_exists():
    ours = binary(12, 2)
    theirs = jaxwgc.codes.fractional_repetition(12, 2)
    order = np.lexsort(ours.encoding_matrix.T[::-1])
    their_order = np.lexsort(theirs.encoding_matrix.T[::-1])
    np.testing.assert_array_equal(
        ours.encoding_matrix[order], theirs.encoding_matrix[their_order]
    )
