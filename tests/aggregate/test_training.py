"""Chains of optax with an aggregator train as on the full gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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

    @pytest.mark.parametrize(
        ("name", "method"),
        [
            ("weighted", "partials"),
            ("communication_efficient", "messages"),
            ("clustered, group", "messages"),
        ],
    )
    def test_adam_on_the_full_gradient(self, name, method, with_x64):
        code = CODES[name]
        params, parts = regression(code.num_parts)
        optimizer = optax.chain(aggregate(code, method=method), optax.adam(0.1))
        found, state = jax.jit(lambda: train(optimizer, params, parts, 12))()
        expected = plain_adam(params, parts, code.target)
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        assert np.abs(expected["w"][-1] - params["w"]).min() > 0.1
        assert state[0].received.sum() == 6 - code.num_stragglers
        assert state[0].num_undecodable == 0
        assert state[0].elapsed == 12

    def test_in_float32(self):
        code = CODES["reed_solomon"]
        params, parts = regression(6, np.float32)
        optimizer = optax.chain(aggregate(code), optax.adam(0.1))
        found, state = jax.jit(lambda: train(optimizer, params, parts, 12))()
        expected = plain_adam(params, parts, code.target)
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

    def test_with_a_regulariser(self, with_x64):
        """add_decayed_weights after decoding is the gradient of the penalised loss."""
        code = GROUPS
        params, parts = regression(6)
        optimizer = optax.chain(
            aggregate(code), optax.add_decayed_weights(0.3), optax.sgd(0.02)
        )
        found, _ = jax.jit(lambda: train(optimizer, params, parts, 60))()

        def objective(params):
            x, y = parts
            squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
            miss = x @ params["w"] + params["b"] - y
            return jnp.sum(miss**2) / 2 + 0.3 / 2 * squares

        expected, _ = train(
            optax.sgd(0.02), params, parts, 60, lambda own, _: jax.grad(objective)(own)
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        x = np.concatenate([parts[0].reshape(-1, 4), np.ones((24, 1))], 1)
        ridge = np.linalg.solve(x.T @ x + 0.3 * np.eye(5), x.T @ parts[1].ravel())
        np.testing.assert_allclose(found["w"][-1], ridge[:4], atol=1e-3)

    def test_beside_injected_hyperparameters(self, with_x64):
        code = GROUPS
        params, parts = regression(6)
        # Of powers of two, which no precision rounds.
        schedule = optax.piecewise_constant_schedule(0.125, {4: 0.5})
        optimizer = optax.chain(
            aggregate(code), optax.inject_hyperparams(optax.adam)(schedule)
        )
        found, state = jax.jit(lambda: train(optimizer, params, parts, 8))()
        plain, _ = train(optax.adam(schedule), params, parts, 8, full_gradient)
        chex.assert_trees_all_close(found, plain, rtol=1e-9)
        np.testing.assert_allclose(
            state[1].hyperparams["learning_rate"], schedule(7), rtol=1e-6
        )

    def test_before_a_masked_and_a_partitioned_optimiser(self, with_x64):
        code = GROUPS
        params, parts = regression(6)
        neighbours = optax.chain(
            optax.masked(optax.scale(2.0), {"w": True, "b": False}),
            optax.multi_transform(
                {"fast": optax.sgd(0.05), "slow": optax.adam(0.01)},
                {"w": "fast", "b": "slow"},
            ),
        )
        optimizer = optax.chain(aggregate(code), neighbours)
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
            total = jax.tree.map(jnp.zeros_like, params)
            norms = []
            for index in range(6):
                own = jax.grad(squared_loss)(
                    params, jax.tree.map(lambda leaf, index=index: leaf[index], parts)
                )
                norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(own)))
                factor = jnp.minimum(1, radius / norm)
                total = jax.tree.map(
                    lambda sum_, leaf, factor=factor: sum_ + factor * leaf, total, own
                )
                norms.append(norm)
            return total, jnp.stack(norms)

        norms = jax.jit(clipped)(params, parts)[1]
        assert norms.min() < radius < norms.max()
        expected, _ = train(
            optax.adam(0.1), params, parts, 6, lambda *own: clipped(*own)[0]
        )
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        assert state[1].elapsed == 6
