"""Messages that arrived, in an optax chain: against NumPy and `coded_aggregate`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from jaxwgc.aggregate import DecodingOptions
from tests.catalogue.codes import CODES as CATALOGUE
from tests.zoo import gradients_of, like

CODES = {
    "real": codes.fractional_repetition(6, 2),
    "complex": codes.cyclic_mds(6, 2),
    "several messages": codes.multi_message(codes.fractional_repetition(4, 1)),
}
PARAMS = like(gradients_of(1))


def lost(code, *workers):
    return ~np.isin(np.arange(code.num_workers), workers)


@pytest.mark.parametrize("name", ["complex", "several messages"])
def test_updates_and_states_are_those_of_coded_aggregate(name):
    """Updates and states are those of `coded_aggregate` for the same round."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    aggregate = jaxwgc.decode_aggregate(code)
    simulated = jaxwgc.coded_aggregate(
        code, stragglers.uniform(1), jax.random.key(0), method="messages"
    )
    optimizer = optax.chain(aggregate, optax.sgd(0.5))
    update = jax.jit(optimizer.update)
    coded = jax.jit(simulated.update)
    messages = np.asarray(jaxwgc.encode(code, gradients))
    state = optimizer.init(PARAMS)
    other = simulated.init(PARAMS)
    for count, (mask, elapsed) in enumerate(
        [(lost(code, 0), 1.5), (lost(code, 0, 2, 3, 4), 0.25)]
    ):
        garbled = messages.copy()
        garbled[~mask.repeat(code.messages_per_worker)] = np.nan
        extra = {"received": mask, "elapsed": np.float32(elapsed)}
        updates, state = update(garbled, state, PARAMS, **extra)
        expected, other = coded(gradients, other, PARAMS, **extra)
        for update_leaf, leaf, full in zip(
            *map(jax.tree.leaves, (updates, expected, gradients)), strict=True
        ):
            np.testing.assert_allclose(update_leaf, -0.5 * leaf, atol=1e-5)
            if count == 0:
                np.testing.assert_allclose(update_leaf, -0.5 * full.sum(0), atol=1e-4)
        for field in ("received", "elapsed", "residual", "num_undecodable", "shapes"):
            chex.assert_trees_all_close(
                getattr(state[0], field), getattr(other, field), atol=1e-5
            )
    assert state[0].elapsed == 1.75
    assert state[0].num_undecodable == 1


def test_messages_and_parameters_in_half_precision():
    """Whole numbers, which half precision holds."""
    code = CODES["real"]
    dtype = jnp.bfloat16
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS)
    gradients = jax.tree.map(lambda leaf: 0 * leaf + 3, gradients_of(code.num_parts))
    aggregate = jaxwgc.decode_aggregate(code)
    messages = jaxwgc.encode(code, gradients).astype(dtype)
    updates, _ = jax.jit(aggregate.update)(
        messages, aggregate.init(params), params, received=lost(code, 0, 1)
    )
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(leaf.astype(np.float32), 18)


def test_finished_parts_and_skipped_rounds():
    code = CODES["several messages"]
    gradients = gradients_of(code.num_parts)
    messages = jaxwgc.encode(code, gradients)
    finished = np.array([2, 1, 0, 1])
    aggregate = jaxwgc.decode_aggregate(code, undecodable="skip")
    state = aggregate.init(PARAMS)
    update = jax.jit(aggregate.update)
    updates, state = update(messages, state, PARAMS, finished=finished)
    for leaf, full in zip(*map(jax.tree.leaves, (updates, gradients)), strict=True):
        np.testing.assert_allclose(leaf, full.sum(0), atol=1e-4)
    assert state.num_undecodable == 0
    finished = np.array([1, 0, 1, 0])
    updates, state = update(messages, state, PARAMS, finished=finished)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert state.num_undecodable == 1
    np.testing.assert_array_equal(state.received, np.zeros(4, bool))


