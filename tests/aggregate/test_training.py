"""Chains of optax with an aggregator train as on the full gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.experimental import aggregating

from tests.aggregate.problems import (
    GROUPS,
    aggregate,
    full_gradient,
    plain_adam,
    regression,
    squared_loss,
    train,
)
from tests.zoo import CODES


class TestTraining:
    """Coded training follows plain training, whoever answers."""

    def test_adam_on_the_full_gradient(self, with_x64):
        """Of a complex code, with weights."""
        code = CODES["weighted"]
        params, parts = regression(code.num_parts)
        optimizer = optax.chain(aggregate(code), optax.adam(0.1))
        found, state = jax.jit(lambda: train(optimizer, params, parts, 12))()
        expected = plain_adam(params, parts, code.target)
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        assert np.abs(expected["w"][-1] - params["w"]).min() > 0.1
        assert state[0].received.sum() == 6 - code.num_stragglers
        assert state[0].num_undecodable == 0
        assert state[0].elapsed == 12

    def test_in_float32(self):
        params, parts = regression(6, np.float32)
        optimizer = optax.chain(aggregate(GROUPS), optax.adam(0.1))
        found, state = jax.jit(lambda: train(optimizer, params, parts, 12))()
        expected = plain_adam(params, parts, GROUPS.target)
        chex.assert_trees_all_close(found, expected, rtol=1e-3)
        assert state[0].residual.dtype == np.float32

    def test_map_over_keys(self, make_key, with_x64):
        """Every lane loses other workers, none loses the gradient."""
        code = GROUPS
        params, parts = regression(6)

        def run(key):
            optimizer = optax.chain(aggregate(code, key), optax.sgd(0.01))
            trajectory, state = train(optimizer, params, parts, 5)
            return trajectory, state[0].received

        keys = jnp.stack([make_key(seed) for seed in range(5)])
        found, received = jax.jit(jax.vmap(run))(keys)
        expected, _ = train(optax.sgd(0.01), params, parts, 5, full_gradient)
        for lane in range(5):
            own = jax.tree.map(lambda leaf, lane=lane: leaf[lane], found)
            chex.assert_trees_all_close(own, expected, rtol=1e-10)
        assert np.all(received.sum(1) == 4)
        assert len(np.unique(received, axis=0)) > 1

    def test_before_other_transformations(self, with_x64):
        """Decay, a mask, a partition, and a step size that is kept in the state."""
        params, parts = regression(6)
        # Of powers of two, which no precision rounds.
        schedule = optax.piecewise_constant_schedule(0.125, {4: 0.5})
        neighbours = optax.chain(
            optax.add_decayed_weights(0.3),
            optax.masked(optax.scale(2.0), {"w": True, "b": False}),
            optax.multi_transform(
                {
                    "fast": optax.sgd(0.05),
                    "slow": optax.inject_hyperparams(optax.adam)(schedule),
                },
                {"w": "fast", "b": "slow"},
            ),
        )
        optimizer = optax.chain(aggregate(GROUPS), neighbours)
        found, _ = jax.jit(lambda: train(optimizer, params, parts, 6))()
        expected, _ = train(neighbours, params, parts, 6, full_gradient)
        chex.assert_trees_all_close(found, expected, rtol=1e-9)

    def test_in_process_between_clipping_and_adam(self, with_x64):
        """Partial gradients are clipped one by one, their sum goes to Adam."""
        code = GROUPS
        params, parts = regression(6)
        radius = 1.5
        clip = optax.stateless(
            lambda updates, _: jax.vmap(
                lambda own: optax.projections.projection_l2_ball(own, radius)
            )(updates)
        )
        optimizer = aggregating.process(clip, aggregate(code), optax.adam(0.1))
        assert isinstance(optimizer, aggregating.Aggregator)
        found, state = jax.jit(lambda: train(optimizer, params, parts, 6))()

        def clipped(params, parts):
            each = jax.vmap(jax.grad(squared_loss), (None, 0))(params, parts)
            norms = jnp.sqrt(jnp.sum(each["w"] ** 2, axis=1) + each["b"] ** 2)
            factors = jnp.minimum(1, radius / norms)
            return jax.tree.map(lambda leaf: factors @ leaf, each), norms

        norms = jax.jit(clipped)(params, parts)[1]
        assert norms.min() < radius < norms.max()
        expected, _ = train(
            optax.adam(0.1), params, parts, 6, lambda *own: clipped(*own)[0]
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        assert state[1].elapsed == 6
