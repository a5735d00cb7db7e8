"""Uncoded, fractional and cyclic repetition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxwgc
from jaxwgc import decoders
from tests.codes.reference import padded
from tests.conftest import every_pattern, own_decoder, random_patterns, row_scales
from tests.strategies import least_miss

decoding_weights = jax.jit(jaxwgc.decoding_weights)


def codes_of_size(num_workers):
    yield jaxwgc.codes.uncoded(num_workers)
    for num_stragglers in range(num_workers):
        if num_workers % (num_stragglers + 1) == 0:
            yield jaxwgc.codes.fractional_repetition(num_workers, num_stragglers)
        yield jaxwgc.codes.cyclic_repetition(
            jax.random.key(1), num_workers, num_stragglers
        )


@pytest.mark.parametrize("num_workers", range(1, 11))
def test_every_pattern_decodes_for_all_valid_parameters(num_workers, with_x64):
    for code in codes_of_size(num_workers):
        received = np.zeros((2**10, 10), bool)
        received[:, :num_workers] = True
        patterns = every_pattern(num_workers, code.num_stragglers)
        received[: len(patterns), :num_workers] = patterns
        # Not jitted here: what is jitted inside does not depend on the tolerance.
        weights = np.asarray(jaxwgc.decoding_weights(padded(code, 10, 10), received))
        assert np.all(weights[~received] == 0)
        reached = weights[:, :num_workers] @ code.encoding_matrix
        assert np.abs(reached - 1).max() < 1e-10, code


def test_weights_are_those_of_the_pseudo_inverse(with_x64):
    code = jaxwgc.codes.cyclic_repetition(jax.random.key(3), 8, 3)
    received = every_pattern(8, 8)
    weights = np.asarray(decoding_weights(code, received))
    scales = row_scales(code.encoding_matrix)
    for mask, found in zip(received, weights, strict=True):
        rows = np.where(mask[:, None], code.encoding_matrix / scales[:, None], 0)
        expected = scipy.linalg.pinv(rows.T) @ np.ones(8) / scales
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_float32_whatever_the_norms_of_the_rows():
    """Tandon's matrices: their rows differ by orders of magnitude."""
    code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 40, 5)
    received = random_patterns(40, 5, 200)
    weights = np.asarray(decoding_weights(code, received), float)
    matrix = np.asarray(code.encoding_matrix, np.float32)
    found = np.linalg.norm(weights @ matrix.astype(float) - 1, axis=1)
    least = [least_miss(matrix, np.ones((1, 40)), mask) for mask in received]
    assert np.mean(found > 1e-3 * np.sqrt(40)) < 0.05
    assert np.mean((found <= 1e-5 * np.sqrt(40)) | (found <= 3 * np.array(least))) > 0.9


class TestFractionalRepetition:
    def test_blocks(self):
        code = jaxwgc.codes.fractional_repetition(12, 2)
        assert np.all(code.assignment.sum(0) == 3)
        assert np.all(code.assignment.sum(1) == 3)
        assert len(np.unique(code.encoding_matrix, axis=0)) == 4

    def test_groups_are_the_workers_of_a_block(self):
        code = jaxwgc.codes.fractional_repetition(12, 2)
        [groups] = code.decoders[0].groups
        same_rows = (code.encoding_matrix[:, None] == code.encoding_matrix).all(-1)
        np.testing.assert_array_equal(groups[:, None] == groups, same_rows)
        assert code.decoders[0].is_a(decoders.Group)
        assert own_decoder(code, decoders.OneStep).scale == 4

    def test_float32_at_two_hundred_workers(self):
        code = jaxwgc.codes.fractional_repetition(200, 19)
        received = random_patterns(200, 19, 20)
        weights = np.asarray(decoding_weights(code, received), np.float64)
        assert np.abs(weights @ code.encoding_matrix - 1).max() < 1e-5

    def test_a_lost_block_loses_its_parts_alone(self):
        code = jaxwgc.codes.fractional_repetition(6, 1)
        received = np.array([True, False, True, True, False, True])
        lost = ~code.assignment[received].any(axis=0)
        assert lost.sum() == 2
        weights = jaxwgc.effective_weights(code, received)
        np.testing.assert_allclose(weights, ~lost, atol=1e-6)
        error = jaxwgc.decoding_error(code, received)
        np.testing.assert_allclose(error, 2, rtol=1e-5)

    def test_bad_parameters(self):
        with pytest.raises(
            ValueError,
            match=r"num_stragglers \+ 1 must divide num_workers; got num_stragglers = "
            "2 and num_workers = 10; the nearest that work are 1 and 4",
        ):
            jaxwgc.codes.fractional_repetition(10, 2)
        with pytest.raises(ValueError, match="num_stragglers must be less than"):
            jaxwgc.codes.fractional_repetition(10, 10)
        with pytest.raises(ValueError, match="num_stragglers must be at least 0"):
            jaxwgc.codes.fractional_repetition(10, -1)


