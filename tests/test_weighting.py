"""Weighted codes: of any scale and spread, in any precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from tests.conftest import every_pattern


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e18])
def test_weights_of_any_scale(scale):
    """In float32, where their squares under- or overflow."""
    code = jaxwgc.weighted(jaxwgc.codes.cyclic_mds(10, 3), np.full(10, scale))
    received = np.arange(10) >= 3
    found = jaxwgc.effective_weights(code, received)
    np.testing.assert_allclose(found, scale, rtol=1e-4)
    transform = jaxwgc.coded_aggregate(
        code, jaxwgc.stragglers.uniform(3), jax.random.key(0)
    )
    state = transform.init(None)
    for mask, num_undecodable in ((received, 0), (np.arange(10) >= 6, 1)):
        _, state = transform.update(np.ones((10, 2)), state, received=mask)
        assert state.num_undecodable == num_undecodable
    assert state.residual > 0.1 * scale


@pytest.mark.parametrize("spread", [1e3, 1e6])
@pytest.mark.parametrize(
    "code",
    [
        jaxwgc.codes.multi_message(jaxwgc.codes.fractional_repetition(6, 2)),
        jaxwgc.codes.cyclic_mds(6, 2),
        jaxwgc.codes.reed_solomon(6, 6, 3),
        jaxwgc.codes.communication_efficient(6, 2, 2),
    ],
    ids=["multi_message", "cyclic_mds", "reed_solomon", "communication_efficient"],
)
def test_light_parts_are_decoded_too(code, spread):
    """In float32, each relative to its own weight (the paper's theorem 4.1)."""
    weights = np.geomspace(1, spread, 6)
    received = every_pattern(6, 2)
    received = received[received.sum(1) >= 4]
    decode = jax.jit(jaxwgc.effective_weights)
    found = np.asarray(decode(jaxwgc.weighted(code, weights), received))
    np.testing.assert_allclose(found / weights, 1, atol=1e-4)
    order = np.random.default_rng(0).permutation(6)
    found = np.asarray(decode(jaxwgc.weighted(code, weights[order]), received))
    np.testing.assert_allclose(found / weights[order], 1, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3])
@pytest.mark.parametrize("name", ["cyclic_mds", "communication_efficient"])
def test_every_path_in_undecodable_rounds_of_weights_of_any_scale(name, scale):
    """Halves and segments leak into each other, however little the parts count."""
    code = {
        "cyclic_mds": jaxwgc.codes.cyclic_mds(6, 2),
        "communication_efficient": jaxwgc.codes.communication_efficient(6, 2, 2),
    }[name]
    code = jaxwgc.weighted(code, np.full(6, scale))
    gradients = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    params = jnp.zeros(9)
    received = np.array([True, False, True, False, False, True])
    paths = [jaxwgc.decode(code, jaxwgc.encode(code, gradients), received, params)]
    for method in ("messages", "partials"):
        transform = jaxwgc.coded_aggregate(
            code, jaxwgc.stragglers.uniform(2), jax.random.key(0), method=method
        )
        state = transform.init(params)
        paths.append(transform.update(gradients, state, params, received=received)[0])
    step = jaxwgc.decoded_value_and_grad(lambda params, part: params @ part, code)
    paths.append(step(params, gradients, received)[1])
    size = np.linalg.norm(paths[0])
    assert size > 0.1 * scale
    for path in paths[1:]:
        np.testing.assert_allclose(path, paths[0], rtol=0, atol=1e-5 * size)


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


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_weight_that_is_no_number(wrong):
    with pytest.raises(ValueError, match="weights must be finite; got"):
        jaxwgc.weighted(jaxwgc.codes.uncoded(3), np.array([1.0, wrong, 1.0]))


def test_codes_of_numpy_stay_there_and_others_keep_their_precision():
    code = jaxwgc.codes.uncoded(3)
    weights = np.array([1, 2, 1 / 3])
    on_host = jaxwgc.weighted(code, weights)
    np.testing.assert_array_equal(on_host.encoding_matrix, np.diag(weights))
    half = dataclasses.replace(code, target=jnp.ones(3, jnp.bfloat16))
    assert jaxwgc.weighted(half, weights).target.dtype == np.float32
