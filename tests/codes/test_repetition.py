"""Uncoded, fractional and cyclic repetition."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import decoders
from tests.conftest import own_decoder, random_patterns
from tests.zoo import least_miss


def test_float32_whatever_the_norms_of_the_rows():
    """Tandon's matrices: their rows differ by orders of magnitude."""
    code = jaxwgc.codes.cyclic_repetition(jax.random.key(0), 40, 5)
    received = random_patterns(40, 5, 200)
    weights = np.asarray(jaxwgc.decoding_weights(code, received), float)
    matrix = np.asarray(code.encoding_matrix, np.float32)
    found = np.linalg.norm(weights @ matrix.astype(float) - 1, axis=1)
    least = [least_miss(matrix, np.ones((1, 40)), mask) for mask in received]
    assert np.mean(found > 1e-3 * np.sqrt(40)) < 0.05
    assert np.mean((found <= 1e-5 * np.sqrt(40)) | (found <= 3 * np.array(least))) > 0.9


class TestFractionalRepetition:
    def test_groups_are_the_workers_of_a_block(self):
        code = jaxwgc.codes.fractional_repetition(12, 2)
        [groups] = code.decoders[0].groups
        same_rows = (code.encoding_matrix[:, None] == code.encoding_matrix).all(-1)
        np.testing.assert_array_equal(groups[:, None] == groups, same_rows)
        assert code.decoders[0].is_a(decoders.Group)
        assert own_decoder(code, decoders.OneStep).scale == 4


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

    def test_vmap_over_codes(self):
        keys = jax.random.split(jax.random.key(0), 5)
        received = jnp.array([True, False, True, True, False, True, True])

        def error(key):
            code = jaxwgc.codes.cyclic_repetition(key, 7, 2)
            return jaxwgc.decoding_error(code, received), code.encoding_matrix

        errors, matrices = jax.jit(jax.vmap(error))(keys)
        assert np.all(errors < 1e-4)
        for key, matrix in zip(keys, matrices, strict=True):
            alone = jaxwgc.codes.cyclic_repetition(key, 7, 2).encoding_matrix
            np.testing.assert_allclose(matrix, alone, rtol=2e-2)


def test_uncoded_shares_parts_out_in_runs():
    code = jaxwgc.codes.uncoded(2, 6)
    expected = [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(code.encoding_matrix, expected)
    np.testing.assert_array_equal(code.assignment, expected)
    assert own_decoder(code, decoders.OneStep).scale == 2
    np.testing.assert_array_equal(
        own_decoder(code, decoders.Peeling).assignment, np.eye(2, dtype=bool)
    )
    np.testing.assert_array_equal(jaxwgc.codes.uncoded(3).encoding_matrix, np.eye(3))
