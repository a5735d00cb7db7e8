"""Segments, clusters and several messages: every path against NumPy."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, decoders, stragglers
from jaxwgc.coding._arrivals import arrived_messages, arrived_workers
from tests import strategies
from tests.codes.reference import best_mixtures, targets
from tests.conftest import arrivals, every_pattern

KEY = jax.random.key(0)
CODES = {
    "segments": codes.communication_efficient(6, 2, 2),
    "complex segments": codes.communication_efficient(5, 1, 3),
    "clusters, lagrange": codes.clustered(codes.reed_solomon(3, 3, 2), 2),
    "clusters, group": codes.clustered(codes.binary(3, 1), 2),
    "clusters of clusters": codes.clustered(
        codes.clustered(codes.cyclic_mds(2, 1), 2), 2
    ),
    "clusters of segments": codes.clustered(codes.communication_efficient(3, 0, 3), 2),
    "messages, complex": codes.multi_message(codes.cyclic_mds(4, 2)),
    "messages, uncoded": codes.multi_message(codes.uncoded(3, 9)),
    "partial, complex": codes.partial(codes.cyclic_mds(3, 1), 1),
    "clusters of partial": codes.clustered(
        codes.partial(codes.cyclic_repetition(KEY, 3, 1), 1), 2
    ),
    "clusters of messages": codes.clustered(
        codes.multi_message(codes.cyclic_mds(3, 1)), 2
    ),
}
SEVERAL = [name for name, code in CODES.items() if code.messages_per_worker > 1]
# Those whose halves or segments leak into each other in rounds that do not decode. (The
# messages of growing sums of parts are single parts in the end: nothing to leak.)
LEAKING = (
    "segments",
    "complex segments",
    "clusters, lagrange",
    "clusters of segments",
    "partial, complex",
)
every_code = pytest.mark.parametrize("name", CODES)


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


def sent(code, received):
    """The messages that arrive, bool (rounds, num_messages)."""
    if code.messages_per_worker == 1:
        return received
    if received.dtype == bool:
        return received.repeat(code.messages_per_worker, axis=1)
    arrived = [
        [
            code.loads[worker] >= finished[worker] >= code.required_parts[worker][turn]
            for worker in range(code.num_workers)
            for turn in range(code.messages_per_worker)
        ]
        for finished in received
    ]
    return np.array(arrived)


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
        code = strategies.decoded_once(code, **arrivals(received))

        def aggregated(method):
            transform = jaxwgc.coded_aggregate(
                code, stragglers.uniform(0), KEY, method=method
            )
            state = transform.init(None)
            return transform.update(gradients, state, **arrivals(received))

        collapsed = jaxwgc.decoded_value_and_grad(loss, code)
        value, by_collapse = collapsed(params, gradients, **arrivals(received))
        by_partials, state = aggregated("partials")
        by_messages, _ = aggregated("messages")
        return {
            "weights": jaxwgc.decoding_weights(code, **arrivals(received)),
            "effective": jaxwgc.effective_weights(code, **arrivals(received)),
            "error": jaxwgc.decoding_error(code, **arrivals(received)),
            "residual": state.residual,
            "failed": state.num_undecodable,
            "received": state.received,
            "value": value,
            "paths": {
                "decode": jaxwgc.decode(
                    code, messages, params=params, **arrivals(received)
                ),
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


class TestReceived:
    """Masks and numbers of finished parts."""

    @pytest.mark.parametrize("name", SEVERAL)
    def test_all_parts_or_none_are_what_a_mask_says(self, name):
        code = CODES[name]
        masks = every_pattern(code.num_workers, code.num_workers)
        arrived = arrived_messages(code, jnp.asarray(masks), None)
        np.testing.assert_array_equal(arrived, sent(code, masks))
        for dtype in (np.int32, np.uint8):
            finished = jnp.asarray(np.where(masks, code.loads, 0).astype(dtype))
            found = arrived_messages(code, None, finished)
            np.testing.assert_array_equal(found, arrived)
            np.testing.assert_array_equal(arrived_workers(code, found), masks)

    def test_required_parts_one_by_one(self):
        """Two parts for the first message of this worker, five for the second."""
        code = codes.partial(codes.cyclic_repetition(KEY, 4, 2), 2)
        for finished in range(6):
            received = np.array([finished, 0, 0, 0])
            sent_first, sent_second = finished >= 2, finished >= 5
            weights = np.asarray(jaxwgc.decoding_weights(code, finished=received))
            np.testing.assert_array_equal(
                weights != 0,
                np.isin(np.arange(8), [0] * sent_first + [1] * sent_second),
            )

        for finished in (-1, 6):
            with pytest.raises(ValueError, match="finished must count parts from 0 to"):
                jaxwgc.decoding_weights(code, finished=np.array([finished, 0, 0, 0]))

    def test_map_over_finished_parts(self):
        code = CODES["messages, uncoded"]
        finished = np.random.default_rng(0).integers(0, 4, (2, 3, 3))
        own = jax.vmap(lambda own: jaxwgc.effective_weights(code, finished=own))
        weights = jax.jit(own)(finished)
        assert weights.shape == (2, 3, 9)
        np.testing.assert_allclose(weights.sum(-1), finished.sum(-1), rtol=1e-5)

    @every_code
    def test_integers_are_no_mask(self, name):
        code = CODES[name]
        for call in (jaxwgc.decoding_weights, jaxwgc.decoding_error):
            with pytest.raises(TypeError, match="must be a bool mask of .*; got int"):
                call(code, np.ones(code.num_workers, int))

    @pytest.mark.parametrize("name", SEVERAL)
    def test_neither_mask_nor_integers(self, name):
        code = CODES[name]
        with pytest.raises(TypeError, match="the number of parts .*; got float32"):
            jaxwgc.decoding_weights(
                code, finished=np.ones(code.num_workers, np.float32)
            )

    def test_one_of_the_two(self):
        code, mask = CODES["messages, uncoded"], np.ones(3, bool)
        for given in ({}, {"received": mask, "finished": np.ones(3, int)}):
            with pytest.raises(ValueError, match="must be given, and not both"):
                jaxwgc.decoding_weights(code, **given)

    @pytest.mark.parametrize("name", SEVERAL)
    def test_a_mask_of_messages_is_not_one_of_workers(self, name):
        code = CODES[name]
        with pytest.raises(ValueError, match=f"num_workers = {code.num_workers}; got"):
            jaxwgc.decoding_weights(code, np.ones(code.num_messages, bool))


class TestDecoders:
    """By class, for codes that they fit and for others."""

    UNFIT = {
        decoders.Lagrange: (
            "evaluated at roots of unity",
            [
                codes.cyclic_mds(4, 1),
                codes.communication_efficient(4, 1, 2),
                codes.bernoulli(KEY, 4, 4, 2),
                codes.multi_message(codes.reed_solomon(4, 2, 2)),
            ],
        ),
        decoders.OneStep: (
            "whose columns add up to the same",
            [
                codes.reed_solomon(4, 2, 2),
                codes.cyclic_repetition(KEY, 4, 1),
                codes.ldgm(KEY, 5, 3, 2),
                codes.partial(codes.uncoded(3), 1),
            ],
        ),
        decoders.Peeling: (
            "of zeros and ones",
            [
                codes.regular_graph(KEY, 4, 2),
                codes.stochastic(KEY, 4, 4, 2, 0.1),
                codes.multi_message(codes.binary(4, 1)),
            ],
        ),
        decoders.Group: (
            "of groups of workers that send the same",
            [
                codes.bernoulli(KEY, 4, 4, 2),
                codes.cyclic_mds(4, 1),
                codes.multi_message(codes.binary(4, 1)),
                codes.partial(codes.binary(4, 1), 1),
            ],
        ),
    }

    @pytest.mark.parametrize(
        ("decoder", "kind", "code"),
        [(name, kind, code) for name, (kind, own) in UNFIT.items() for code in own],
    )
    def test_that_do_not_fit(self, decoder, kind, code):
        name = decoder.__name__
        rule = f"decoder {name} needs a code {kind}.*got {re.escape(repr(code))}"
        mask = np.ones(code.num_workers, bool)
        for call in (
            lambda: jaxwgc.decoding_weights(code, mask, decoder=decoder),
            lambda: jaxwgc.decoding_error(code, mask, decoder=decoder),
            lambda: jaxwgc.effective_weights(code, mask, decoder=decoder),
            lambda: jaxwgc.decoded_value_and_grad(sum, code, decoder=decoder),
            lambda: jaxwgc.coded_aggregate(
                code, stragglers.uniform(0), KEY, decoder=decoder
            ),
            lambda: jaxwgc.coding.diagnose(code, KEY, 1, decoder=decoder),
        ):
            with pytest.raises(ValueError, match=rule):
                call()

    @pytest.mark.parametrize(
        "decoder", [decoders.OneStep(3.0), decoders.Peeling(), decoders.Lagrange(1)]
    )
    def test_several_messages_need_least_squares(self, decoder):
        """However the code came to say otherwise."""
        rule = f"{decoder} needs a code with messages_per_worker = 1; got .* = 3"
        with pytest.raises(ValueError, match=rule):
            jaxwgc.decoding_weights(
                CODES["messages, uncoded"], np.ones(3, bool), decoder
            )

    @pytest.mark.parametrize("decoder", ["", "group", 3, dict])
    def test_that_are_none(self, decoder):
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders.Deco"):
            jaxwgc.decoding_weights(codes.uncoded(3), np.ones(3, bool), decoder)


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