class TestBadInput:
    code = CODES["real"]
    messages = np.zeros((6, 7), np.float32)
    mask = np.ones(6, bool)

    def update(self, messages=messages, params=PARAMS, **extra):
        aggregate = jaxwgc.decode_aggregate(self.code)
        return aggregate.update(messages, aggregate.init(PARAMS), params, **extra)

    @pytest.mark.parametrize("params", [None, PARAMS], ids=["none", "params"])
    def test_partial_gradients_and_orders_that_do_not_work(self, params):
        rule = "updates must be one array, the messages of all workers; got PyTreeDef"
        with pytest.raises(ValueError, match=rule):
            self.update(gradients_of(6), params, received=self.mask)
        twice = optax.chain(*[jaxwgc.decode_aggregate(self.code)] * 2)
        with pytest.raises(ValueError, match="must be"):
            twice.update(self.messages, twice.init(PARAMS), params, received=self.mask)

    def test_masks_around_the_aggregator(self):
        hidden = {"w": PARAMS["w"], "b": optax.MaskedNode()}
        with pytest.raises(ValueError, match="around transformations after"):
            self.update(params=hidden, received=self.mask)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory": True, "undecodable": "skip"},
            "memory=True needs undecodable=",
        ),
        ({"memory": True, "debias": "share"}, "memory=True needs debias=None"),
        ({"debias": "all"}, "debias must be one of 'share'"),
        ({"debias": 0}, "debias must be positive"),
        (
            {"correct_errors": True, "memory": True},
            "memory=True needs correct_errors=False",
        ),
        ({"key": jax.random.key(0)}, "key= is used only with correct_errors=True"),
        ({"on_request": True, "memory": True}, "memory=True cannot be used"),
        (
            {"on_request": True, "correct_errors": True},
            "correct_errors=True cannot be used",
        ),
        ({"code": CATALOGUE["reed_solomon"], "on_request": True}, "code must be"),
        (
            {
                "code": codes.partially_coded(codes.cyclic_mds(4, 1), 1),
                "correct_errors": True,
            },
            "got none for messages",
        ),
    ],
)
def test_options_that_exclude_each_other(options, message):
    real = codes.cyclic_repetition(jax.random.key(0), 4, 1)
    with pytest.raises(ValueError, match=message):
        jaxwgc.decode_aggregate(**{"code": real, **options})


@pytest.mark.parametrize("name", ["real", "complex"])
@pytest.mark.parametrize("method", ["partials", "messages"])
def test_simulated_messages_are_rounded_as_real_ones(name, method):
    """NumPy rounds the messages that `decode_aggregate` is given."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    decoding = DecodingOptions(message_dtype="bfloat16")
    simulated = jaxwgc.coded_aggregate(
        code,
        stragglers.uniform(1),
        jax.random.key(0),
        method=method,
        decoding=decoding,
    )
    aggregate = jaxwgc.decode_aggregate(code, decoding=decoding)
    messages = np.asarray(jaxwgc.encode(code, gradients))
    numbers = messages.view(np.float32)
    rounded = numbers.astype(jnp.bfloat16).astype(np.float32).view(messages.dtype)
    assert np.abs(rounded - messages).max() > 1e-3
    mask = lost(code, 1, 4)
    expected, _ = aggregate.update(
        rounded, aggregate.init(PARAMS), PARAMS, received=mask
    )
    updates, _ = jax.jit(simulated.update)(
        gradients, simulated.init(PARAMS), PARAMS, received=mask
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (3, "decoding must be a DecodingOptions; got 3"),
        (DecodingOptions(decoder="lagrange"), "decoder must be a Decoder"),
    ],
)
def test_wrong_options_of_decoding(decoding, message):
    code = CODES["real"]
    model = stragglers.uniform(1)
    with pytest.raises(TypeError, match=message):
        jaxwgc.decode_aggregate(code, decoding=decoding)
    with pytest.raises(TypeError, match=message):
        jaxwgc.coded_aggregate(code, model, jax.random.key(0), decoding=decoding)


def test_dtypes_of_messages():
    with pytest.raises(TypeError, match="message_dtype must be a dtype"):
        DecodingOptions(message_dtype="float3")
    with pytest.raises(ValueError, match="message_dtype must be bfloat16"):
        DecodingOptions(message_dtype="float64")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"messages": np.zeros((6, 3), np.complex64)},
            ValueError,
            "messages must have (shape|a leading axis)",
        ),
        (
            {"messages": np.zeros((5, 2), np.complex64)},
            ValueError,
            "messages must have (shape|a leading axis)",
        ),
        (
            {"messages": np.zeros(3, np.complex64)},
            ValueError,
            "messages must have (shape|a leading axis)",
        ),
        (
            {"messages": {"w": np.ones((6, 2), np.float32)}},
            ValueError,
            "updates must be one array, the messages",
        ),
        (
            {"received": np.ones(5, bool)},
            ValueError,
            "received must have (shape|a leading axis)",
        ),
        (
            {"messages": np.full((6, 2), "a")},
            TypeError,
            "messages must be numbers or",
        ),
        ({"received": np.ones(6)}, TypeError, "received must be a bool mask"),
        (
            {"params": np.zeros(4, int)},
            TypeError,
            "params must be real or complex floats",
        ),
    ],
)
def test_wrong_messages_masks_and_parameters(arguments, error, message):
    aggregate = jaxwgc.decode_aggregate(CATALOGUE["reed_solomon"])
    params = np.zeros(4, np.float32)
    accepted = {
        "messages": np.zeros((6, 2), np.complex64),
        "params": params,
        "received": np.ones(6, bool),
    }
    arguments = {**accepted, **arguments}
    messages = arguments.pop("messages")
    with pytest.raises(error, match=message):
        aggregate.update(messages, aggregate.init(params), **arguments)


def test_missing_params_are_named():
    code = CODES["real"]
    aggregate = jaxwgc.decode_aggregate(code)
    messages = np.ones((6, 4), np.float32)
    message = "params must be given to update, .*; got None"
    with pytest.raises(ValueError, match=message):
        aggregate.update(messages, aggregate.init(PARAMS), received=np.ones(6, bool))
