"""Masks and numbers of finished parts: which messages have arrived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.coding._arrivals import arrived_messages, arrived_workers
from tests.conftest import every_pattern
from tests.zoo import CODES, KEY, every_code, messages_sent

UNCODED = CODES["multi_message, uncoded"]


@every_code("multi_message", "partial, complex")
class TestSeveralMessages:
    def test_all_parts_or_none_are_what_a_mask_says(self, name):
        code = CODES[name]
        masks = every_pattern(code.num_workers, code.num_workers)
        arrived = arrived_messages(code, jnp.asarray(masks), None)
        np.testing.assert_array_equal(arrived, messages_sent(code, masks))
        for dtype in (np.int32, np.uint8):
            finished = jnp.asarray(
                np.where(masks, code.parts_per_worker, 0).astype(dtype)
            )
            found = arrived_messages(code, None, finished)
            np.testing.assert_array_equal(found, arrived)
            np.testing.assert_array_equal(arrived_workers(code, found), masks)

    def test_a_mask_of_messages_is_not_one_of_workers(self, name):
        code = CODES[name]
        with pytest.raises(ValueError, match=f"{code.num_workers}\\); got"):
            jaxwgc.decoding_weights(code, np.ones(code.num_messages, bool))


def test_required_parts_one_by_one():
    """Two parts for the first message of this worker, five for the second."""
    code = codes.partially_coded(codes.cyclic_repetition(KEY, 4, 2), 2)
    for finished in range(6):
        received = np.array([finished, 0, 0, 0])
        arrived = [finished >= 2, finished >= 5, *[False] * 6]
        found = arrived_messages(code, None, jnp.asarray(received))
        np.testing.assert_array_equal(found, arrived)


def test_map_over_finished_parts():
    finished = np.random.default_rng(0).integers(0, 4, (2, 3, 3))
    each = jax.vmap(lambda own: jaxwgc.effective_weights(UNCODED, finished=own))
    weights = jax.jit(each)(finished)
    assert weights.shape == (2, 3, 9)
    np.testing.assert_allclose(weights.sum(-1), finished.sum(-1), rtol=1e-5)


def test_arrivals_of_a_model():
    """Finished parts count where a worker sends several messages."""
    delay = jaxwgc.stragglers.shifted_exponential(1.0, 1.0)
    model = jaxwgc.stragglers.delayed(delay, jaxwgc.stragglers.fastest(3))
    for code in (CODES["fractional_repetition"], CODES["multi_message"]):
        arrivals, _ = model.sample(KEY, model.init(code.num_workers), code.loads)
        observed = arrivals.received
        if code.messages_per_worker > 1:
            observed = arrivals.finished(code.parts_per_worker)
        decoding = jaxwgc.decoding(code, arrivals)
        expected = messages_sent(code, np.asarray(observed))
        np.testing.assert_array_equal(decoding.mask, expected)


def test_traced_counts_out_of_range_are_no_answer():
    """Those that wrap around, too: the round shows as one that cannot be decoded."""
    arrived = jax.jit(lambda own: arrived_messages(UNCODED, None, own))
    for count in (np.uint8(255), np.int32(99), np.int32(-3)):
        finished = np.array([3, count, 1], count.dtype)
        expected = [True] * 3 + [False] * 3 + [True, False, False]
        np.testing.assert_array_equal(arrived(finished), expected)
