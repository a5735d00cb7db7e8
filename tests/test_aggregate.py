"""The optax transformation against plain optax on the full gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optax.experimental import aggregating

import jaxwgc
from jaxwgc import decoders, stragglers
from tests.conftest import every_pattern, random_patterns
from tests.strategies import decoded_once

CODES = {
    "reed_solomon": jaxwgc.codes.reed_solomon(6, 3, 4),
    "no_slack": jaxwgc.codes.reed_solomon(6, 6, 3),
    "uncoded": jaxwgc.codes.uncoded(6),
    "fractional": jaxwgc.codes.fractional_repetition(6, 2),
    "cyclic": jaxwgc.codes.cyclic_repetition(jax.random.key(2), 6, 2),
    "weighted": jaxwgc.weighted(
        jaxwgc.codes.reed_solomon(6, 6, 3), np.array([2.0, 0, 1, 3, 0.5, 1])
    ),
}
# Decoded by whole groups: any other decoder is most of a program's compilation.
GROUPS = jaxwgc.codes.binary(6, num_stragglers=2)
every_code = pytest.mark.parametrize("code", CODES.values(), ids=CODES)
METHODS = ("partials", "messages")
every_method = pytest.mark.parametrize("method", METHODS)


def squared_loss(params, part):
    x, y = part
    return jnp.sum((x @ params["w"] + params["b"] - y) ** 2) / 2


def regression(num_parts, dtype=np.float64):
    """Parameters in two leaves, 5 in all, and parts of 4 rows."""
    draw = np.random.default_rng(0).normal
    params = {"w": np.ones((4), dtype), "b": np.zeros((), dtype)}
    parts = draw(size=(num_parts, 4, 4)), draw(size=(num_parts, 4))
    return params, jax.tree.map(lambda leaf: leaf.astype(dtype), parts)


def gradients_of(num_parts, seed=0, dtype=np.float64):
    draw = np.random.default_rng(seed).normal
    return {
        "w": draw(size=(num_parts, 3, 2)).astype(dtype),
        "b": draw(size=num_parts).astype(dtype),
    }


def aggregate(code, key=None, lost=None, **options):
    """A coded_aggregate with uniform stragglers."""
    model = stragglers.uniform(code.num_stragglers if lost is None else lost)
    key = jax.random.key(0) if key is None else key
    return jaxwgc.coded_aggregate(code, model, key, **options)


def data_of_key(key):
    return (
        jax.random.key_data(key)
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        else key
    )


def comparable(state):
    """A state whose typed key is its bits, as array comparisons need."""
    return jax.tree.map(data_of_key, state)


def train(optimizer, params, parts, num_steps, gradient_of=None):
    """A whole training as one lax.scan: parameters after every step, last state."""

    def step(carry, _):
        params, state = carry
        if gradient_of is None:
            gradients = jaxwgc.partial_value_and_grad(squared_loss)(params, parts)[1]
        else:
            gradients = gradient_of(params, parts)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = params, optimizer.init(params)
    (_, state), trajectory = jax.lax.scan(step, start, None, num_steps)
    return trajectory, state


def full_gradient(params, parts, weights=None):
    """jax.grad of the plain loss over all rows, no parts and no code."""

    def loss(params):
        x, y = parts
        miss = (x @ params["w"] + params["b"] - y) ** 2 / 2
        return jnp.sum(miss if weights is None else miss * weights[:, None])

    return jax.grad(loss)(params)


@jax.jit
def plain_adam(params, parts, weights):
    """Twelve steps on the whole gradient, compiled once for problems of one size."""
    return train(
        optax.adam(0.1), params, parts, 12, lambda *own: full_gradient(*own, weights)
    )[0]


class TestTraining:
    """Coded training follows plain training, whoever answers."""

    @pytest.mark.parametrize(
        ("name", "method"),
        [
            *((name, "partials") for name in CODES),
            ("weighted", "messages"),
            ("cyclic", "messages"),
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

    @every_method
    def test_in_float32(self, method):
        code = CODES["no_slack"]
        params, parts = regression(6, np.float32)
        optimizer = optax.chain(aggregate(code, method=method), optax.adam(0.1))
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


class TestMethods:
    @every_code
    def test_agree_in_every_round(self, code, x64):
        """All 64 masks, with real and complex codes; the sum comes from NumPy."""
        dtype = np.float64 if x64 else np.float32
        gradients = gradients_of(code.num_parts, dtype=dtype)
        masks = every_pattern(6, 6)

        @jax.jit
        @jax.vmap
        def aggregated(mask):
            once = decoded_once(code, received=mask)
            transforms = [
                aggregate(once, method=own) for own in ("partials", "messages")
            ]
            return [
                own.update(gradients, own.init(None), received=mask)
                for own in transforms
            ]

        partials, messages = aggregated(masks)
        tolerance = 1e-10 if x64 else 2e-4
        chex.assert_trees_all_close(
            partials[0], messages[0], rtol=tolerance, atol=10 * tolerance
        )
        chex.assert_trees_all_close(
            comparable(partials[1]), comparable(messages[1]), rtol=1e-6
        )
        chex.assert_trees_all_equal_dtypes(partials[0], messages[0], gradients)
        exact = masks.sum(1) >= 6 - code.num_stragglers
        for name, leaf in gradients.items():
            full = np.tensordot(code.target, np.float64(leaf), 1)
            np.testing.assert_allclose(
                messages[0][name][exact],
                np.broadcast_to(full, (exact.sum(), *full.shape)),
                atol=10 * tolerance,
            )
        np.testing.assert_array_equal(partials[1].received, masks)

    @settings(max_examples=8, deadline=None)
    @given(
        shapes=st.lists(
            st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3
        ),
        dtype=st.sampled_from([np.float32, np.float16, jnp.bfloat16]),
        complex_code=st.booleans(),
        seed=st.integers(0, 100),
    )
    @example(shapes=[(0,)], dtype=np.float32, complex_code=True, seed=0)
    def test_any_shapes_and_dtypes(self, shapes, dtype, complex_code, seed):
        """Whole numbers decode exactly; half precision is summed in float32."""
        code = CODES["no_slack" if complex_code else "fractional"]
        draw = np.random.default_rng(seed).integers
        whole = [draw(-40, 40, (6, *shape)) for shape in shapes]
        updates = [jnp.asarray(leaf, dtype) for leaf in whole]
        mask = random_patterns(6, 2, 1, seed)[0]

        @jax.jit
        def aggregated(updates, mask):
            once = decoded_once(code, received=mask)
            transforms = [
                aggregate(once, method=own) for own in ("partials", "messages")
            ]
            return [
                own.update(updates, own.init(None), received=mask)[0]
                for own in transforms
            ]

        for decoded in aggregated(updates, mask):
            for leaf, found in zip(whole, decoded, strict=True):
                assert found.dtype == dtype
                exact = np.asarray(leaf.sum(0), np.float32)
                error = np.abs(np.asarray(found, np.float32) - exact)
                assert np.all(error <= jnp.finfo(dtype).eps * np.abs(exact) / 2 + 3e-3)

    @pytest.mark.parametrize(
        ("name", "message"), [("no_slack", "c64[6,4]"), ("cyclic", "f32[6,7]")]
    )
    def test_only_messages_forms_them(self, name, message):
        """An array (num_workers, length) for 7 parameters, complex ones in halves."""
        gradients = gradients_of(6, dtype=np.float32)
        formed = []
        for method in METHODS:
            transform = aggregate(CODES[name], method=method)
            jaxpr = jax.make_jaxpr(transform.update)(gradients, transform.init(None))
            formed.append(message in str(jaxpr))
        assert formed == [method == "messages" for method in METHODS]

    def test_skipped_rounds(self, with_x64):
        code = CODES["no_slack"]
        gradients = gradients_of(6)
        masks = random_patterns(6, 3, 3)
        masks[1] = random_patterns(6, 2, 1)[0]
        for method in METHODS:
            transform = aggregate(code, undecodable="skip", method=method)
            state = transform.init(None)
            update = jax.jit(
                lambda state, mask, transform=transform: transform.update(
                    gradients, state, received=mask
                )
            )
            for mask, expected_count in zip(masks, [1, 1, 2], strict=True):
                updates, state = update(state, mask)
                assert state.num_undecodable == expected_count
                for name, leaf in gradients.items():
                    full = leaf.sum(0) if mask.sum() == 4 else np.zeros(leaf.shape[1:])
                    np.testing.assert_allclose(updates[name], full, atol=1e-10)

    def test_skipped_rounds_hide_what_is_not_finite(self):
        transform = aggregate(CODES["uncoded"], undecodable="skip")
        gradients = np.ones((6, 2), np.float32)
        gradients[2] = np.inf
        updates, _ = jax.jit(transform.update)(
            gradients, transform.init(None), received=np.arange(6) > 0
        )
        np.testing.assert_array_equal(updates, 0)

    def test_least_squares_rounds_are_counted_too(self, with_x64):
        """Uncoded: the gradient without the parts of stragglers, by hand."""
        transform = aggregate(CODES["uncoded"])
        gradients = gradients_of(6)
        state = transform.init(None)
        update = jax.jit(transform.update)
        for count, lost in enumerate([1, 3], start=1):
            mask = random_patterns(6, lost, 1)[0]
            updates, state = update(gradients, state, received=mask)
            for name, leaf in gradients.items():
                np.testing.assert_allclose(updates[name], leaf[mask].sum(0), rtol=1e-12)
            assert state.num_undecodable == count
            np.testing.assert_allclose(state.residual, np.sqrt(lost), rtol=1e-12)

    @pytest.mark.parametrize("lost", [1, 5])
    def test_tolerance(self, lost):
        """Uncoded, `lost` of 6 missing: a residual of sqrt(lost / 6) of the target."""
        share = np.sqrt(lost / 6)
        for factor, count in ((0.99, 1), (1.01, 0)):
            transform = aggregate(CODES["uncoded"], tolerance=factor * share)
            mask = random_patterns(6, lost, 1)[0]
            updates, state = jax.jit(transform.update)(
                np.ones(6, np.float32), transform.init(None), received=mask
            )
            assert state.num_undecodable == count
            np.testing.assert_allclose(updates, 6 - lost, rtol=1e-6)

    def test_decoder_by_name(self, with_x64):
        code = CODES["reed_solomon"]
        gradients = gradients_of(3)
        transform = aggregate(code, decoder=decoders.LeastSquares, method="messages")
        mask = np.arange(6) > 0
        update = jax.jit(transform.update)
        updates, _ = update(gradients, transform.init(None), received=mask)
        np.testing.assert_allclose(updates["w"], gradients["w"].sum(0), rtol=1e-10)


SEVERAL_MESSAGES = {
    "multi_message": jaxwgc.codes.multi_message(jaxwgc.codes.uncoded(3, 9)),
    "partial": jaxwgc.codes.partial(
        jaxwgc.codes.cyclic_repetition(jax.random.key(2), 4, 1), 1
    ),
}
every_code_of_several_messages = pytest.mark.parametrize(
    "code", SEVERAL_MESSAGES.values(), ids=SEVERAL_MESSAGES
)


def by_finished_parts(code, gradients, finished):
    """Each worker's messages that it could send by then, decoded by NumPy."""
    sent = (np.asarray(finished)[:, None] >= code.required_parts).ravel()
    rows = np.where(sent[:, None], code.encoding_matrix, 0)
    mixing = code.target @ np.linalg.pinv(rows, rcond=1e-10) @ rows
    return {
        name: np.tensordot(mixing, leaf, axes=1) for name, leaf in gradients.items()
    }