class TestCyclicRepetition:
    def test_rows_are_in_the_null_space_of_the_random_matrix(self):
        code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 12, 4)
        matrix = code.encoding_matrix
        assert np.all(np.diag(matrix) == 1)
        assert np.all((matrix != 0) == code.assignment)
        # All rows in one space of dimension n - s, which holds the vector of ones.
        assert np.linalg.matrix_rank(matrix) == 8
        ones = np.linalg.lstsq(matrix.T, np.ones(12), rcond=None)[0] @ matrix
        np.testing.assert_allclose(ones, 1, atol=1e-10)

    def test_is_the_same_whatever_the_precision_and_the_kind_of_key(self, make_key):
        here = jaxwgc.codes.cyclic_repetition(make_key(5), 9, 3).encoding_matrix
        with jax.enable_x64(True):
            there = jaxwgc.codes.cyclic_repetition(jax.random.key(5), 9, 3)
        assert here.dtype == np.float64
        np.testing.assert_array_equal(here, there.encoding_matrix)

    def test_vmap_over_codes(self, x64):
        keys = jax.random.split(jax.random.key(0), 5)
        received = jnp.array([True, False, True, True, False, True, True])

        def error(key):
            code = jaxwgc.codes.cyclic_repetition(key, 7, 2)
            return jaxwgc.decoding_error(code, received), code.encoding_matrix

        errors, matrices = jax.jit(jax.vmap(error))(keys)
        assert np.all(errors < (1e-16 if x64 else 1e-4))
        for key, matrix in zip(keys, matrices, strict=True):
            alone = jaxwgc.codes.cyclic_repetition(key, 7, 2).encoding_matrix
            np.testing.assert_allclose(matrix, alone, rtol=1e-9 if x64 else 2e-2)

    def test_bad_arguments(self):
        key = jax.random.key(0)
        with pytest.raises(ValueError, match="num_stragglers must be less than"):
            jaxwgc.codes.cyclic_repetition(key, 4, 4)
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            jaxwgc.codes.cyclic_repetition(4, 4, 1)
        with pytest.raises(TypeError, match="key must be a PRNG key"):
            jaxwgc.codes.cyclic_repetition(np.zeros(2), 4, 1)
        with pytest.raises(ValueError, match="key must be one key"):
            jaxwgc.codes.cyclic_repetition(jax.random.split(key), 4, 1)


@pytest.mark.parametrize("load", [1, 3])
def test_uncoded_keeps_what_answers(load):
    code = jaxwgc.codes.uncoded(5, 5 * load)
    received = np.array([True, False, True, True, False])
    np.testing.assert_array_equal(
        jaxwgc.effective_weights(code, received), received.repeat(load)
    )
    assert jaxwgc.decoding_error(code, received) == 2 * load


def test_uncoded_shares_parts_out_in_runs():
    code = jaxwgc.codes.uncoded(2, 6)
    expected = [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(code.encoding_matrix, expected)
    np.testing.assert_array_equal(code.assignment, expected)
    assert own_decoder(code, decoders.OneStep).scale == 2
    assert own_decoder(code, decoders.Peeling).batch_size == 3
    np.testing.assert_array_equal(jaxwgc.codes.uncoded(3).encoding_matrix, np.eye(3))


def test_uncoded_of_bad_parameters():
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        jaxwgc.codes.uncoded(0)
    with pytest.raises(ValueError, match="num_parts must be at least 1; got 0"):
        jaxwgc.codes.uncoded(3, 0)
    with pytest.raises(
        ValueError,
        match="num_parts must be a multiple of num_workers; got num_parts = 8 and "
        "num_workers = 3; the nearest that work are 6 and 9",
    ):
        jaxwgc.codes.uncoded(3, 8)
    with pytest.raises(TypeError, match="num_parts must be"):
        jaxwgc.codes.uncoded(3, 6.0)
