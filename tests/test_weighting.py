"""Weighted codes: of any scale and spread, in any precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc


def test_a_weighted_code_from_double_precision_works_without_it():
    with jax.enable_x64(True):
        codes = [
            jaxwgc.weighted(code, jnp.arange(1.0, 7))
            for code in (
                jaxwgc.codes.cyclic_mds(6, 2),
                jaxwgc.codes.cyclic_repetition(jax.random.key(0), 6, 1),
                jaxwgc.codes.bernoulli(jax.random.key(0), 6, 6, replication=3),
            )
        ]
    received = np.ones(6, bool)
    for code in codes[:2]:
        found = jaxwgc.effective_weights(code, received)
        np.testing.assert_allclose(found, np.arange(1.0, 7), rtol=1e-4)
        assert jaxwgc.encode(code, jnp.ones((6, 2))).dtype in (np.float32, np.complex64)
    assert jnp.isfinite(jaxwgc.decoding_error(codes[2], received))


def test_codes_of_numpy_stay_there_and_others_keep_their_precision():
    code = jaxwgc.codes.uncoded(3)
    weights = np.array([1, 2, 1 / 3])
    on_host = jaxwgc.weighted(code, weights)
    np.testing.assert_array_equal(on_host.encoding_matrix, np.diag(weights))
    half = dataclasses.replace(code, target=jnp.ones(3, jnp.bfloat16))
    assert jaxwgc.weighted(half, weights).target.dtype == np.float32
