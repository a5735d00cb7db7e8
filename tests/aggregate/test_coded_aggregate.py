"""`coded_aggregate` in every kind of round: its gradients, its state, its training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from optax.experimental import aggregating

import jaxwgc
from jaxwgc import stragglers
from jaxwgc.aggregate import DecodingOptions
from tests.catalogue.codes import CODES
from tests.conftest import random_patterns
from tests.zoo import gradients_of, regression, squared_loss

# Decoded by whole groups: any other decoder is most of a program's compilation.
GROUPS = jaxwgc.codes.binary(6, num_stragglers=2)
KEY = jax.random.key(0)
METHODS = ("partials", "messages")
every_method = pytest.mark.parametrize("method", METHODS)


def aggregate(code, key=KEY, **options):
    """A coded_aggregate with uniform stragglers."""
    model = stragglers.uniform(code.num_stragglers)
    return jaxwgc.coded_aggregate(code, model, key, **options)


def comparable(state):
    """A state whose typed key is its bits, as array comparisons need."""

    def data_of(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data_of, state)


class TestMethods:
    @pytest.mark.parametrize(
        ("name", "message"),
        [("reed_solomon", "c64[6,4]"), ("cyclic_repetition", "f32[6,7]")],
    )
    def test_only_the_method_messages_forms_messages(self, name, message):
        """An array (num_workers, length) for 7 parameters, complex ones in halves."""
        gradients = gradients_of(6)
        formed = []
        for method in METHODS:
            transform = aggregate(CODES[name], method=method)
            jaxpr = jax.make_jaxpr(transform.update)(gradients, transform.init(None))
            formed.append(message in str(jaxpr))
        assert formed == [method == "messages" for method in METHODS]

    @every_method
    def test_an_update_outside_of_jit_compiles_one_program(self, method, caplog):
        transform = aggregate(GROUPS, method=method)
        gradients = gradients_of(6)
        state = transform.init(None)
        with jax.log_compiles():
            transform.update(gradients, state)
        said = [record.getMessage() for record in caplog.records]
        assert len([line for line in said if line.startswith("Compiling ")]) == 1

    @every_method
    def test_skipped_rounds(self, method):
        transform = aggregate(CODES["uncoded"], undecodable="skip", method=method)
        gradients = gradients_of(6)
        state = transform.init(None)
        update = jax.jit(
            lambda state, mask: transform.update(gradients, state, received=mask)
        )
        for num_lost, expected_count in ((3, 1), (0, 1), (1, 2)):
            updates, state = update(state, random_patterns(6, num_lost, 1)[0])
            assert state.num_undecodable == expected_count
            for name, leaf in gradients.items():
                full = np.zeros(leaf.shape[1:]) if num_lost else leaf.sum(0)
                np.testing.assert_allclose(updates[name], full, rtol=1e-5)

    def test_skipped_rounds_hide_what_is_not_finite(self):
        transform = aggregate(CODES["uncoded"], undecodable="skip")
        gradients = np.ones((6, 2), np.float32)
        gradients[2] = np.inf
        updates, _ = jax.jit(transform.update)(
            gradients, transform.init(None), received=np.arange(6) > 0
        )
        np.testing.assert_array_equal(updates, 0)

    def test_tolerance(self):
        """Uncoded, one of 6 missing: a residual of sqrt(1 / 6) of the target."""
        for factor, count in ((0.99, 1), (1.01, 0)):
            decoding = DecodingOptions(tolerance=factor * np.sqrt(1 / 6))
            transform = aggregate(CODES["uncoded"], decoding=decoding)
            mask = random_patterns(6, 1, 1)[0]
            updates, state = jax.jit(transform.update)(
                np.ones(6, np.float32), transform.init(None), received=mask
            )
            assert state.num_undecodable == count
            np.testing.assert_allclose(updates, 5, rtol=1e-6)


def test_parts_finished_by_a_deadline(with_x64):
    """Slow workers count for what they have finished."""
    delay = stragglers.shifted_exponential(shift=0.5, rate=1.0)
    model = stragglers.delayed(delay, stragglers.deadline(2.0))
    code = CODES["partially_coded"]
    transform = jaxwgc.coded_aggregate(code, model, jax.random.key(4))
    gradients = gradients_of(code.num_parts, np.float64)
    update = jax.jit(transform.update)
    state = transform.init(None)

    @jax.jit
    def sample(key):
        arrivals, _ = model.sample(jax.random.split(key)[1], (), code.loads)
        return arrivals.received, arrivals.finished(code.parts_per_worker)

    some = 0
    for _ in range(8):
        received, finished = jax.device_get(sample(state.key))
        updates, state = update(gradients, state)
        # Each worker's messages that it could send by then, decoded by NumPy.
        sent = (finished[:, None] >= code.required_parts).ravel()
        rows = np.where(sent[:, None], code.encoding_matrix, 0)
        mixing = code.target @ np.linalg.pinv(rows, rcond=1e-10) @ rows
        for name, leaf in gradients.items():
            expected = np.tensordot(mixing, leaf, axes=1)
            np.testing.assert_allclose(updates[name], expected, atol=1e-10)
        np.testing.assert_array_equal(state.received, received)
        some += np.sum((finished > 0) & (finished < code.parts_per_worker))
    # Masks alone would have lost these.
    assert some > 3
    assert 0 < state.elapsed <= 8 * 2.0


class TestState:
    def test_simulated_rounds(self, with_x64):
        """Each round is what the model gives; the times add up."""
        delay = stragglers.shifted_exponential(shift=1.0, rate=0.5)
        model = stragglers.delayed(delay, stragglers.fastest(3))
        transform = jaxwgc.coded_aggregate(GROUPS, model, jax.random.key(1))
        gradients = gradients_of(6, np.float64)
        update = jax.jit(lambda state: transform.update(gradients, state))

        @jax.jit
        def sample(key):
            key, draw = jax.random.split(key)
            return key, model.sample(draw, (), np.full(6, 3.0))[0]

        state = transform.init(None)
        assert state.elapsed == state.residual == state.num_undecodable == 0
        assert np.all(state.received)
        masks = []
        total = 0.0
        for _ in range(4):
            key, arrivals = sample(state.key)
            total += float(np.sort(arrivals.times)[2])
            _, state = update(state)
            assert state.key == key
            np.testing.assert_array_equal(state.received, arrivals.received)
            np.testing.assert_allclose(state.elapsed, total, rtol=1e-12)
            masks.append(np.asarray(state.received))
        assert np.all(np.sum(masks, 1) == 3)
        assert len(np.unique(masks, axis=0)) > 1

    def test_state_of_a_model_is_carried(self):
        """A model of the user's own, whose state is no array: round r loses worker r.

        It is traced when the aggregator is made, and in every update.
        """

        class InTurn(stragglers.StragglerModel):
            def init(self, num_workers):
                return 0

            def sample(self, key, state, loads):
                received = jnp.arange(len(loads)) != state
                arrivals = stragglers.Arrivals(received, loads, jnp.asarray(1.5))
                return arrivals, state + 1

        class AsksForItsState(InTurn):
            def sample(self, key, state, loads):
                return super().sample(key, state if state < 6 else 0, loads)

        transform = jaxwgc.coded_aggregate(GROUPS, InTurn(), KEY)
        state = transform.init(None)
        update = jax.jit(lambda state: transform.update(np.ones(6, np.float32), state))
        for lost in range(3):
            _, state = update(state)
            np.testing.assert_array_equal(state.received, np.arange(6) != lost)
            assert state.stragglers == lost + 1
            assert state.elapsed == 1.5 * (lost + 1)
        with pytest.raises(TypeError, match="boolean conversion of traced"):
            jaxwgc.coded_aggregate(GROUPS, AsksForItsState(), KEY)

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

    def test_checkpoints(self, tmp_path):
        """Saved and restored bit for bit; training goes on as if nothing happened."""
        params, parts = regression(6, np.float32)
        optimizer = optax.chain(aggregate(GROUPS, jax.random.key(5)), optax.adam(0.1))

        @jax.jit
        def step(params, state):
            gradients = jaxwgc.partial_value_and_grad(squared_loss)(params, parts)[1]
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        def after_steps(num_steps, params, state):
            for _ in range(num_steps):
                params, state = step(params, state)
            return params, state

        start = params, optimizer.init(params)
        params, state = after_steps(3, params, optimizer.init(params))
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "checkpoint", (params, state))
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "checkpoint", start)
        restored_params, restored_state = restored
        assert isinstance(restored_state[0], jaxwgc.CodedAggregateState)
        assert restored_state[0].key.dtype == state[0].key.dtype
        chex.assert_trees_all_equal(comparable(restored), comparable((params, state)))
        chex.assert_trees_all_equal(
            comparable(after_steps(2, restored_params, restored_state)),
            comparable(after_steps(2, params, state)),
        )


def test_donating_the_state_leaves_the_key_alone(make_key):
    key = make_key(0)
    transform = aggregate(GROUPS, key)
    step = jax.jit(
        lambda state: transform.update(jnp.ones((6, 2)), state)[1], donate_argnums=0
    )
    np.testing.assert_array_equal(
        step(transform.init(None)).received, step(transform.init(None)).received
    )
    jax.random.uniform(key)


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


class TestTraining:
    """Coded training follows plain training for any responses."""

    def test_adam_on_the_full_gradient(self, with_x64):
        """Training with a weighted complex code follows Adam on the full gradient."""
        code = CODES["weighted"]
        params, parts = regression(code.num_parts)
        optimizer = optax.chain(aggregate(code), optax.adam(0.1))
        result, state = jax.jit(lambda: train(optimizer, params, parts, 12))()
        expected, _ = train(
            *(optax.adam(0.1), params, parts, 12),
            lambda *arguments: full_gradient(*arguments, code.target),
        )
        chex.assert_trees_all_close(result, expected, rtol=1e-9)
        assert np.abs(expected["w"][-1] - params["w"]).min() > 0.1
        assert state[0].received.sum() == 6 - code.num_stragglers
        assert state[0].num_undecodable == 0
        assert state[0].elapsed == 12

    def test_in_process_between_clipping_and_adam(self, with_x64):
        """Partial gradients are clipped one by one, their sum goes to Adam."""
        code = GROUPS
        params, parts = regression(6)
        radius = 1.5
        clip = optax.stateless(
            lambda updates, _: jax.vmap(
                lambda leaf: optax.projections.projection_l2_ball(leaf, radius)
            )(updates)
        )
        optimizer = aggregating.process(clip, aggregate(code), optax.adam(0.1))
        assert isinstance(optimizer, aggregating.Aggregator)
        result, state = jax.jit(lambda: train(optimizer, params, parts, 6))()

        def clipped(params, parts):
            gradients = jax.vmap(jax.grad(squared_loss), (None, 0))(params, parts)
            norms = jnp.sqrt(jnp.sum(gradients["w"] ** 2, axis=1) + gradients["b"] ** 2)
            factors = jnp.minimum(1, radius / norms)
            return jax.tree.map(lambda leaf: factors @ leaf, gradients), norms

        norms = jax.jit(clipped)(params, parts)[1]
        assert norms.min() < radius < norms.max()
        expected, _ = train(
            optax.adam(0.1), params, parts, 6, lambda *arguments: clipped(*arguments)[0]
        )
        chex.assert_trees_all_close(result, expected, rtol=1e-9)
        assert state[1].elapsed == 6
