"""Both methods of the aggregator in every kind of round, against NumPy."""

import chex
import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from tests.aggregate.problems import (
    METHODS,
    aggregate,
    every_method,
)
from tests.conftest import random_patterns
from tests.zoo import CODES, gradients_of


class TestMethods:
    @pytest.mark.parametrize(
        ("name", "message"),
        [("reed_solomon", "c64[6,4]"), ("cyclic_repetition", "f32[6,7]")],
    )
    def test_only_messages_forms_them(self, name, message):
        """An array (num_workers, length) for 7 parameters, complex ones in halves."""
        gradients = gradients_of(6)
        formed = []
        for method in METHODS:
            transform = aggregate(CODES[name], method=method)
            jaxpr = jax.make_jaxpr(transform.update)(gradients, transform.init(None))
            formed.append(message in str(jaxpr))
        assert formed == [method == "messages" for method in METHODS]

    def test_skipped_rounds(self, with_x64):
        code = CODES["reed_solomon"]
        gradients = gradients_of(6, np.float64)
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


SEVERAL_MESSAGES = {
    "multi_message": jaxwgc.codes.multi_message(jaxwgc.codes.uncoded(3, 9)),
    "partial": jaxwgc.codes.partially_coded(
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
        gradients = gradients_of(code.num_parts, np.float64)
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

    def test_of_one_message_only_whole_workers_count(self, with_x64):
        """The model reports finished parts, which this code cannot use."""
        code = CODES["cyclic_repetition"]
        delay = stragglers.shifted_exponential(shift=0.5, rate=1.0)
        model = stragglers.delayed(delay, stragglers.deadline(3.0))
        transform = jaxwgc.coded_aggregate(code, model, jax.random.key(4))
        state = transform.init(None)
        loads = np.full(6, 3.0)
        arrivals, _ = jax.jit(model.sample)(jax.random.split(state.key)[1], (), loads)
        assert np.any((arrivals.finished > 0) & ~np.asarray(arrivals.received))
        _, state = jax.jit(transform.update)(gradients_of(6, np.float64), state)
        np.testing.assert_array_equal(state.received, arrivals.received)
        error = jaxwgc.decoding_error(code, arrivals.received)
        np.testing.assert_allclose(state.residual, np.sqrt(error), atol=1e-9)
