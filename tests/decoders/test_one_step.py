"""One-step decoding: the formulas of the literature, r the number of answers."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders
from jaxwgc.decoders import OneStep
from tests.conftest import every_pattern

KEY = jax.random.key(0)
MASKS = every_pattern(7, 7)

# Each with the weight of an answer among r.
CODES = {
    "bernoulli": (codes.bernoulli(KEY, 7, 10, replication=3), lambda r: 7 / (r * 3)),
    "stochastic": (codes.stochastic(KEY, 7, 5, 3, 0.2), lambda r: 1.0),
    "projective_plane": (codes.projective_plane(2), lambda r: 7 / (r * 3)),
}


@jax.jit
def weights_and_errors(code, masks):
    return (
        jaxwgc.decoding_weights(code, masks, decoder=decoders.OneStep),
        jaxwgc.decoding_error(code, masks, decoder=decoders.OneStep),
    )


@pytest.mark.parametrize("name", CODES)
def test_weights(name):
    code, formula = CODES[name]
    found, _ = weights_and_errors(code, MASKS)
    assert found.shape == (128, 7)
    assert found.dtype == np.float32
    answers = MASKS.sum(1)
    expected = [
        np.where(mask, formula(r), 0) if r else np.zeros(7)
        for mask, r in zip(MASKS, answers, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", CODES)
def test_nobody_answers(name):
    """Zero, not 0 / 0, also for derivatives; all of the target is missed."""
    code, _ = CODES[name]
    nobody = np.zeros(7, bool)
    weights, error = weights_and_errors(code, nobody)
    np.testing.assert_array_equal(weights, 0)
    np.testing.assert_allclose(error, code.num_parts, rtol=1e-6)


def test_each_cluster_shares_among_its_own_answers():
    code = codes.clustered(codes.uncoded(3), 2)
    masks = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]], bool)
    found = jaxwgc.decoding_weights(code, masks, decoder=decoders.OneStep)
    np.testing.assert_allclose(found, [[3, 0, 0, 1.5, 1.5, 0], [0, 0, 0, 1, 1, 1]])


def test_map_over_codes():
    """Another random code for each lane, and the mean error of all as one call."""

    def error(key, mask):
        code = codes.bernoulli(key, 7, 10, replication=3)
        return code.encoding_matrix, jaxwgc.decoding_error(code, mask, OneStep)

    keys = jax.random.split(KEY, 20)
    matrices, found = jax.jit(jax.vmap(error))(keys, MASKS[100:120])
    for matrix, mask, own in zip(matrices, MASKS[100:120], found, strict=True):
        reached = 7 / (mask.sum() * 3) * np.asarray(matrix)[mask].sum(0)
        np.testing.assert_allclose(own, np.sum((reached - 1) ** 2), rtol=1e-5)