class TestSeveralMessages:
    """Slow workers count for what they have finished."""

    @every_code_of_several_messages
    @every_method
    def test_parts_finished_by_a_deadline(self, code, method, with_x64):
        delay = stragglers.shifted_exponential(shift=0.5, rate=1.0)
        model = stragglers.delayed(delay, stragglers.deadline(3.0))
        transform = jaxwgc.coded_aggregate(
            code, model, jax.random.key(4), method=method
        )
        gradients = gradients_of(code.num_parts)
        update = jax.jit(transform.update)
        sample = jax.jit(model.sample)
        state = transform.init(None)
        loads = np.asarray(code.loads, float)
        some = 0
        for _ in range(6):
            arrivals, _ = sample(jax.random.split(state.key)[1], (), loads)
            updates, state = update(gradients, state)
            expected = by_finished_parts(code, gradients, arrivals.finished)
            chex.assert_trees_all_close(updates, expected, atol=1e-10)
            np.testing.assert_array_equal(state.received, arrivals.received)
            some += np.sum((arrivals.finished > 0) & (arrivals.finished < loads))
        # Masks alone would have lost these.
        assert some > 3
        assert 0 < state.elapsed <= 6 * 3.0

    @every_code_of_several_messages
    def test_observed_parts(self, code, with_x64):
        """Integers as `finished`, and masks that mean all messages or none."""
        transform = aggregate(code, lost=1)
        gradients = gradients_of(code.num_parts)
        update = jax.jit(transform.update)
        state = transform.init(None)
        loads = np.asarray(code.loads)
        finished = np.minimum(np.arange(code.num_workers) + 1, loads)
        updates, first = update(gradients, state, finished=finished)
        expected = by_finished_parts(code, gradients, finished)
        chex.assert_trees_all_close(updates, expected, atol=1e-10)
        np.testing.assert_array_equal(first.received, finished == loads)
        assert first.received.dtype == bool
        mask = finished == loads
        updates, second = update(gradients, first, received=mask)
        expected = by_finished_parts(code, gradients, np.where(mask, loads, 0))
        chex.assert_trees_all_close(updates, expected, atol=1e-10)
        np.testing.assert_array_equal(second.received, mask)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            comparable(state), comparable(second)
        )

    def test_of_one_message_only_whole_workers_count(self, with_x64):
        """The model reports finished parts, which this code cannot use."""
        code = CODES["cyclic"]
        delay = stragglers.shifted_exponential(shift=0.5, rate=1.0)
        model = stragglers.delayed(delay, stragglers.deadline(3.0))
        transform = jaxwgc.coded_aggregate(code, model, jax.random.key(4))
        state = transform.init(None)
        loads = np.full(6, 3.0)
        arrivals, _ = jax.jit(model.sample)(jax.random.split(state.key)[1], (), loads)
        assert np.any((arrivals.finished > 0) & ~np.asarray(arrivals.received))
        _, state = jax.jit(transform.update)(gradients_of(6), state)
        np.testing.assert_array_equal(state.received, arrivals.received)
        error = jaxwgc.decoding_error(code, arrivals.received)
        np.testing.assert_allclose(state.residual, np.sqrt(error), atol=1e-9)

    @pytest.mark.parametrize("name", ["segments", "clusters", "partial"])
    def test_training_is_that_of_the_full_gradient(self, name, with_x64):
        code = {
            "segments": jaxwgc.codes.communication_efficient(6, 2, 3),
            "clusters": jaxwgc.codes.clustered(jaxwgc.codes.binary(3, 1), 2),
            "partial": SEVERAL_MESSAGES["partial"],
        }[name]
        params, parts = regression(code.num_parts)
        optimizer = optax.chain(aggregate(code, method="messages"), optax.adam(0.1))
        found, state = jax.jit(lambda: train(optimizer, params, parts, 8))()
        expected, _ = train(optax.adam(0.1), params, parts, 8, full_gradient)
        chex.assert_trees_all_close(found, expected, rtol=1e-8)
        assert state[0].num_undecodable == 0


