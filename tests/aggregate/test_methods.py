"""Both methods of the aggregator in every kind of round, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import decoders, stragglers
from tests.aggregate.problems import (
    CODES,
    METHODS,
    aggregate,
    comparable,
    every_code,
    every_method,
    full_gradient,
    gradients_of,
    regression,
    train,
)
from tests.conftest import every_pattern, random_patterns


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
            once = jaxwgc.decoding(code, mask)
            transforms = [
                aggregate(code, method=own) for own in ("partials", "messages")
            ]
            return [
                own.update(gradients, own.init(None), received=once)
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
            once = jaxwgc.decoding(code, mask)
            transforms = [
                aggregate(code, method=own) for own in ("partials", "messages")
            ]
            return [
                own.update(updates, own.init(None), received=once)[0]
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
