"""Binary and fractional-repetition codes: exact by counting, for every pattern."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders
from jaxwgc.codes._binary import binary
from tests.codes.reference import check_round_trip, patterns_within, worst_miss
from tests.conftest import own_decoder, random_patterns

decoding_weights = jax.jit(jaxwgc.decoding_weights)
decoding_error = jax.jit(jaxwgc.decoding_error)


def whole_family(code, received):
    """For each mask whether some family has an answer in each of its groups."""
    whole = np.zeros(len(received), bool)
    for family in code.decoders[0].groups:
        answered = [received[:, family == group].any(1) for group in set(family) - {-1}]
        whole |= np.all(answered, axis=0)
    return whole


def small_codes(num_workers):
    for num_stragglers in range(num_workers):
        yield binary(num_workers, num_stragglers)
        if num_workers % (num_stragglers + 1) == 0:
            yield jaxwgc.codes.fractional_repetition(num_workers, num_stragglers)


@pytest.mark.parametrize("num_workers", range(1, 13))
def test_every_pattern_leaves_a_family_whole(num_workers):
    for code in small_codes(num_workers):
        received = patterns_within(num_workers, code.num_stragglers)
        assert whole_family(code, received).all(), code
        # And not whatever happens: without one more, some patterns break it.
        if code.num_stragglers < num_workers - 1:
            beyond = patterns_within(num_workers, code.num_stragglers + 1)
            assert not whole_family(code, beyond).all(), code


@pytest.mark.parametrize("num_workers", range(1, 11))
def test_every_pattern_decodes_by_least_squares(num_workers):
    for code in small_codes(num_workers):
        received = patterns_within(num_workers, code.num_stragglers)
        assert worst_miss(code, received).max() < 1e-9, code


@pytest.mark.parametrize("num_stragglers", [1, 6, 10, 33, 50, 99])
def test_random_patterns_of_a_hundred_workers(num_stragglers):
    code = binary(100, num_stragglers)
    received = random_patterns(100, num_stragglers, 1000)
    assert whole_family(code, received).all()


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
    assert own_decoder(code, decoders.Peeling).batch_size == 1


@pytest.mark.parametrize("make", [binary, jaxwgc.codes.fractional_repetition])
def test_decoding_is_exact_to_the_last_bit(make, x64):
    """Weights are zeros and ones, and the error is zero, not nearly zero."""
    for num_workers, num_stragglers in ((8, 1), (9, 2)):
        code = make(num_workers, num_stragglers)
        received = patterns_within(num_workers, num_stragglers)
        weights = np.asarray(decoding_weights(code, received))
        assert set(np.unique(weights)) == {0.0, 1.0}
        assert np.all(weights[~received] == 0)
        assert np.all(weights @ code.encoding_matrix == 1)
        assert np.all(decoding_error(code, received) == 0)


def test_decoding_is_exact_of_uneven_classes(x64):
    for num_workers, num_stragglers in ((5, 1), (10, 3)):
        code = binary(num_workers, num_stragglers)
        received = patterns_within(num_workers, num_stragglers)
        assert np.all(decoding_error(code, received) == 0)


def test_a_hundred_workers_in_float32():
    for num_stragglers in (6, 33):
        code = binary(100, num_stragglers)
        received = random_patterns(100, num_stragglers, 100)
        assert np.all(decoding_error(code, received) == 0)


def test_beyond_s_the_lost_parts_are_those_without_an_answer():
    code = binary(5, 1)
    received = np.array([[True, True, False, False, True]])
    # The class of workers 0, 2, 4 lost parts 2 and 3, that of 1 and 3 parts 3 and 4.
    reached = jaxwgc.effective_weights(code, received)
    assert np.asarray(reached).sum() == 3
    assert set(np.unique(reached)) == {0.0, 1.0}


def test_weighted_round_trip(x64):
    check_round_trip(binary(5, 1), patterns_within(5, 1), 1e-12 if x64 else 1e-6)


def test_is_fractional_repetition_where_that_exists():
    ours = binary(12, 2)
    theirs = jaxwgc.codes.fractional_repetition(12, 2)
    order = np.lexsort(ours.encoding_matrix.T[::-1])
    their_order = np.lexsort(theirs.encoding_matrix.T[::-1])
    np.testing.assert_array_equal(
        ours.encoding_matrix[order], theirs.encoding_matrix[their_order]
    )


def test_impossible_parameters():
    with pytest.raises(ValueError, match="num_stragglers must be less than"):
        binary(5, 5)
    with pytest.raises(ValueError, match="num_stragglers must be at least 0; got -1"):
        binary(5, -1)
    with pytest.raises(ValueError, match="num_workers must be at least 1; got 0"):
        binary(0, 0)
    with pytest.raises(TypeError, match="num_stragglers must be"):
        binary(5, True)
