"""Local steps of an optimizer, against loops in NumPy and published arithmetic."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import codes, stragglers

NUM_PARTS = 4
NUM_STEPS = 5
RATE = 0.05
MOMENTUM = 0.9
DRAW = np.random.default_rng(0)
PARAMS = {"w": DRAW.normal(size=3), "b": DRAW.normal()}
# Batches of each step of each part.
X = DRAW.normal(size=(NUM_PARTS, NUM_STEPS, 8, 3))
Y = DRAW.normal(size=(NUM_PARTS, NUM_STEPS, 8))


def squared_error(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def change_in_numpy(x, y):
    """Change and losses by steps with momentum on batches (num_steps, rows, 3)."""
    w = PARAMS["w"].copy()
    b = PARAMS["b"]
    velocity_w = np.zeros(3)
    velocity_b = 0.0
    losses = []
    for x_of_step, y_of_step in zip(x, y):
        errors = x_of_step @ w + b - y_of_step
        losses.append(np.mean(errors**2))
        velocity_w = MOMENTUM * velocity_w + 2 * x_of_step.T @ errors / len(errors)
        velocity_b = MOMENTUM * velocity_b + 2 * errors.mean()
        w = w - RATE * velocity_w
        b = b - RATE * velocity_b
    return {"w": PARAMS["w"] - w, "b": PARAMS["b"] - b}, np.array(losses)


INNER = optax.sgd(RATE, momentum=MOMENTUM)
of_batches = jaxwgc.local_steps(squared_error, INNER, NUM_STEPS, returns_losses=True)


def test_changes_and_losses_of_all_parts_equal_a_loop_in_numpy(x64):
    params, parts = jax.tree.map(jnp.asarray, (PARAMS, (X, Y)))
    changes = jax.jit(jax.vmap(of_batches, (None, 0)))(params, parts)
    expected = [change_in_numpy(x, y) for x, y in zip(X, Y)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    chex.assert_trees_all_close(changes, stacked, rtol=1e-11 if x64 else 1e-3)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(changes)}
    assert dtypes == {np.dtype(np.float64 if x64 else np.float32)}


def test_steps_by_hand_with_drawn_batches(x64, make_key):
    """The key of step h is fold_in(key, h), and the inner optimizer starts anew."""

    def draw(key, part):
        x, y = part
        rows = jax.random.choice(key, 40, (6,))
        return x.reshape(40, 3)[rows], y.reshape(40)[rows]

    inner = optax.adamw(optax.linear_schedule(0.1, 0.0, 10))
    contribution = jaxwgc.local_steps(squared_error, inner, 3, batch=draw)
    params, part = jax.tree.map(jnp.asarray, (PARAMS, (X[0], Y[0])))
    key = make_key(3)
    stepped = params
    state = inner.init(params)
    for step in range(3):
        batch = draw(jax.random.fold_in(key, step), part)
        gradient = jax.grad(squared_error)(stepped, batch)
        updates, state = inner.update(gradient, state, stepped)
        stepped = optax.apply_updates(stepped, updates)
    expected = jax.tree.map(jnp.subtract, params, stepped)
    rtol = 1e-10 if x64 else 1e-4
    # Arrays of NumPy, without `jit`.
    found = contribution(PARAMS, (X[0], Y[0]), key)
    chex.assert_trees_all_close(found, expected, rtol=rtol)
    keys = jax.random.split(key, 2)
    other = contribution(params, part, keys[1])
    assert np.abs(other["w"] - expected["w"]).max() > 1e-3


def test_an_aggregator_recovers_the_mean_change():
    """In one process, with two stragglers in every round; DiLoCo's outer optimizer."""
    code = codes.cyclic_mds(NUM_PARTS, num_stragglers=2)
    code = jaxwgc.weighted(code, np.full(NUM_PARTS, 1 / NUM_PARTS))
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    contribution = jaxwgc.local_steps(squared_error, INNER, NUM_STEPS)
    changes_of = jax.vmap(contribution, (None, 0))
    model = stragglers.uniform(num_stragglers=2)
    aggregate = jaxwgc.coded_aggregate(code, model, jax.random.key(1))

    def trained(optimizer, combine):
        params, parts = jax.tree.map(jnp.asarray, (PARAMS, (X, Y)))

        @jax.jit
        def step(params, state):
            changes = combine(changes_of(params, parts))
            updates, state = optimizer.update(changes, state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(6):
            params, state = step(params, state)
        return params

    mean = functools.partial(jax.tree.map, lambda leaf: leaf.mean(0))
    coded = trained(optax.chain(aggregate, outer), lambda changes: changes)
    chex.assert_trees_all_close(coded, trained(outer, mean), rtol=1e-4)


def test_mocked_updates_of_torchft():
    """Parameters of fragments at their synchronizations, derived by hand.

    In `diloco_regression_test.py` of meta-pytorch/torchft, two replicas start from 1,
    gradients are 2, the inner learning rate is 1, the outer one 2, and a fragment is
    synchronized every 6 steps, the first of two after 3. A change of H steps is 2 H,
    so that the outer step subtracts 4 H.
    """

    def loss(params, batch):
        return 2 * jnp.sum(params["weight"]) + 0 * jnp.sum(batch)

    code = jaxwgc.weighted(codes.fractional_repetition(2, 1), np.full(2, 0.5))
    optimizer = optax.chain(
        jaxwgc.decode_aggregate(code),
        optax.sgd(2.0),
    )
    # Steps before each synchronization, and the global parameter after it.
    fragments = {
        "layers.0": ([3, 6, 6, 6], [-11, -35, -59, -83]),
        "layers.1": ([6, 6, 6], [-23, -47, -71]),
    }
    for num_steps_of_rounds, expected in fragments.values():
        params = {"weight": jnp.ones((1, 1))}
        state = optimizer.init(params)
        history = []
        for number, num_steps in enumerate(num_steps_of_rounds):
            contribution = jaxwgc.local_steps(loss, optax.sgd(1.0), num_steps)
            changes = jax.vmap(contribution, (None, 0))(
                params, jnp.zeros((2, num_steps, 1))
            )
            messages = jaxwgc.encode(code, changes)
            # The replicas are lost in turn.
            received = np.arange(2) == number % 2
            updates, state = optimizer.update(
                messages, state, params, received=received
            )
            params = optax.apply_updates(params, updates)
            history.append(float(params["weight"][0, 0]))
        assert history == expected


def test_inner_optimizer_starts_anew_in_each_round():
    """With Adam, every change by one step has the same size for each coordinate."""
    contribution = jaxwgc.local_steps(squared_error, optax.adam(0.1, eps=0.0), 1)
    part = (X[0, :1], Y[0, :1])
    params = jax.tree.map(jnp.asarray, PARAMS)
    for _ in range(3):
        change = contribution(params, part)
        sizes = [np.abs(leaf) for leaf in jax.tree.leaves(change)]
        np.testing.assert_allclose(np.hstack(sizes), 0.1, rtol=1e-3)
        params = jax.tree.map(jnp.subtract, params, change)


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"loss": 3}, TypeError, "loss must be a function; got 3"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be a GradientTransformation"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1; got 0"),
        ({"num_steps": 2.0}, TypeError, "num_steps must be a Python int"),
        ({"batch": 3}, TypeError, "batch must be a function; got 3"),
        ({"returns_losses": 1}, TypeError, "returns_losses must be True or False"),
    ],
)
def test_bad_arguments(others, error, message):
    arguments = {"loss": squared_error, "optimizer": INNER, "num_steps": 2}
    with pytest.raises(error, match=message):
        jaxwgc.local_steps(**arguments | others)


def test_bad_parts_and_losses():
    with pytest.raises(ValueError, match=r"part\[0\] must have a leading axis of"):
        of_batches(PARAMS, (X[0, :2], Y[0, :2]))
    vector = jaxwgc.local_steps(lambda params, x: params["w"] * x, INNER, 1)
    with pytest.raises(TypeError, match=r"loss must return a scalar; got an array of"):
        vector({"w": jnp.ones(3)}, jnp.ones((1, 3)))
