"""The peeling decoder against one that takes messages one at a time."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxwgc
from jaxwgc import codes
from jaxwgc.decoders._peeling import _peel as peeling
from tests.catalogue.decoders import recovered_parts
from tests.conftest import bools, every_pattern

MASKS = every_pattern(7, 7)


# Messages as rows, parts as columns.
ASSIGNMENTS = {
    "chain": bools("10000 11000 01100 00111 00010 11111 00000"),
    "several give the same part": np.eye(5, dtype=bool)[[0, 0, 0, 1, 1, 2, 2]],
    "nothing alone": np.ones((7, 5), bool),
    "nothing": np.zeros((7, 5), bool),
    "sparse": np.random.default_rng(0).random((7, 5)) < 0.3,
    "denser": np.random.default_rng(1).random((7, 5)) < 0.5,
}


def expected_sums(assignment):
    """k / k' at the k' recovered parts, 0 at the others, for each of MASKS."""
    num_parts = assignment.shape[1]
    sums = np.zeros((len(MASKS), num_parts))
    for mask, mask_sums in zip(MASKS, sums, strict=True):
        known = recovered_parts(assignment[mask])
        mask_sums[known] = num_parts / max(1, len(known))
    return sums


class TestPeeling:
    """Against one that goes through the messages one at a time."""

    def check(self, assignment):
        weights = peeling(MASKS, assignment)
        assert weights.shape == (128, 1, 7)
        assert weights.dtype == np.float32
        weights = np.float64(weights[:, 0])
        np.testing.assert_array_equal(weights[~MASKS], 0)
        sums = expected_sums(assignment)
        np.testing.assert_allclose(weights @ assignment, sums, atol=1e-5)

    @pytest.mark.parametrize("name", ASSIGNMENTS)
    def test_matches_sequential_peeling_for_every_mask(self, name):
        self.check(ASSIGNMENTS[name])

    @settings(max_examples=60, deadline=None)
    @given(hnp.arrays(bool, (7, 5), elements=st.booleans()))
    def test_matches_sequential_peeling_for_any_assignment(self, assignment):
        self.check(assignment)

    def test_shares_a_part_between_the_messages_that_give_it(self):
        """Their mean: the least noise of all that sum to the same."""
        weights = peeling(np.ones(7, bool), ASSIGNMENTS["several give the same part"])
        expected = np.repeat([1 / 3, 1 / 2, 1 / 2], [3, 2, 2]) * 5 / 3
        np.testing.assert_allclose(weights[0], expected, rtol=1e-6)

    def test_goes_through_chains_of_any_length(self):
        """Forty rounds, each of which needs the one before, exact in float32."""
        assignment = np.eye(40, dtype=bool) | np.eye(40, k=-1, dtype=bool)
        masks = np.ones((3, 40), bool)
        masks[[1, 2], [20, 0]] = False
        sums = peeling(masks, assignment)[:, 0] @ assignment.astype(float)
        expected = np.zeros((3, 40))
        expected[0] = 1
        expected[1, :20] = 2
        np.testing.assert_array_equal(sums, expected)

    def test_map_over_masks_and_codes(self):
        """Codes that take from none to five rounds, side by side."""
        assignments = np.stack(list(ASSIGNMENTS.values()))
        over_masks = jax.vmap(peeling, (0, None))
        result = jax.jit(jax.vmap(over_masks, (None, 0)))(MASKS, assignments)
        for weights, assignment in zip(result, assignments, strict=True):
            np.testing.assert_allclose(weights, peeling(MASKS, assignment), atol=1e-6)

    def test_parts_of_a_batch_are_recovered_together(self, with_x64):
        """Parts that workers hold by the batch are peeled by the batch."""
        code = codes.batch_raptor(jax.random.key(6), 7, 15, batch_size=3)
        result = jax.jit(jaxwgc.decoding)(code, MASKS).effective_weights
        batches = expected_sums(code.assignment[:, ::3])
        assert np.sum(np.any(batches == 0, 1) & np.any(batches > 0, 1)) > 10
        expected = batches.repeat(3, axis=1)
        np.testing.assert_allclose(result, expected, atol=1e-13)
