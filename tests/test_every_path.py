"""Segments, clusters and several messages: every path against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.codes.reference import best_mixtures, targets
from tests.compositions import CODES, KEY, every_code, sent
from tests.conftest import arrivals, every_pattern

# Those whose halves or segments leak into each other in rounds that do not decode. (The
# messages of growing sums of parts are single parts in the end: nothing to leak.)
LEAKING = (
    "segments",
    "complex segments",
    "clusters, lagrange",
    "clusters of segments",
    "partial, complex",
)


def rounds_of(code):
    """Masks, and for codes of several messages also parts that are finished."""
    masks = every_pattern(code.num_workers, code.num_workers)
    if code.messages_per_worker == 1:
        return masks[::3] if code.num_workers > 6 else masks
    loads = np.asarray(code.loads)
    finished = np.random.default_rng(0).integers(0, loads + 1, (60, len(loads)))
    finished[0] = 0
    finished[1] = loads
    # Counts that cannot be, of which a traced one is no answer.
    finished[2] = loads + 3
    finished[3] = -1
    return finished


def gradients_of(code, dtype, seed=0):
    """Seven or eight numbers, that no blocks divide, one leaf being empty."""
    draw = np.random.default_rng(seed).normal
    shapes = {"matrix": (2, 2), "nothing": (0, 3), "vector": (2,), "number": ()}
    if code.num_segments == 1:
        shapes["other"] = ()
    return {
        name: draw(size=(code.num_parts, *shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def raveled(tree, batch_axes=1):
    """The leaves side by side, in the order of jax.tree."""
    leaves = [np.float64(leaf) for leaf in jax.tree.leaves(tree)]
    shape = leaves[0].shape[:batch_axes]
    return np.concatenate([leaf.reshape(*shape, -1) for leaf in leaves], axis=-1)


def messages_by_hand(code, flat):
    """What workers send: the gradients in blocks, a pair of which is one number."""
    segments, halves = code.num_segments, 2 if code.is_complex else 1
    length = -(-flat.shape[1] // (segments * halves))
    padded = np.zeros((len(flat), segments * halves * length))
    padded[:, : flat.shape[1]] = flat
    blocks = padded.reshape(len(flat) * segments, halves, length)
    rows = blocks[:, 0] + 1j * blocks[:, 1] if halves == 2 else blocks[:, 0]
    return np.asarray(code.encoding_matrix) @ rows


def decoded_by_hand(code, weights, messages, size):
    rows = weights.reshape(code.num_segments, -1) @ messages
    if code.is_complex:
        rows = np.stack([rows.real, rows.imag], axis=1)
    return rows.ravel()[:size]


@jax.jit
def all_paths(code, received, gradients):
    """A linear loss, whose partial gradients are `gradients` wherever params are."""
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[1:], leaf.dtype), gradients)
    messages = jaxwgc.encode(code, gradients)

    def loss(params, part):
        products = jax.tree.map(lambda own, other: jnp.sum(own * other), params, part)
        return sum(jax.tree.leaves(products))

    def of_round(code, received):
        decoding = jaxwgc.decoding(code, **arrivals(received))

        def aggregated(method):
            transform = jaxwgc.coded_aggregate(
                code, stragglers.uniform(0), KEY, method=method
            )
            state = transform.init(None)
            return transform.update(gradients, state, received=decoding)

        collapsed = jaxwgc.decoded_value_and_grad(loss, code)
        value, by_collapse = collapsed(params, gradients, decoding)
        by_partials, state = aggregated("partials")
        by_messages, _ = aggregated("messages")
        return {
            "weights": jaxwgc.decoding_weights(code, decoding),
            "effective": jaxwgc.effective_weights(code, decoding),
            "error": jaxwgc.decoding_error(code, decoding),
            "residual": state.residual,
            "failed": state.num_undecodable,
            "received": state.received,
            "value": value,
            "paths": {
                "decode": jaxwgc.decode(code, messages, decoding, params),
                "collapsed": by_collapse,
                "partials": by_partials,
                "messages": by_messages,
            },
        }

    return messages, jax.vmap(of_round, (None, 0))(code, received)


def check(code, dtype, tolerance):
    received = rounds_of(code)
    arrived = sent(code, received)
    gradients = gradients_of(code, dtype)
    messages_found, found = all_paths(code, received, gradients)
    flat = raveled(gradients)
    size = flat.shape[1]

    messages = messages_by_hand(code, flat)
    assert messages_found.shape == messages.shape
    np.testing.assert_allclose(messages_found, messages, atol=tolerance, rtol=tolerance)

    shape = (len(received), code.num_segments, code.num_messages)
    if code.num_segments == 1:
        shape = shape[:1] + shape[2:]
    weights = np.asarray(found["weights"])
    assert weights.shape == shape
    weights = weights.reshape(len(received), code.num_segments, -1)
    silent = np.broadcast_to(~arrived[:, None], weights.shape)
    np.testing.assert_array_equal(weights[silent], 0)

    mixing = weights @ np.asarray(code.encoding_matrix)
    error = np.sum(np.abs(mixing - targets(code)) ** 2, (1, 2)) / code.num_segments
    scale = np.sum(np.asarray(code.target) ** 2)
    np.testing.assert_allclose(found["error"], error, atol=tolerance * scale)
    if code.decoders[0].is_optimal:
        best = best_mixtures(code, arrived) - targets(code)
        least = np.sum(np.abs(best) ** 2, (1, 2)) / code.num_segments
        np.testing.assert_allclose(error, least, atol=tolerance * scale)
    np.testing.assert_allclose(found["residual"] ** 2, error, atol=tolerance * scale)
    np.testing.assert_array_equal(
        found["failed"], np.sqrt(error) > 1e-3 * np.sqrt(scale)
    )
    own = mixing.reshape(len(received), code.num_segments, -1, code.num_segments)
    effective = np.trace(own.real, axis1=1, axis2=3) / code.num_segments
    np.testing.assert_allclose(found["effective"], effective, atol=tolerance)
    np.testing.assert_allclose(
        found["value"], effective @ flat.sum(1), atol=20 * tolerance
    )

    expected = [decoded_by_hand(code, own, messages, size) for own in weights]
    for path, tree in found["paths"].items():
        for name, leaf in tree.items():
            assert leaf.dtype == dtype
            assert leaf.shape == (len(received), *gradients[name].shape[1:])
        np.testing.assert_allclose(
            raveled(tree), expected, atol=20 * tolerance, err_msg=path
        )
    if received.dtype == bool:
        np.testing.assert_array_equal(found["received"], received)
    else:
        np.testing.assert_array_equal(found["received"], received == code.loads)
    return np.array(expected), effective @ flat, error


@every_code
def test_every_path(name, with_x64):
    """Masks that decode, and those that do not, the empty one included."""
    code = CODES[name]
    decoded, effective, error = check(code, np.float64, 1e-10)
    assert np.any(error < 1e-10)
    assert np.any(error > 0.1)
    leaks = np.abs(decoded - effective).max(1) > 0.1
    assert np.any(leaks) == (name in LEAKING)
    assert not np.any(leaks & (error < 1e-10))


@every_code
def test_every_path_of_weighted_codes(name, with_x64):
    """One compilation with the test above, since weights are arrays."""
    code = CODES[name]
    weights = np.random.default_rng(1).integers(0, 5, code.num_parts).astype(float)
    weights[0] = 0
    check(jaxwgc.weighted(code, weights), np.float64, 1e-9)


@pytest.mark.parametrize(
    "name", ["complex segments", "clusters, group", "partial, complex"]
)
def test_every_path_in_float32(name):
    check(CODES[name], np.float32, 1e-4)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 11, 12])
@pytest.mark.parametrize("name", ["segments", "complex segments"])
def test_gradients_that_blocks_do_not_divide(name, size):
    """The last segments are filled up with zeros, and cut off again."""
    code = CODES[name]
    num_blocks = code.num_segments * (2 if code.is_complex else 1)
    gradients = np.random.default_rng(0).normal(size=(code.num_parts, size))
    gradients = gradients.astype(np.float32)
    messages = jaxwgc.encode(code, gradients)
    assert messages.shape == (code.num_workers, -(-size // num_blocks))
    mask = np.arange(code.num_workers) >= code.num_stragglers
    decoded = jaxwgc.decode(code, messages, mask, jnp.zeros(size))
    assert decoded.shape == (size,)
    np.testing.assert_allclose(decoded, gradients.sum(0), atol=1e-4)
    wrong = np.zeros((code.num_workers, messages.shape[1] + 1), messages.dtype)
    with pytest.raises(ValueError, match=r"messages must have shape .* parameters"):
        jaxwgc.decode(code, wrong, mask, jnp.zeros(size))


def test_map_over_codes_in_clusters():
    """Random codes in the clusters, messages and all, under one jit."""
    gradients = np.random.default_rng(0).normal(size=(8, 3))
    masks = np.array([[1, 1, 0, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 1, 1]], bool)

    def decoded(key, mask):
        code = codes.clustered(codes.cyclic_repetition(key, 4, 1), 2)
        messages = jaxwgc.encode(code, gradients)
        return (
            jaxwgc.decode(code, messages, mask, jnp.zeros(3)),
            jaxwgc.effective_weights(code, mask),
        )

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
