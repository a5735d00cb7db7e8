"""Every code, and every path from messages or partial gradients, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from tests import zoo
from tests.paths import all_paths, decode, gradients_of
from tests.zoo import CODES, KEY, every_code

# Those whose halves or segments leak into each other in rounds that do not decode. (The
# messages of growing sums of parts are single parts in the end: nothing to leak.)
LEAKING = (
    "reed_solomon",
    "cyclic_mds, complex",
    "communication_efficient",
    "communication_efficient, odd",
    "clustered",
    "clustered, lagrange",
    "clustered, segments",
    "partial, complex",
    "any_placement, polynomials",
    "weighted",
)
# Random codes that leave out a part, or weigh parts unequally.
NEVER_EXACT = (
    "bernoulli",
    "batch_raptor",
    "stochastic",
    "stochastic_block",
    "unequal",
    "unequal, assignment",
)


def check(name, code, tolerance):
    observed = zoo.observed_rounds(name)
    sent = zoo.messages_sent(code, observed)
    gradients = gradients_of(code, np.float64, np.random.default_rng(0))
    messages, found = all_paths(decode(code, observed), gradients)
    flat = zoo.raveled(gradients)
    rows = np.asarray(code.encoding_matrix) @ zoo.packed(code, flat)
    assert messages.shape == rows.shape
    np.testing.assert_allclose(messages, rows, atol=tolerance, rtol=tolerance)

    shape = (len(observed), code.num_segments, code.num_messages)
    weights = np.asarray(found["weights"])
    assert weights.shape == (shape if code.num_segments > 1 else shape[:1] + shape[2:])
    weights = weights.reshape(shape)
    np.testing.assert_array_equal(weights[np.broadcast_to(~sent[:, None], shape)], 0)

    mixing = weights @ np.asarray(code.encoding_matrix)
    error = zoo.squared_errors(mixing, code)
    scale = np.sum(np.asarray(code.target) ** 2)
    np.testing.assert_allclose(found["error"], error, atol=tolerance * scale)
    if code.decoders[0].is_optimal:
        least = (
            zoo.least_errors(name)
            if code is CODES[name]
            else zoo.squared_errors(zoo.best_mixtures(code, sent), code)
        )
        np.testing.assert_allclose(error, least, atol=tolerance * scale)
    effective = zoo.effective(code, mixing)
    np.testing.assert_allclose(found["effective"], effective, atol=tolerance)
    np.testing.assert_allclose(
        found["value"], effective @ flat.sum(1), atol=20 * tolerance
    )
    failed = np.sqrt(error) > 1e-3 * np.sqrt(scale)
    np.testing.assert_array_equal(found["failed"], failed)
    whole = observed if observed.dtype == bool else observed == code.parts_per_worker
    for state in found["states"]:
        np.testing.assert_allclose(
            state.residual**2, error, atol=tolerance * scale, rtol=1e-6
        )
        np.testing.assert_array_equal(state.num_undecodable, failed)
        np.testing.assert_array_equal(state.received, whole)

    expected = zoo.unpacked(code, weights @ rows, flat.shape[1])
    for path, tree in found["paths"].items():
        for leaf_name, leaf in tree.items():
            assert leaf.dtype == np.float64
            assert leaf.shape == (len(observed), *gradients[leaf_name].shape[1:])
        np.testing.assert_allclose(
            zoo.raveled(tree), expected, atol=20 * tolerance, err_msg=path
        )
    return expected, effective @ flat, error


@every_code()
def test_every_path(name, with_x64):
    """Masks that decode, and those that do not, the empty one included."""
    decoded, effective, error = check(name, CODES[name], 1e-10)
    assert np.any(error < 1e-10) or name in NEVER_EXACT
    assert np.any(error > 0.1)
    leaks = np.abs(decoded - effective).max(1) > 0.1
    assert np.any(leaks) == (name in LEAKING)
    assert not np.any(leaks & (error < 1e-10))


@every_code()
def test_every_path_of_weighted_codes(name, with_x64):
    """One compilation with the test above, since weights are arrays."""
    code = CODES[name]
    weights = np.random.default_rng(1).integers(0, 5, code.num_parts).astype(float)
    weights[0] = 0
    check(name, jaxwgc.weighted(code, weights), 1e-9)


@pytest.mark.parametrize("size", [0, 1, 11])
@every_code("communication_efficient", "communication_efficient, odd")
def test_gradients_that_blocks_do_not_divide(name, size):
    """The last segments are filled up with zeros, and cut off again."""
    code = CODES[name]
    num_blocks = code.num_segments * (2 if code.is_complex else 1)
    gradients = np.random.default_rng(0).normal(size=(code.num_parts, size))
    messages = jaxwgc.encode(code, gradients.astype(np.float32))
    assert messages.shape == (code.num_workers, -(-size // num_blocks))
    weights = jaxwgc.decoding(code, np.ones(6, bool)).weights
    decoding = jaxwgc.Decoding(code, np.ones(6, bool), weights)
    decoded = decoding.combine(messages, jnp.zeros(size))
    np.testing.assert_allclose(decoded, gradients.sum(0), atol=1e-4)


def test_map_over_codes_in_clusters():
    """Random codes in the clusters, messages and all, under one jit."""
    gradients = np.random.default_rng(0).normal(size=(8, 3))
    masks = np.array([[1, 1, 0, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 1, 1]], bool)

    def decoded(key, mask):
        code = codes.clustered(codes.cyclic_repetition(key, 4, 1), 2)
        messages = jaxwgc.encode(code, gradients)
        decoding = jaxwgc.decoding(code, mask)
        return decoding.combine(messages, jnp.zeros(3)), decoding.effective_weights

    keys = jax.random.split(KEY, 3)
    grid = jax.vmap(jax.vmap(decoded, (None, 0)), (0, None))
    found, weights = jax.jit(grid)(keys, masks)
    tolerance = 1e-3
    full = np.broadcast_to(gradients.sum(0), (3, 3))
    np.testing.assert_allclose(found[:, 0], full, atol=tolerance)
    # The cluster that lost three loses alone.
    np.testing.assert_allclose(weights[:, 1, 4:], 1, atol=tolerance)
    np.testing.assert_allclose(found, weights @ gradients, atol=tolerance)
    assert np.all(np.abs(weights[:, 1, :4] - 1).max(1) > 0.1)
