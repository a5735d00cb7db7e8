"""Peeling against one that goes through the messages one at a time."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxwgc
from jaxwgc.decoders._peeling import _peel as peeling
from tests.conftest import every_pattern

MASKS = every_pattern(7, 7)
# Messages as rows, parts as columns.
CHAIN = np.array(
    [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0],
    ],
    bool,
)
ASSIGNMENTS = {
    "chain": CHAIN,
    "several give the same part": np.eye(5, dtype=bool)[[0, 0, 0, 1, 1, 2, 2]],
    "nothing alone": np.ones((7, 5), bool),
    "nothing": np.zeros((7, 5), bool),
    "sparse": np.random.default_rng(0).random((7, 5)) < 0.3,
    "denser": np.random.default_rng(1).random((7, 5)) < 0.5,
}


def one_at_a_time(rows):
    """The parts that are recovered: a queue of messages with one unknown part."""
    neighbours = [set(np.flatnonzero(row)) for row in rows]
    known = set()
    while True:
        alone = [own for own in neighbours if len(own) == 1]
        if not alone:
            return known
        [part] = alone[-1]
        known.add(part)
        for own in neighbours:
            own.discard(part)


def expected_sums(assignment, masks):
    """k / k' at the k' recovered parts, 0 at the others."""
    num_parts = assignment.shape[1]
    sums = np.zeros((len(masks), num_parts))
    for mask, own in zip(masks, sums, strict=True):
        known = sorted(one_at_a_time(assignment[mask]))
        own[known] = num_parts / max(1, len(known))
    return sums


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_mask(name):
    assignment = ASSIGNMENTS[name]
    weights = peeling(MASKS, assignment)
    assert weights.shape == (128, 1, 7)
    assert weights.dtype == np.float32
    weights = np.float64(weights[:, 0])
    np.testing.assert_array_equal(weights[~MASKS], 0)
    np.testing.assert_allclose(
        weights @ assignment, expected_sums(assignment, MASKS), atol=1e-5
    )


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, (7, 5), elements=st.booleans()))
def test_any_assignment(assignment):
    np.testing.assert_allclose(
        np.float64(peeling(MASKS, assignment)[:, 0]) @ assignment,
        expected_sums(assignment, MASKS),
        atol=1e-5,
    )


def test_shares_a_part_between_the_messages_that_give_it():
    """Their mean: the least noise of all that sum to the same."""
    weights = peeling(np.ones(7, bool), ASSIGNMENTS["several give the same part"])
    expected = np.array([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1 / 2, 1 / 2]) * 5 / 3
    np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


def test_goes_through_chains_of_any_length():
    """Forty rounds, in each of which the one before is needed, exact in float32."""
    assignment = np.eye(40, dtype=bool) | np.eye(40, k=-1, dtype=bool)
    masks = np.ones((3, 40), bool)
    masks[1, 20] = False
    masks[2, 0] = False
    sums = peeling(masks, assignment)[:, 0] @ assignment.astype(float)
    expected = np.zeros((3, 40))
    expected[0] = 1
    expected[1, :20] = 2
    np.testing.assert_array_equal(sums, expected)


def test_batch_axes():
    flat = peeling(MASKS, CHAIN)
    for shape in ((), (2, 3), (0,)):
        count = int(np.prod(shape))
        masks = MASKS[-count:] if count else MASKS[:0]
        found = peeling(masks.reshape(*shape, 7), CHAIN)
        assert found.shape == (*shape, 1, 7)
        expected = np.asarray(flat)[-count:] if count else flat[:0]
        np.testing.assert_array_equal(found.reshape(-1, 1, 7), expected)


def test_map_over_masks_and_codes():
    """Codes that take from none to five rounds, side by side."""
    assignments = np.stack(list(ASSIGNMENTS.values()))
    over_masks = jax.vmap(peeling, (0, None))
    found = jax.jit(jax.vmap(over_masks, (None, 0)))(MASKS[::5], assignments)
    for own, assignment in zip(found, assignments, strict=True):
        np.testing.assert_allclose(own, peeling(MASKS[::5], assignment), atol=1e-6)


class TestBatchesOfParts:
    """Parts that workers hold by the batch are peeled by the batch."""

    code = jaxwgc.codes.batch_raptor(jax.random.key(6), 7, 15, batch_size=3, c=1.0)

    def test_parts_of_a_batch_have_one_fate(self, x64):
        found = jax.jit(jaxwgc.effective_weights)(self.code, MASKS)
        batches = expected_sums(np.asarray(self.code.assignment)[:, ::3], MASKS)
        assert 10 < np.sum(np.any(batches == 0, 1) & np.any(batches > 0, 1))
        np.testing.assert_allclose(
            found, batches.repeat(3, axis=1), atol=1e-13 if x64 else 1e-5
        )
