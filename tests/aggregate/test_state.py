"""What the state of an aggregator holds, and that it is saved and observed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint

import jaxwgc
from jaxwgc import stragglers
from tests.aggregate.problems import (
    GROUPS,
    aggregate,
    comparable,
    data_of_key,
    regression,
    squared_loss,
)
from tests.zoo import gradients_of


class TestState:
    def test_simulated_rounds(self, make_key, with_x64):
        """Each round is what the model gives; the times add up."""
        delay = stragglers.shifted_exponential(shift=1.0, rate=0.5)
        model = stragglers.delayed(delay, stragglers.fastest(3))
        transform = jaxwgc.coded_aggregate(GROUPS, model, make_key(1))
        gradients = gradients_of(6, np.float64)
        update = jax.jit(lambda state: transform.update(gradients, state))
        sample = jax.jit(model.sample)
        state = transform.init(None)
        assert state.elapsed == state.residual == state.num_undecodable == 0
        assert np.all(state.received)
        masks, total = [], 0.0
        for _ in range(4):
            key, draw = jax.random.split(state.key)
            arrivals, _ = sample(draw, (), np.full(6, 3.0))
            total += float(np.sort(arrivals.times)[2])
            _, state = update(state)
            np.testing.assert_array_equal(data_of_key(state.key), data_of_key(key))
            np.testing.assert_array_equal(state.received, arrivals.received)
            np.testing.assert_allclose(state.elapsed, total, rtol=1e-12)
            masks.append(np.asarray(state.received))
        assert np.all(np.sum(masks, 1) == 3)
        assert len(np.unique(masks, axis=0)) > 1

    def test_loads_reach_the_model(self):
        """The time of a worker grows with the number of parts that it holds."""
        code = GROUPS
        delay = stragglers.bernoulli_slowdown(0.0, 1.0, time=2.0)
        model = stragglers.delayed(delay, stragglers.fastest(4))
        transform = jaxwgc.coded_aggregate(code, model, jax.random.key(0))
        _, state = jax.jit(transform.update)(
            np.ones(6, np.float32), transform.init(None)
        )
        assert state.elapsed == 2.0 * 3

    def test_state_of_a_model_is_carried(self):
        """A model of the user's own: round r loses worker r."""

        class InTurn(stragglers.StragglerModel):
            def init(self, num_workers):
                return jnp.array(0)

            def sample(self, key, state, loads):
                received = jnp.arange(len(loads)) != state
                arrivals = stragglers.Arrivals(received, loads, jnp.asarray(1.5))
                return arrivals, state + 1

        transform = jaxwgc.coded_aggregate(GROUPS, InTurn(), jax.random.key(0))
        state = transform.init(None)
        update = jax.jit(lambda state: transform.update(np.ones(6, np.float32), state))
        for lost in range(3):
            _, state = update(state)
            np.testing.assert_array_equal(state.received, np.arange(6) != lost)
            assert state.stragglers == lost + 1
            assert state.elapsed == 1.5 * (lost + 1)

    def test_observed_rounds(self):
        """No randomness is used up, and time only counts where it is given."""
        transform = optax.chain(aggregate(GROUPS, jax.random.key(3)), optax.sgd(1.0))
        gradients = np.ones((6, 2), np.float32)
        mask = np.array([True, False, True, True, False, True])
        state = transform.init(np.zeros(2, np.float32))
        update = jax.jit(
            lambda state, mask, **extra: transform.update(
                gradients, state, None, received=mask, **extra
            )
        )
        updates, once = update(state, mask)
        np.testing.assert_allclose(updates, -6, rtol=1e-4)
        np.testing.assert_array_equal(once[0].received, mask)
        assert once[0].elapsed == 0
        _, twice = update(once, mask, elapsed=2.5)
        _, thrice = update(twice, np.arange(6) < 1, elapsed=0.25)
        assert thrice[0].elapsed == 2.75
        assert thrice[0].num_undecodable == 1
        assert thrice[0].key == jax.random.key(3)
        _, simulated = jax.jit(transform.update)(gradients, state)
        assert simulated[0].key != jax.random.key(3)

    def test_checkpoints(self, make_key, tmp_path):
        """Saved and restored bit for bit; training goes on as if nothing happened."""
        params, parts = regression(6, np.float32)
        optimizer = optax.chain(aggregate(GROUPS, make_key(5)), optax.adam(0.1))

        @jax.jit
        def step(params, state):
            gradients = jaxwgc.partial_value_and_grad(squared_loss)(params, parts)[1]
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        saved = params, optimizer.init(params)
        for _ in range(3):
            saved = step(*saved)
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "checkpoint", saved)
            checkpointer.wait_until_finished()
            like = params, optimizer.init(params)
            restored = checkpointer.restore(tmp_path / "checkpoint", like)
        assert isinstance(restored[1][0], jaxwgc.CodedAggregateState)
        assert restored[1][0].key.dtype == saved[1][0].key.dtype
        chex.assert_trees_all_equal(comparable(restored), comparable(saved))
        chex.assert_trees_all_equal(
            comparable(step(*step(*restored))), comparable(step(*step(*saved)))
        )


def test_donating_the_state_leaves_the_key_alone(make_key):
    key = make_key(0)
    transform = aggregate(GROUPS, key)
    step = jax.jit(
        lambda state: transform.update(jnp.ones((6, 2)), state)[1], donate_argnums=0
    )
    first, again = step(transform.init(None)), step(transform.init(None))
    np.testing.assert_array_equal(first.received, again.received)
    jax.random.uniform(key)
