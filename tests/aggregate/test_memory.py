"""Late messages stored, and lost parts made up for."""

import dataclasses

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

import jaxwgc
from jaxwgc import codes, coding, decoders, stragglers
from jaxwgc.aggregate import DecodingOptions
from tests.catalogue.codes import CODES
from tests.oracles import raveled
from tests.zoo import gradients_of, like

NEVER = stragglers.uniform(0)
ENTRIES = st.floats(-4, 4).map(lambda entry: entry or 1.0)


def by_hand(code, rounds, late):
    """The formula in NumPy: what is added up in each round, and what is decoded."""
    matrix = np.asarray(code.encoding_matrix)
    known = np.zeros(code.num_workers, bool)
    remembered = np.zeros((code.num_workers, rounds[0][0].shape[1]))
    for (gradients, received), arrived in zip(rounds, late, strict=True):
        messages = matrix @ gradients
        mask = arrived & ~received
        remembered[mask] = messages[mask]
        first = received & ~known
        known |= arrived | received
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
def test_updates_with_stored_messages_are_those_of_numpy(name, x64):
    """Rounds have no, too few, late, enough or all responses."""
    code = CODES[name]
    draw = np.random.default_rng(0)
    received = draw.random((12, code.num_workers)) < 0.4
    received[0] = False
    received[5] = True
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
        result, states = step(trees[index], states, received[index], late[index])
        for gradient in result:
            np.testing.assert_allclose(
                raveled(gradient, 0), expected, rtol=2e-3, atol=2e-3
            )
    for state in states:
        np.testing.assert_array_equal(state.memory.known, (received | late).any(axis=0))


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("communication_efficient, odd", None),
        ("replicated", None),
        # Both are inexact on purpose: without memory, all rounds count as decoded.
        ("uncoded", decoders.Ridge(0.1)),
        ("fractional_repetition", decoders.OneStep),
    ],
)
def test_constant_gradients_are_complete_after_a_round_of_all_workers(name, decoder):
    """Later responses do not matter after a round of all workers."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    decoding = DecodingOptions(decoder=decoder)
    aggregate = jaxwgc.coded_aggregate(
        code, NEVER, jax.random.key(0), memory=True, decoding=decoding
    )
    state = aggregate.init(like(gradients))
    update = jax.jit(aggregate.update)
    for number in (code.num_workers, 1, 0, 2, code.num_workers - 1):
        received = np.arange(code.num_workers) < number
        result, state = update(gradients, state, like(gradients), received=received)
        np.testing.assert_allclose(
            raveled(result, 0), raveled(gradients).sum(0), rtol=1e-3, atol=1e-4
        )
    assert state.num_undecodable >= 2


def test_stored_messages_remove_the_bias_of_workers_that_are_always_late():
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
def test_debiased_updates_are_divided_by_the_recovered_share(debias):
    """The divisor is the recovered share, or a given number; bfloat16 too."""
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
        result, state = aggregate.update(gradients, state, params, received=received)
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(result.astype(float), expected, rtol=1e-2)
        np.testing.assert_allclose(state.share, weights @ [1, 2, 3, 4] / 30, rtol=1e-5)


def _aggregators(code):
    """Returns both aggregators of a code with memory."""
    return [
        jaxwgc.coded_aggregate(code, NEVER, jax.random.key(0), memory=True),
        jaxwgc.decode_aggregate(code, memory=True),
    ]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", [0, 1], ids=["coded", "decode"])
def test_memory_of_another_code_is_rejected(kind, compiled):
    """Messages of one code mean nothing to another, also with equal shapes."""
    params = jnp.zeros(2)
    received = jnp.arange(6) < 3
    state = _aggregators(codes.fractional_repetition(6, 2))[kind].init(params)
    update = _aggregators(codes.uncoded(6))[kind].update
    update = jax.jit(update) if compiled else update
    with pytest.raises(ValueError, match="state must hold stored messages of the same"):
        update(jnp.ones((6, 2)), state, params, received=received)


@given(data=st.data())
def test_memory_is_rejected_unless_codes_are_equal(data):
    """Codes differ if their matrices or their targets do, by however little."""
    num_workers = data.draw(st.integers(2, 6))
    matrix = data.draw(arrays(float, (num_workers, num_workers), elements=ENTRIES))
    place = data.draw(st.integers(0, num_workers**2 - 1))
    target = data.draw(arrays(float, num_workers, elements=ENTRIES))
    code = jaxwgc.GradientCode.from_matrix(matrix, target=target)
    same = jaxwgc.GradientCode.from_matrix(matrix.copy(), target=target.copy())
    changed = matrix.copy()
    changed.flat[place] = np.nextafter(changed.flat[place], 9)
    other_matrix = jaxwgc.GradientCode.from_matrix(changed, target=target)
    changed = target.copy()
    changed[0] += 1
    other_target = jaxwgc.GradientCode.from_matrix(matrix, target=changed)
    memory = coding.Memory.empty(code, jnp.zeros(2), is_simulated=False)
    memory.check(same)
    for other in (other_matrix, other_target):
        with pytest.raises(ValueError, match="of the same code"):
            memory.check(other)


def test_state_of_another_number_of_workers_is_rejected():
    """The error names both numbers."""
    params = jnp.zeros(2)
    for before, after in zip(
        _aggregators(codes.uncoded(6)), _aggregators(codes.uncoded(8)), strict=True
    ):
        state = before.init(params)
        received = jnp.ones(8, bool)
        with pytest.raises(ValueError, match="8 workers of the code; got .* 6 workers"):
            after.update(jnp.ones((8, 2)), state, params, received=received)


def test_state_without_memory_is_rejected():
    """The other way round, the messages in the state are just not used."""
    code = codes.uncoded(3)
    params = jnp.zeros(2)
    with_memory = jaxwgc.decode_aggregate(code, memory=True)
    without = jaxwgc.decode_aggregate(code)
    round_of = {"received": jnp.ones(3, bool)}
    with pytest.raises(ValueError, match="from init with memory=True"):
        with_memory.update(jnp.ones((3, 2)), without.init(params), params, **round_of)
    gradient, _ = without.update(
        jnp.ones((3, 2)), with_memory.init(params), params, **round_of
    )
    np.testing.assert_array_equal(gradient, [3, 3])


def test_memory_of_traced_codes_is_not_compared():
    """Codes that `jax.vmap` maps over have no checksum."""
    scales = jnp.array([1.0, 2.0])

    def decoded(scale):
        code = codes.uncoded(3)
        code = dataclasses.replace(code, encoding_matrix=scale * jnp.eye(3))
        aggregate = jaxwgc.decode_aggregate(code, memory=True)
        state = aggregate.init(jnp.zeros(2))
        messages = scale * jnp.ones((3, 2))
        received = jnp.ones(3, bool)
        return aggregate.update(messages, state, jnp.zeros(2), received=received)[0]

    np.testing.assert_allclose(jax.vmap(decoded)(scales), np.full((2, 2), 3), rtol=1e-5)


@pytest.mark.parametrize("kind", [0, 1], ids=["coded", "decode"])
def test_memory_of_other_params_is_rejected(kind):
    """Equal lengths of the raveled gradient do not hide other parameters."""
    aggregate = _aggregators(codes.uncoded(4))[kind]
    state = aggregate.init({"w": jnp.zeros(3), "b": jnp.zeros((2, 2))})
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    gradients = jax.tree.map(lambda leaf: jnp.ones((4, *leaf.shape)), params)
    updates = [gradients, jnp.ones((4, 7))][kind]
    received = jnp.ones(4, bool)
    with pytest.raises(ValueError, match="params must have the shapes that were"):
        aggregate.update(updates, state, params, received=received)


def test_messages_that_are_not_finite_are_not_stored():
    """An overflow spoils its own round, but no later one."""
    code = codes.uncoded(3)
    params = jnp.zeros(2)
    aggregate = jaxwgc.decode_aggregate(code, memory=True)
    state = aggregate.init(params)
    everyone = jnp.ones(3, bool)
    ones = jnp.ones((3, 2))
    _, state = aggregate.update(ones, state, params, received=everyone)
    broken = ones.at[1, 0].set(jnp.inf)
    _, state = aggregate.update(broken, state, params, received=everyone)
    gradient, _ = aggregate.update(
        2 * ones, state, params, received=jnp.array([True, False, True])
    )
    np.testing.assert_allclose(gradient, [5, 5], rtol=1e-6)


def test_late_of_another_length_is_rejected():
    aggregate = jaxwgc.decode_aggregate(codes.uncoded(4), memory=True)
    params = jnp.zeros(2)
    state = aggregate.init(params)
    with pytest.raises(
        ValueError, match=r"late must have shape \(num_workers,\) = \(4"
    ):
        aggregate.update(
            jnp.ones((4, 2)),
            state,
            params,
            received=jnp.ones(4, bool),
            late=jnp.zeros(3, bool),
        )


def test_state_of_the_other_aggregator_is_rejected():
    coded, decode = _aggregators(codes.uncoded(3))
    params = jnp.zeros(2)
    with pytest.raises(ValueError, match="state must be from init of coded_aggregate"):
        coded.update(jnp.ones((3, 2)), decode.init(params), params)


def test_real_messages_take_arrivals_of_busy_workers():
    """Their masks count as if they were passed one by one."""
    code = codes.fractional_repetition(4, 1)
    aggregate = jaxwgc.decode_aggregate(code, memory=True)
    params = jnp.zeros(2)
    state = aggregate.init(params)
    late = jnp.array([False, True, False, False])
    arrivals = stragglers.Arrivals(
        received=jnp.array([True, False, False, False]),
        times=jnp.ones(4),
        elapsed=jnp.ones(()),
        joined=~late,
        late=late,
    )
    messages = coding.encode(code, jnp.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
    at_once = aggregate.update(messages, state, params, received=arrivals)
    apart = aggregate.update(
        messages, state, params, received=arrivals.received, late=late
    )
    np.testing.assert_array_equal(at_once[0], apart[0])
    assert jax.tree.all(
        jax.tree.map(np.array_equal, at_once[1].memory, apart[1].memory)
    )
