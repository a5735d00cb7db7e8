"""Wrong messages are left out by both aggregators, and counted."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes, corruptions, stragglers
from jaxwgc.aggregate import DecodingOptions

KEY = jax.random.key(0)
CODE = codes.fractional_repetition(6, num_stragglers=2)
PARAMS = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(())}
PARTIALS = jax.tree.map(
    lambda leaf: jax.random.normal(KEY, (CODE.num_parts, *leaf.shape)), PARAMS
)
EXACT = jax.tree.map(lambda leaf: leaf.sum(0), PARTIALS)
EVERYBODY = np.ones(6, bool)
assert_close = functools.partial(chex.assert_trees_all_close, atol=1e-5)


decode_aggregate = functools.partial(jaxwgc.decode_aggregate, CODE, correct_errors=True)
PLAIN = decode_aggregate()
NARROW = decode_aggregate(decoding=DecodingOptions(message_dtype="bfloat16"))


def coded(model, corrupt, correct_errors):
    options = {"corrupt": corrupt, "correct_errors": correct_errors}
    return jaxwgc.coded_aggregate(CODE, model, KEY, method="messages", **options)


def test_simulated_rounds():
    """Two wrong in each, for good; with and without correction, under a scan."""
    who = stragglers.fixed(np.arange(6) > 1)

    def train(correct_errors):
        corrupt = corruptions.additive_noise(who)
        aggregate = coded(stragglers.uniform(0), corrupt, correct_errors)

        def step(state, _):
            gradient, state = aggregate.update(PARTIALS, state, PARAMS)
            return state, gradient

        return jax.lax.scan(step, aggregate.init(PARAMS), None, 5)

    state, gradients = train(True)
    assert_close(gradients, jax.tree.map(lambda leaf: jnp.stack(5 * [leaf]), EXACT))
    errors = state.errors
    np.testing.assert_array_equal(errors.wrong, [True, True] + 4 * [False])
    np.testing.assert_array_equal(errors.num_wrong, [5, 5, 0, 0, 0, 0])
    assert (int(errors.num_corrected), int(errors.num_rejected)) == (5, 0)
    assert int(state.num_undecodable) == 0
    np.testing.assert_array_equal(state.received, ~errors.wrong)

    state, gradients = train(False)
    assert state.errors == ()
    assert np.abs(gradients["w"] - EXACT["w"]).max() > 0.1


def test_state_of_both_models():
    """A fault that comes and goes, beside stragglers that do."""
    slow = stragglers.shifted_exponential(shift=1.0, rate=1.0)
    faults = stragglers.markov(slow, stragglers.affine(slow, 9.0), 0.1, 0.5)
    who = stragglers.delayed(faults, stragglers.deadline(8.0))
    model = stragglers.delayed(slow, stragglers.fastest(5), late="busy")
    aggregate = coded(model, corruptions.sign_flip(who), correct_errors=True)
    state = aggregate.init(PARAMS)
    _, after = jax.eval_shape(aggregate.update, PARTIALS, state, PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


class TestMessages:
    messages = jaxwgc.encode(CODE, PARTIALS)

    def update(self, messages, aggregate=PLAIN):
        state = aggregate.init(PARAMS)
        return aggregate.update(messages, state, PARAMS, received=EVERYBODY)

    def test_corrupted_and_missing_messages_are_corrected(self):
        messages = self.messages.at[1].multiply(-1).at[4].set(jnp.nan)
        gradient, state = self.update(messages)
        assert_close(gradient, EXACT)
        np.testing.assert_array_equal(state.errors.num_wrong, [0, 1, 0, 0, 0, 0])
        expected = [True, False, True, True, False, True]
        np.testing.assert_array_equal(state.received, expected)

    def test_a_round_that_cannot_be_explained_gives_nothing(self):
        messages = self.messages.at[1].multiply(-1).at[3].multiply(3)
        gradient, state = self.update(messages)
        assert_close(gradient, PARAMS)
        assert int(state.errors.num_rejected) == int(state.num_undecodable) == 1

    def test_rounded_messages(self):
        """Rounding to bfloat16 on the way is no error."""
        rounded = self.messages.astype(jnp.bfloat16).astype(jnp.float32)
        noisy = rounded.at[0].multiply(1 + 2**-9)
        for aggregate, wrong in ((PLAIN, 1), (NARROW, 0)):
            _, state = self.update(noisy, aggregate)
            assert int(state.errors.num_corrected) == wrong
        _, state = self.update(noisy.at[2, 0].add(1.0), NARROW)
        np.testing.assert_array_equal(state.errors.wrong, np.arange(6) == 2)


def test_state_without_error_counts_is_rejected():
    code = codes.reed_solomon(5, 5, 3)
    plain = jaxwgc.decode_aggregate(code)
    correcting = jaxwgc.decode_aggregate(code, correct_errors=True)
    params = jnp.zeros(2)
    messages = jaxwgc.encode(code, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="from init with correct_errors=True"):
        correcting.update(
            messages, plain.init(params), params, received=jnp.ones(5, bool)
        )


def test_each_observed_round_has_projections_of_its_own():
    """A key is used once: not for the next round, nor for the stragglers of one."""
    aggregate = coded(stragglers.uniform(0), None, True)
    first = aggregate.init(PARAMS)
    _, second = aggregate.update(PARTIALS, first, PARAMS, received=EVERYBODY)
    _, third = aggregate.update(PARTIALS, second, PARAMS, received=EVERYBODY)
    words = [jax.random.key_data(state.key) for state in (first, second, third)]
    assert len({tuple(key.tolist()) for key in words}) == 3
