"""Late answers remembered, and lost parts made up for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, stragglers
from tests.oracles import raveled
from tests.zoo import CODES, gradients_of, like

NEVER = stragglers.uniform(0)


def by_hand(code, rounds, late):
    """The formula in NumPy: what is added up in each round, and what is decoded."""
    matrix = np.asarray(code.encoding_matrix)
    known = np.zeros(code.num_workers, bool)
    remembered = np.zeros((code.num_workers, rounds[0][0].shape[1]))
    for (gradients, received), answered in zip(rounds, late, strict=True):
        messages = matrix @ gradients
        mask = answered & ~received
        remembered[mask] = messages[mask]
        first = received & ~known
        known |= answered | received
        weights = _solve(matrix, received)
        if np.allclose(weights @ matrix, 1, atol=1e-4):
            yield weights @ messages
        else:
            remembered[first & ~mask] = messages[first & ~mask]
            full = _solve(matrix, known)
            share = (full @ matrix).mean()
            full = full / (share if share > 0 else 1)
            yield weights @ (messages - remembered) + full @ remembered
        remembered[received] = messages[received]


def _solve(matrix, mask):
    weights = np.zeros(len(matrix))
    weights[mask] = np.linalg.lstsq(matrix[mask].T, np.ones(matrix.shape[1]))[0]
    return weights


@pytest.mark.parametrize(
    ("name", "x64"), [("uncoded", True), ("cyclic_mds", False)], indirect=["x64"]
)
def test_against_numpy(name, x64):
    """Rounds of all kinds: nobody, too few, late ones, enough, all."""
    code = CODES[name]
    draw = np.random.default_rng(0)
    received = draw.random((12, code.num_workers)) < 0.4
    received[0], received[5] = False, True
    late = draw.random(received.shape) < 0.3
    trees = [
        jax.tree.map(lambda leaf: leaf * draw.normal(), gradients_of(code.num_parts))
        for _ in received
    ]
    params = like(trees[0])
    partials = jaxwgc.coded_aggregate(code, NEVER, jax.random.key(0), memory=True)
    messages = jaxwgc.decode_aggregate(code, memory=True)

    @jax.jit
    def step(tree, states, received, late):
        first, states[0] = partials.update(
            tree, states[0], params, received=received, late=late
        )
        sent = jnp.where((received | late)[:, None], jaxwgc.encode(code, tree), jnp.nan)
        second, states[1] = messages.update(
            sent, states[1], params, received=received, late=late
        )
        return (first, second), states

    states = [partials.init(params), messages.init(params)]
    rounds = [(raveled(tree), mask) for tree, mask in zip(trees, received)]
    for index, expected in enumerate(by_hand(code, rounds, late)):
        found, states = step(trees[index], states, received[index], late[index])
        for gradient in found:
            np.testing.assert_allclose(
                raveled(gradient, 0), expected, rtol=2e-3, atol=2e-3
            )
    for state in states:
        np.testing.assert_array_equal(state.memory.known, (received | late).any(axis=0))


@pytest.mark.parametrize("name", ["communication_efficient, odd", "replicated"])
def test_what_does_not_change_is_not_missed(name):
    """After a round of all workers, whoever answers."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    aggregate = jaxwgc.coded_aggregate(code, NEVER, jax.random.key(0), memory=True)
    state = aggregate.init(like(gradients))
    update = jax.jit(aggregate.update)
    for number in (code.num_workers, 1, 0, 2):
        received = np.arange(code.num_workers) < number
        found, state = update(gradients, state, like(gradients), received=received)
        np.testing.assert_allclose(
            raveled(found, 0), raveled(gradients).sum(0), rtol=1e-3, atol=1e-4
        )
    assert state.num_undecodable >= 2


def test_bias_goes_away_where_one_worker_is_always_late():
    """Descent to the minimum of all, though two of the workers never come in time."""
    slopes = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    delay = stragglers.unequal_speeds(
        stragglers.shifted_exponential(1.0, 50.0), np.array([1, 1, 1, 1, 0.3, 0.21])
    )

    def end(memory, debias=None):
        model = stragglers.delayed(delay, stragglers.fastest(4), late="busy")
        optimizer = jaxwgc.coded_aggregate(
            codes.uncoded(6), model, jax.random.key(0), memory=memory, debias=debias
        )

        def step(carry, _):
            params, state = carry
            gradient, state = optimizer.update(params + slopes, state, params)
            return (params - 0.05 * gradient, state), None

        start = jnp.zeros(3)
        carry = start, optimizer.init(start)
        return jax.jit(lambda: jax.lax.scan(step, carry, length=300)[0])()

    minimum = -slopes.mean(0)
    params, state = end(memory=True)
    assert np.abs(params - minimum).max() < 1e-3
    assert state.memory.known.all() and state.num_undecodable == 300
    assert np.abs(state.share - 4 / 6) < 1e-6
    others = [end(memory=False)[0], end(memory=False, debias="share")[0]]
    for params in others:
        np.testing.assert_allclose(params, -slopes[:4].mean(0), atol=1e-3)
        assert np.abs(params - minimum).max() > 0.1


@pytest.mark.parametrize("debias", ["share", 0.5])
def test_what_is_lost_is_made_up_for(debias):
    """By the share that is there, or always by the number; also in bfloat16."""
    code = jaxwgc.weighted(codes.uncoded(4), np.array([1.0, 2, 3, 4]))
    gradients = np.arange(8, dtype=np.float32).reshape(4, 2).astype(jnp.bfloat16)
    params = jnp.zeros(2, jnp.bfloat16)
    aggregate = jaxwgc.coded_aggregate(code, NEVER, jax.random.key(0), debias=debias)
    state = aggregate.init(params)
    for received in ([True] * 4, [True, True, False, True], [False] * 4):
        received = np.array(received)
        weights = np.array([1.0, 2, 3, 4]) * received
        share = (weights @ [1, 2, 3, 4] / 30) or 1
        expected = weights @ gradients.astype(float)
        expected = expected / (share if debias == "share" else 0.5)
        found, state = aggregate.update(gradients, state, params, received=received)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(float), expected, rtol=1e-2)
        np.testing.assert_allclose(state.share, weights @ [1, 2, 3, 4] / 30, rtol=1e-5)
