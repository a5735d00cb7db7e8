"""A new sample of parts at every step: unbiased, and decoded like any other round."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.experimental import aggregating

import jaxwgc
from jaxwgc import codes, stragglers
from tests.conftest import random_patterns
from tests.oracles import check_mean
from tests.zoo import regression, squared_loss

NUM_PARTS = 6
PROBABILITIES = np.array([0.3, 0.25, 0.05, 0.1, 0.2, 0.1])
# Decoded by whole groups: any other decoder is most of a program's compilation.
CODE = jaxwgc.codes.binary(3, num_stragglers=1)
RULES = {"distinct": {}, "draws": {"num_draws": 3}}
DTYPES = jnp.bfloat16, np.float32, np.complex64
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


PARAMS, PARTS = regression(NUM_PARTS, np.float32)


@functools.cache
def partial_value_and_grad():
    """Value and gradient of every part as NumPy arrays."""
    step = jax.jit(jaxwgc.partial_value_and_grad(squared_loss))
    return jax.device_get(step(PARAMS, PARTS))


def full_value_and_grad():
    values, gradients = partial_value_and_grad()
    return values.sum(), jax.tree.map(lambda leaf: leaf.sum(0), gradients)


@jax.jit
def sampled_step(probabilities, params, parts, key, received):
    """A sampled step, one program for several tests."""
    step = jaxwgc.sampled_value_and_grad(squared_loss, CODE, probabilities)
    return step(params, parts, key, received)


def aggregator(key=None, code=CODE, probabilities=PROBABILITIES, **options):
    key = jax.random.key(0) if key is None else key
    model = stragglers.uniform(code.num_stragglers)
    return jaxwgc.block_leverage_aggregate(code, model, key, probabilities, **options)


RAW_KEY_OPTIMIZER = aggregator(jax.random.PRNGKey(0))
update_by_raw_key = jax.jit(RAW_KEY_OPTIMIZER.update)


def assert_mean(result, expected):
    check_mean(result, expected, atol=1e-6)
    # It does vary: the samples are not all of the data.
    assert np.all(np.std(result, axis=0) > 0)


@every_rule
def test_aggregate_is_unbiased(rule):
    """The mean is over the steps of one chain, with random stragglers."""
    num = 20_000
    _, gradients = partial_value_and_grad()
    optimizer = aggregator(**rule)

    @jax.jit
    def run():
        def step(state, _):
            update, state = optimizer.update(gradients, state, PARAMS)
            return state, (update, state.indices, state.weights)

        return jax.lax.scan(step, optimizer.init(PARAMS), None, num)

    state, (updates, indices, weights) = run()
    _, expected = full_value_and_grad()
    jax.tree.map(assert_mean, updates, expected)
    assert state.coded.elapsed == num
    assert state.coded.num_undecodable == 0
    # The decoded sum is that of the parts and weights that the state shows.
    by_hand = np.sum(weights * gradients["b"][indices], axis=1)
    np.testing.assert_allclose(updates["b"], by_hand, atol=1e-2, rtol=1e-3)
    per_part = np.zeros((num, NUM_PARTS))
    np.add.at(per_part, (np.arange(num)[:, None], indices), weights)
    assert_mean(per_part, np.ones(NUM_PARTS))
    # Steps are independent of each other.
    shares = per_part[:, 0] - per_part[:, 0].mean()
    correlation = np.mean(shares[1:] * shares[:-1]) / np.mean(shares**2)
    assert abs(correlation) < 4 / np.sqrt(num)


@every_rule
def test_sampled_value_and_grad_is_unbiased(rule):
    num = 20_000
    step = jaxwgc.sampled_value_and_grad(squared_loss, CODE, PROBABILITIES, **rule)
    received = random_patterns(3, CODE.num_stragglers, num)
    keys = jax.random.split(jax.random.key(1), num)
    steps = jax.jit(jax.vmap(functools.partial(step, PARAMS, PARTS)))
    values, gradients = steps(keys, received)
    value, gradient = full_value_and_grad()
    assert_mean(values, value)
    jax.tree.map(assert_mean, gradients, gradient)


def test_the_aggregator_and_the_sampled_gradient_agree():
    """The same sample and the same responses give the same gradient."""
    _, gradients = partial_value_and_grad()
    optimizer = aggregator()
    state = optimizer.init(PARAMS)
    received = random_patterns(3, 1, 1)[0]
    decoding = jaxwgc.decoding(CODE, received)
    _, step_key = jax.random.split(state.key)
    update, state = jax.jit(optimizer.update)(
        gradients, state, PARAMS, received=decoding, elapsed=2.5
    )
    _, gradient = sampled_step(PROBABILITIES, PARAMS, PARTS, step_key, received)
    for name in PARAMS:
        np.testing.assert_allclose(update[name], gradient[name], rtol=1e-4)
    assert state.coded.elapsed == 2.5
    np.testing.assert_array_equal(state.coded.received, received)


def test_only_sampled_parts_are_touched():
    """NaN in the others does no harm; one that is sampled shows."""
    params = PARAMS
    x, y = PARTS
    key = jax.random.key(3)
    received = np.ones(3, bool)
    sample = jaxwgc.parts.sample_partitions(key, PROBABILITIES, num_distinct=4)
    kept = np.asarray(jaxwgc.parts.drop_last_distinct(sample).indices)
    spoiled = np.full_like(x, np.nan)
    spoiled[kept] = x[kept]

    def gradient_of(x):
        return sampled_step(PROBABILITIES, params, (x, y), key, received)[1]["w"]

    np.testing.assert_array_equal(gradient_of(spoiled), gradient_of(x))
    spoiled[kept[0]] = np.nan
    assert np.isnan(gradient_of(spoiled)).all()


def test_the_aggregator_works_in_optax():
    """jit, a state of arrays only, both kinds of keys, `aggregating.process`."""
    _, gradients = partial_value_and_grad()
    optimizer = RAW_KEY_OPTIMIZER
    assert isinstance(optimizer, aggregating.Aggregator)
    state = optimizer.init(PARAMS)
    assert isinstance(state.coded, jaxwgc.CodedAggregateState)
    update, new = update_by_raw_key(gradients, state, PARAMS)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new)):
        assert before.dtype == after.dtype and before.shape == after.shape
    processed = aggregating.process(optax.identity(), optimizer, optax.sgd(0.5))
    scaled, _ = jax.eval_shape(
        processed.update, gradients, processed.init(PARAMS), PARAMS
    )
    assert jax.tree.map(jnp.shape, scaled) == jax.tree.map(jnp.shape, update)


def test_samples_and_stragglers_are_independent():
    """No key is used for both."""
    _, gradients = partial_value_and_grad()
    state = RAW_KEY_OPTIMIZER.init(PARAMS)
    sample_keys = set()
    straggler_keys = set()
    for _ in range(4):
        for key, seen in ((state.key, sample_keys), (state.coded.key, straggler_keys)):
            seen.update(map(tuple, [key.tolist(), *jax.random.split(key).tolist()]))
        _, state = update_by_raw_key(gradients, state, PARAMS)
    assert len(sample_keys) == len(straggler_keys) == 9
    assert not sample_keys & straggler_keys


def test_dtypes(with_x64):
    params = {np.dtype(dtype).name: np.ones(2, dtype) for dtype in DTYPES}
    updates = {name: np.ones((6, 2), leaf.dtype) for name, leaf in params.items()}
    optimizer = aggregator(probabilities=np.ones(6))
    update, state = jax.jit(optimizer.update)(updates, optimizer.init(params))
    assert state.weights.dtype == np.float64
    total = np.sum(state.weights)
    for name, leaf in update.items():
        assert leaf.dtype == name
        np.testing.assert_allclose(np.asarray(leaf, np.complex64), total, rtol=1e-2)
    # A weighted sum of integers would be cut off.
    for wrong in (int, bool):
        wrong_updates = {**updates, "float32": np.ones((6, 2), wrong)}
        with pytest.raises(TypeError, match="updates.* must be real or complex floats"):
            optimizer.update(wrong_updates, state)


def test_draws_that_leave_slots_empty():
    """A part that is drawn again and again counts for as much, and nothing is NaN."""
    probabilities = np.array([1.0, 1e-6, 0, 0, 0, 0])
    optimizer = aggregator(probabilities=probabilities, num_draws=3)
    gradients = {"w": np.arange(1.0, 7, dtype=np.float32)}
    state = optimizer.init({"w": np.float32(0)})
    update, state = jax.jit(optimizer.update)(gradients, state)
    np.testing.assert_allclose(update["w"], 1, rtol=1e-4)
    np.testing.assert_allclose(state.weights, [1, 0, 0], rtol=1e-4)


def test_one_draw_is_a_sample():
    """A single part counts for all, in inverse proportion to its probability."""
    optimizer = aggregator(code=codes.uncoded(1), num_draws=1)
    gradients = {"w": np.arange(1.0, 7, dtype=np.float32)}
    state = optimizer.init({"w": np.float32(0)})
    update, state = jax.jit(optimizer.update)(gradients, state)
    [part] = state.indices
    expected = gradients["w"][part] / PROBABILITIES[part]
    np.testing.assert_allclose(update["w"], expected, rtol=1e-4)


def test_traced_probabilities_that_are_wrong_give_nan():
    """A zero gradient would look like the end of the descent."""
    key = jax.random.key(0)
    received = np.ones(CODE.num_workers, bool)
    for wrong in (PROBABILITIES * np.nan, -PROBABILITIES, [0.5, 0.2, 0.3, 0, 0, 0]):
        wrong = np.asarray(wrong, float)
        value, gradient = sampled_step(wrong, PARAMS, PARTS, key, received)
        assert np.isnan(value) and np.isnan(gradient["w"]).all()


@pytest.mark.parametrize(
    ("probabilities", "options", "message"),
    [
        (np.array([1, 1, 1, 1, 0]), {}, "code.num_parts must be less"),
        (np.ones(6), {"num_draws": 5}, "code.num_parts"),
        (np.zeros(6), {}, "probabilities must not all be zero"),
        (np.array([1, math.nan]), {}, r"probabilities\[1\] = nan"),
        (np.ones(6), {"method": "a"}, "method must be"),
    ],
)
def test_wrong_probabilities_and_options(probabilities, options, message):
    code = codes.fractional_repetition(4, 1)
    with pytest.raises(ValueError, match=message):
        aggregator(code=code, probabilities=probabilities, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_parts": 6}, ValueError, "parts must have a leading axis of K = 9"),
        (
            {"probabilities": np.ones(6)},
            ValueError,
            "code.num_parts must be less than 6",
        ),
        (
            {"received": np.ones(5, bool)},
            ValueError,
            "received must have (shape|a leading axis)",
        ),
        ({"key": 0}, TypeError, "key must be a PRNG key"),
    ],
)
def test_wrong_arguments_of_sampled_gradients(arguments, error, message):
    accepted = {
        "probabilities": np.ones(9, np.float32),
        "num_parts": 9,
        "key": jax.random.key(0),
        "received": np.ones(6, bool),
    }
    arguments = {**accepted, **arguments}
    parts = np.ones((arguments["num_parts"], 2), np.float32)

    def run(received):
        step = jaxwgc.sampled_value_and_grad(
            lambda params, part: jnp.sum(params * part),
            codes.uncoded(6),
            arguments["probabilities"],
        )
        return step(np.ones(2, np.float32), parts, arguments["key"], received)

    with pytest.raises(error, match=message):
        jax.eval_shape(run, arguments["received"])