class TestState:
    def test_residual_and_elapsed_of_simulated_rounds(self, make_key, with_x64):
        """Each round is what the model gives; the times add up."""
        code = CODES["cyclic"]
        delay = stragglers.shifted_exponential(shift=1.0, rate=0.5)
        model = stragglers.delayed(delay, stragglers.fastest(3))
        transform = jaxwgc.coded_aggregate(code, model, make_key(1))
        gradients = gradients_of(6)
        update = jax.jit(lambda state: transform.update(gradients, state))
        sample = jax.jit(model.sample)
        state = transform.init(None)
        assert state.elapsed == state.residual == state.num_undecodable == 0
        assert np.all(state.received)
        masks, total = [], 0.0
        for count in range(1, 5):
            key, draw = jax.random.split(state.key)
            arrivals, _ = sample(draw, (), np.full(6, 3.0))
            total += float(np.sort(arrivals.times)[2])
            _, state = update(state)
            np.testing.assert_array_equal(data_of_key(state.key), data_of_key(key))
            np.testing.assert_array_equal(state.received, arrivals.received)
            np.testing.assert_allclose(state.elapsed, total, rtol=1e-12)
            rows = np.where(state.received[:, None], code.encoding_matrix, 0)
            missed = np.ones(6) @ np.linalg.pinv(rows, rcond=1e-10) @ rows - 1
            np.testing.assert_allclose(
                state.residual, np.linalg.norm(missed), rtol=1e-9
            )
            error = jaxwgc.decoding_error(code, state.received)
            np.testing.assert_allclose(state.residual, np.sqrt(error), rtol=1e-9)
            assert state.num_undecodable == count
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

        def sample(key, state, loads):
            received = jnp.arange(len(loads)) != state
            arrivals = stragglers.Arrivals(received, loads, jnp.asarray(1.5))
            return arrivals, state + 1

        model = stragglers.StragglerModel(lambda num_workers: jnp.array(0), sample)
        transform = jaxwgc.coded_aggregate(GROUPS, model, jax.random.key(0))
        state = transform.init(None)
        update = jax.jit(lambda state: transform.update(np.ones(6, np.float32), state))
        for lost in range(3):
            _, state = update(state)
            np.testing.assert_array_equal(state.received, np.arange(6) != lost)
            assert state.stragglers == lost + 1
            assert state.elapsed == 1.5 * (lost + 1)

    def test_observed_rounds(self, make_key):
        """No randomness is used up, and time only counts where it is given."""
        transform = optax.chain(aggregate(GROUPS, make_key(3)), optax.sgd(1.0))
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
        np.testing.assert_array_equal(
            data_of_key(thrice[0].key), data_of_key(make_key(3))
        )
        _, simulated = jax.jit(transform.update)(gradients, state)
        assert np.any(data_of_key(simulated[0].key) != data_of_key(make_key(3)))

    def test_observed_masks_in_process(self):
        """Extra arguments pass through for neighbours that take them."""
        transform = aggregating.process(
            optax.with_extra_args_support(optax.identity()),
            aggregate(CODES["uncoded"]),
            optax.with_extra_args_support(optax.sgd(1.0)),
        )
        state = transform.init(np.zeros((), np.float32))
        updates, _ = jax.jit(transform.update)(
            np.arange(6, dtype=np.float32), state, None, received=np.arange(6) < 5
        )
        np.testing.assert_allclose(updates, -(0 + 1 + 2 + 3 + 4))

    def test_round_trip_by_tree_flatten(self, make_key, x64):
        optimizer = optax.chain(aggregate(GROUPS, make_key(0)), optax.adam(0.1))
        params = {"w": np.zeros((3, 2), np.float32), "b": np.zeros((), np.float32)}
        gradients = gradients_of(6, dtype=np.float32)
        update = jax.jit(optimizer.update)
        start = optimizer.init(params)
        _, state = update(gradients, start, params)
        assert jax.tree.structure(start) == jax.tree.structure(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(
            comparable(start), comparable(state)
        )
        leaves, structure = jax.tree.flatten(state)
        again = jax.tree.unflatten(structure, leaves)
        assert isinstance(again[0], jaxwgc.CodedAggregateState)
        chex.assert_trees_all_equal(
            comparable(update(gradients, again, params)),
            comparable(update(gradients, state, params)),
        )

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


class TestBadInput:
    code = CODES["no_slack"]
    gradients = np.ones((6, 2), np.float32)

    def update(self, updates=gradients, **extra):
        transform = aggregate(self.code)
        return transform.update(updates, transform.init(None), None, **extra)

    def test_code_and_model(self):
        key, model = jax.random.key(0), stragglers.uniform(2)
        with pytest.raises(TypeError, match="code must be a GradientCode; got array"):
            jaxwgc.coded_aggregate(self.code.encoding_matrix, model, key)
        with pytest.raises(TypeError, match="model must be a StragglerModel; got 2"):
            jaxwgc.coded_aggregate(self.code, 2, key)
        with pytest.raises(TypeError, match="model must be a StragglerModel"):
            jaxwgc.coded_aggregate(self.code, stragglers.pareto(1.0, 2.0), key)

    @pytest.mark.parametrize("key", [0, None, "key", np.zeros(2, np.int32), 1.5])
    def test_key_of_the_wrong_type(self, key):
        with pytest.raises(TypeError, match="key must be a PRNG key from jax"):
            jaxwgc.coded_aggregate(self.code, stragglers.uniform(2), key)

    def test_more_or_less_than_one_key(self):
        for make in (jax.random.key, jax.random.PRNGKey):
            with pytest.raises(ValueError, match=r"key must be one key.*\(3"):
                aggregate(self.code, jax.random.split(make(0), 3))

    def test_raw_key_of_the_wrong_length(self):
        with pytest.raises(ValueError, match="key must be"):
            aggregate(self.code, np.zeros(3, np.uint32))

    def test_choices(self):
        with pytest.raises(ValueError, match="method must be one of 'partials', 'mess"):
            aggregate(self.code, method="message")
        with pytest.raises(ValueError, match="undecodable must be one of 'least_squ"):
            aggregate(self.code, undecodable=None)

    def test_decoder(self):
        with pytest.raises(TypeError, match="decoder must be a jaxwgc.decoders"):
            aggregate(self.code, decoder="guess")
        with pytest.raises(ValueError, match="decoder Lagrange needs a code"):
            aggregate(CODES["cyclic"], decoder=decoders.Lagrange)

    def test_tolerance(self):
        for tolerance in (-1e-3, float("nan")):
            with pytest.raises(ValueError, match=f"tolerance must be .*{tolerance}"):
                aggregate(self.code, tolerance=tolerance)
        with pytest.raises(TypeError, match="tolerance must be a real scalar"):
            aggregate(self.code, tolerance="small")

    def test_as_many_stragglers_as_workers(self):
        with pytest.raises(ValueError, match="num_stragglers must be less than num"):
            aggregate(self.code, lost=6).init(None)

    @pytest.mark.parametrize("shape", [(), (5, 2), (7, 2), (1, 6)])
    def test_updates_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"updates\['w'\] .* num_parts = 6; got"):
            self.update({"w": np.ones(shape), "b": np.ones(6)})
        with pytest.raises(ValueError, match="updates must have at least one array"):
            self.update({})

    @pytest.mark.parametrize("shape", [(), (5,), (7,), (1, 6), (6, 1)])
    def test_mask_of_the_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"received must have shape .*6"):
            self.update(received=np.ones(shape, bool))

    @pytest.mark.parametrize("dtype", [int, np.float32])
    def test_mask_of_the_wrong_type(self, dtype):
        with pytest.raises(TypeError, match="received must be a bool mask"):
            self.update(received=np.ones(6, dtype))

    def test_elapsed_without_received(self):
        with pytest.raises(ValueError, match="elapsed goes with received.*2.0"):
            self.update(elapsed=2.0)

    def test_elapsed_that_is_not_a_scalar(self):
        mask = np.ones(6, bool)
        with pytest.raises(TypeError, match="elapsed must be a real scalar"):
            self.update(received=mask, elapsed=np.ones(6))


class TestNewcomers:
    """What a first user ran into."""

    code = jaxwgc.codes.binary(3, num_stragglers=1)

    def test_donating_the_state_leaves_the_key_alone(self, make_key):
        key = make_key(0)
        aggregate = jaxwgc.coded_aggregate(self.code, jaxwgc.stragglers.uniform(1), key)
        step = jax.jit(
            lambda state: aggregate.update(jnp.ones((3, 2)), state)[1],
            donate_argnums=0,
        )
        first = step(aggregate.init(None))
        again = step(aggregate.init(None))
        np.testing.assert_array_equal(first.received, again.received)
        jax.random.uniform(key)

    def test_integer_updates_are_refused(self):
        aggregate = jaxwgc.coded_aggregate(
            self.code, jaxwgc.stragglers.uniform(1), jax.random.key(0)
        )
        with pytest.raises(TypeError, match=r"updates\['w'\] must be real or complex"):
            aggregate.update({"w": jnp.ones((3, 2), int)}, aggregate.init(None))
