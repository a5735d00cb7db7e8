"""Masks and numbers of finished parts: which messages have arrived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxwgc
from jaxwgc import codes
from jaxwgc.coding._arrivals import arrived_messages, arrived_workers
from tests.compositions import CODES, KEY, SEVERAL, every_code, sent
from tests.conftest import every_pattern


class TestReceived:
    """Masks and numbers of finished parts."""

    @pytest.mark.parametrize("name", SEVERAL)
    def test_all_parts_or_none_are_what_a_mask_says(self, name):
        code = CODES[name]
        masks = every_pattern(code.num_workers, code.num_workers)
        arrived = arrived_messages(code, jnp.asarray(masks), None)
        np.testing.assert_array_equal(arrived, sent(code, masks))
        for dtype in (np.int32, np.uint8):
            finished = jnp.asarray(np.where(masks, code.loads, 0).astype(dtype))
            found = arrived_messages(code, None, finished)
            np.testing.assert_array_equal(found, arrived)
            np.testing.assert_array_equal(arrived_workers(code, found), masks)

    def test_required_parts_one_by_one(self):
        """Two parts for the first message of this worker, five for the second."""
        code = codes.partial(codes.cyclic_repetition(KEY, 4, 2), 2)
        for finished in range(6):
            received = np.array([finished, 0, 0, 0])
            sent_first, sent_second = finished >= 2, finished >= 5
            weights = np.asarray(jaxwgc.decoding_weights(code, finished=received))
            np.testing.assert_array_equal(
                weights != 0,
                np.isin(np.arange(8), [0] * sent_first + [1] * sent_second),
            )

        for finished in (-1, 6):
            with pytest.raises(ValueError, match="finished must count parts from 0 to"):
                jaxwgc.decoding_weights(code, finished=np.array([finished, 0, 0, 0]))

    def test_map_over_finished_parts(self):
        code = CODES["messages, uncoded"]
        finished = np.random.default_rng(0).integers(0, 4, (2, 3, 3))
        own = jax.vmap(lambda own: jaxwgc.effective_weights(code, finished=own))
        weights = jax.jit(own)(finished)
        assert weights.shape == (2, 3, 9)
        np.testing.assert_allclose(weights.sum(-1), finished.sum(-1), rtol=1e-5)

    @every_code
    def test_integers_are_no_mask(self, name):
        code = CODES[name]
        for call in (jaxwgc.decoding_weights, jaxwgc.decoding_error):
            with pytest.raises(TypeError, match="must be a bool mask of .*; got int"):
                call(code, np.ones(code.num_workers, int))

    @pytest.mark.parametrize("name", SEVERAL)
    def test_neither_mask_nor_integers(self, name):
        code = CODES[name]
        with pytest.raises(TypeError, match="the number of parts .*; got float32"):
            jaxwgc.decoding_weights(
                code, finished=np.ones(code.num_workers, np.float32)
            )

    def test_one_of_the_two(self):
        code, mask = CODES["messages, uncoded"], np.ones(3, bool)
        for given in ({}, {"received": mask, "finished": np.ones(3, int)}):
            with pytest.raises(ValueError, match="must be given, and not both"):
                jaxwgc.decoding_weights(code, **given)

    @pytest.mark.parametrize("name", SEVERAL)
    def test_a_mask_of_messages_is_not_one_of_workers(self, name):
        code = CODES[name]
        with pytest.raises(ValueError, match=f"num_workers = {code.num_workers}; got"):
            jaxwgc.decoding_weights(code, np.ones(code.num_messages, bool))
