"""Both methods of the aggregator in every kind of round, against NumPy."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers
from tests.aggregate.problems import GROUPS, METHODS, aggregate, every_method
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

    @every_method
    def test_one_program_outside_of_jit(self, method, caplog):
        transform = aggregate(GROUPS, method=method)
        gradients, state = gradients_of(6), transform.init(None)
        with jax.log_compiles():
            transform.update(gradients, state)
        said = [record.getMessage() for record in caplog.records]
        assert len([line for line in said if line.startswith("Compiling ")]) == 1

    @every_method
    def test_skipped_rounds(self, method):
        transform = aggregate(CODES["uncoded"], undecodable="skip", method=method)
        gradients, state = gradients_of(6), transform.init(None)
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
            transform = aggregate(CODES["uncoded"], tolerance=factor * np.sqrt(1 / 6))
            mask = random_patterns(6, 1, 1)[0]
            updates, state = jax.jit(transform.update)(
                np.ones(6, np.float32), transform.init(None), received=mask
            )
            assert state.num_undecodable == count
            np.testing.assert_allclose(updates, 5, rtol=1e-6)


class TestSeveralMessages:
    """Slow workers count for what they have finished."""

    delay = stragglers.shifted_exponential(shift=0.5, rate=1.0)
    model = stragglers.delayed(delay, stragglers.deadline(2.0))

    def test_parts_finished_by_a_deadline(self, with_x64):
        code = CODES["partial"]
        transform = jaxwgc.coded_aggregate(code, self.model, jax.random.key(4))
        gradients = gradients_of(code.num_parts, np.float64)
        update, sample = jax.jit(transform.update), jax.jit(self.model.sample)
        state = transform.init(None)
        some = 0
        for _ in range(8):
            arrivals, _ = sample(jax.random.split(state.key)[1], (), code.loads)
            updates, state = update(gradients, state)
            # Each worker's messages that it could send by then, decoded by NumPy.
            finished = arrivals.finished(code.parts_per_worker)
            sent = (finished[:, None] >= code.required_parts).ravel()
            rows = np.where(sent[:, None], code.encoding_matrix, 0)
            mixing = code.target @ np.linalg.pinv(rows, rcond=1e-10) @ rows
            for name, leaf in gradients.items():
                expected = np.tensordot(mixing, leaf, axes=1)
                np.testing.assert_allclose(updates[name], expected, atol=1e-10)
            np.testing.assert_array_equal(state.received, arrivals.received)
            some += np.sum((finished > 0) & (finished < code.parts_per_worker))
        # Masks alone would have lost these.
        assert some > 3
        assert 0 < state.elapsed <= 8 * 2.0

    def test_of_one_message_only_whole_workers_count(self):
        """Others have finished parts, which this code cannot use."""
        transform = jaxwgc.coded_aggregate(GROUPS, self.model, jax.random.key(4))
        state = transform.init(None)
        draw = jax.random.split(state.key)[1]
        arrivals, _ = jax.jit(self.model.sample)(draw, (), GROUPS.loads)
        finished = arrivals.finished(GROUPS.parts_per_worker)
        assert np.any((finished > 0) & ~np.asarray(arrivals.received))
        _, state = jax.jit(transform.update)(gradients_of(6), state)
        np.testing.assert_array_equal(state.received, arrivals.received)
