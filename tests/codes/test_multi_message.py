"""Codes of several messages a worker: multi-message and partial."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes._binary import binary
from jaxwgc.codes._communication_efficient import communication_efficient
from jaxwgc.codes._cyclic_mds import cyclic_mds
from jaxwgc.codes._multi_message import multi_message
from jaxwgc.codes._partial import partial
from tests.codes.reference import (
    best_mixtures,
    check_round_trip,
    patterns_within,
    worst_miss,
)


def sent(code, finished):
    """The messages there are when each worker has finished so many of its parts."""
    finished = np.asarray(finished)
    return (finished[..., None] >= code.required_parts).reshape(
        *finished.shape[:-1], -1
    )


INNER = {
    "uncoded": jaxwgc.codes.uncoded(3, 6),
    "fractional": jaxwgc.codes.fractional_repetition(6, 1),
    "binary": binary(5, 1),
    "mds": cyclic_mds(6, 3),
    "complex mds": cyclic_mds(5, 3),
    "reed_solomon": jaxwgc.codes.reed_solomon(6, 4, 3),
    "cyclic": jaxwgc.codes.cyclic_repetition(jax.random.key(0), 6, 2),
    "weighted": jaxwgc.weighted(cyclic_mds(4, 1), np.array([1.0, 2.0, 0.0, 3.0])),
}


@pytest.mark.parametrize("name", INNER)
class TestMultiMessage:
    def test_stragglers_that_the_code_survives_are_survived(self, name):
        code = multi_message(INNER[name])
        assert code.num_stragglers == INNER[name].num_stragglers
        received = patterns_within(code.num_workers, code.num_stragglers)
        assert worst_miss(code, sent(code, received * 99)).max() < 1e-9

    def test_messages_grow_part_by_part_to_the_code_s_own(self, name):
        inner = INNER[name]
        code = multi_message(inner)
        num_messages = inner.loads.max()
        assert code.messages_per_worker == num_messages
        assert code.num_workers == inner.num_workers
        rows = code.encoding_matrix.reshape(-1, num_messages, inner.num_parts)
        for worker, load in enumerate(inner.loads):
            own = inner.encoding_matrix[worker]
            np.testing.assert_array_equal(rows[worker, load - 1], own)
            assert np.all(rows[worker, load:] == 0)
            np.testing.assert_array_equal(
                code.required_parts[worker],
                np.minimum(np.arange(1, num_messages + 1), load),
            )
            for turn in range(load):
                held = rows[worker, turn] != 0
                assert np.all(rows[worker, turn][held] == own[held])
                assert np.all(held <= inner.assignment[worker])
                if np.all(inner.target != 0):
                    assert held.sum() == turn + 1
                if turn:
                    assert np.all(held >= (rows[worker, turn - 1] != 0))

    def test_more_finished_parts_never_hurt(self, name):
        code = multi_message(INNER[name])
        random = np.random.default_rng(0)
        few = random.integers(0, 3, (50, code.num_workers))
        more = few + random.integers(0, 2, few.shape)
        few_errors, more_errors = (
            np.sum(
                np.abs(best_mixtures(code, sent(code, x))[:, 0] - code.target) ** 2, 1
            )
            for x in (few, more)
        )
        assert np.all(more_errors <= few_errors + 1e-9)
        assert more_errors.mean() < few_errors.mean() - 0.1


def test_first_parts_are_spread():
    """Every worker starts at another part, where there are as many."""
    for inner in (cyclic_mds(12, 5), jaxwgc.codes.fractional_repetition(12, 3)):
        code = multi_message(inner)
        first = code.encoding_matrix.reshape(12, -1, 12)[:, 0]
        np.testing.assert_array_equal((first != 0).sum(0), 1)
        second = code.encoding_matrix.reshape(12, -1, 12)[:, 1]
        np.testing.assert_array_equal((second != 0).sum(0), 2)


def test_one_finished_part_each_is_enough_for_the_whole_gradient():
    """What slow workers are worth: nobody is done, and nothing is lost."""
    code = multi_message(jaxwgc.codes.fractional_repetition(6, 2))
    assert worst_miss(code, sent(code, np.ones((1, 6)))).max() < 1e-12


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_takes_the_part_that_was_taken_least_often(data):
    """Against the rule as the docstring has it, for any assignment."""
    num_workers = data.draw(st.integers(1, 6))
    num_parts = data.draw(st.integers(1, 7))
    cells = data.draw(
        st.lists(
            st.booleans(),
            min_size=num_workers * num_parts,
            max_size=num_workers * num_parts,
        )
    )
    assignment = np.array(cells).reshape(num_workers, num_parts)
    inner = dataclasses.replace(
        jaxwgc.codes.uncoded(1),
        encoding_matrix=assignment.astype(float),
        assignment=assignment,
        target=np.ones(num_parts),
    )
    code = multi_message(inner)
    num_messages = max(1, assignment.sum(1).max())
    rows = code.encoding_matrix.reshape(num_workers, num_messages, num_parts)
    taken = [[] for _ in range(num_workers)]
    for turn, worker in itertools.product(range(num_messages), range(num_workers)):
        everything = list(itertools.chain(*taken))
        start = worker * num_parts // num_workers
        ring = [(start + step) % num_parts for step in range(num_parts)]
        remaining = [
            part
            for part in ring
            if assignment[worker, part] and part not in taken[worker]
        ]
        expected = np.zeros(num_parts)
        if remaining:
            taken[worker].append(min(remaining, key=everything.count))
            expected[taken[worker]] = 1
        np.testing.assert_array_equal(rows[worker, turn], expected)


def test_multi_message_round_trip(x64):
    """From masks, and from numbers of finished parts of which only some are done."""
    code = multi_message(cyclic_mds(6, 3))
    tolerance = 1e-9 if x64 else 1e-3
    check_round_trip(code, patterns_within(6, 3), tolerance)
    finished = np.random.default_rng(0).integers(1, 5, (20, 6))
    check_round_trip(code, finished, tolerance)


def test_decoded_from_finished_parts_as_by_numpy(with_x64):
    code = multi_message(jaxwgc.codes.uncoded(3, 6))
    finished = np.array(list(itertools.product(range(3), repeat=3)))
    weights = jaxwgc.effective_weights(code, finished=finished)
    np.testing.assert_allclose(weights.sum(1), finished.sum(1), atol=1e-9)
    expected = best_mixtures(code, sent(code, finished))[:, 0]
    np.testing.assert_allclose(weights, expected, atol=1e-9)


def test_partial_round_trip(x64):
    code = partial(cyclic_mds(5, 2), 2)
    done = patterns_within(5, 2)
    check_round_trip(code, np.where(done, 5, 2), 1e-9 if x64 else 1e-3)


def test_multi_message_of_traced_entries():
    """The order depends on the assignment alone, so the entries may be traced."""
    weights = np.array([1.0, 2.0, 5.0, 3.0])

    def rows(weights):
        code = jaxwgc.weighted(cyclic_mds(4, 1), weights)
        return multi_message(code).encoding_matrix

    np.testing.assert_allclose(jax.jit(rows)(weights), rows(weights), rtol=1e-6)


def test_multi_message_of_bad_codes():
    code = cyclic_mds(4, 1)
    with pytest.raises(TypeError, match="code must be a GradientCode"):
        multi_message(np.eye(3))
    with pytest.raises(TypeError, match="whose assignment is known; got a traced one"):
        jax.jit(multi_message)(code)
    with pytest.raises(
        ValueError, match="multi_message needs a code with num_segments"
    ):
        multi_message(communication_efficient(4, 1, 2))
    with pytest.raises(ValueError, match="with messages_per_worker = 1; got .* = 2"):
        multi_message(partial(code, 1))
    with pytest.raises(ValueError, match="with messages_per_worker = 1"):
        multi_message(multi_message(code))


@pytest.mark.parametrize("name", INNER)
class TestPartial:
    @pytest.mark.parametrize("num_uncoded", [0, 1, 3])
    def test_decodes_while_at_most_s_second_messages_are_missing(
        self, name, num_uncoded
    ):
        inner = INNER[name]
        code = partial(inner, num_uncoded)
        done = patterns_within(inner.num_workers, inner.num_stragglers)
        finished = np.where(done, num_uncoded + inner.loads, num_uncoded)
        assert worst_miss(code, sent(code, finished)).max() < 1e-9
        # A part short of everything is no second message.
        late = np.where(done, finished, num_uncoded + inner.loads - 1)
        np.testing.assert_array_equal(sent(code, late), sent(code, finished))

    def test_a_worker_that_sends_nothing_loses_its_uncoded_parts(self, name):
        inner = INNER[name]
        code = partial(inner, 2)
        assert code.num_stragglers == 0
        if inner.num_stragglers == 0:
            return
        finished = 2 + np.asarray(inner.loads)
        finished[1] = 0
        [[reached]] = best_mixtures(code, sent(code, finished)[None])
        expected = np.array(code.target)
        expected[2:4] = 0
        np.testing.assert_allclose(reached, expected, atol=1e-9)

    def test_who_holds_what(self, name):
        inner = INNER[name]
        code = partial(inner, 2)
        num_workers = inner.num_workers
        assert code.num_workers == num_workers
        assert code.num_parts == 2 * num_workers + inner.num_parts
        np.testing.assert_array_equal(
            code.assignment[:, : 2 * num_workers],
            np.arange(2 * num_workers) // 2 == np.arange(num_workers)[:, None],
        )
        np.testing.assert_array_equal(
            code.assignment[:, 2 * num_workers :], inner.assignment
        )
        first, second = code.encoding_matrix[::2], code.encoding_matrix[1::2]
        np.testing.assert_array_equal(first[:, : 2 * num_workers].sum(1), 2)
        np.testing.assert_array_equal(first[:, 2 * num_workers :], 0)
        np.testing.assert_array_equal(second[:, : 2 * num_workers], 0)
        np.testing.assert_array_equal(
            second[:, 2 * num_workers :], inner.encoding_matrix
        )
        np.testing.assert_array_equal(
            code.target, np.append(np.ones(2 * num_workers), inner.target)
        )
        np.testing.assert_array_equal(
            code.required_parts,
            np.stack([np.full(num_workers, 2), 2 + inner.loads], axis=1),
        )


def test_partial_without_uncoded_parts_survives_what_the_code_survives():
    assert partial(cyclic_mds(5, 2), 0).num_stragglers == 2


def test_partial_of_traced_codes(make_key):
    keys = jax.random.split(make_key(0), 2)

    def of_key(key):
        return partial(jaxwgc.codes.cyclic_repetition(key, 4, 1), 1)

    codes = jax.jit(jax.vmap(of_key))(keys)
    assert codes.encoding_matrix.shape == (2, 8, 8)
    np.testing.assert_allclose(
        codes.encoding_matrix[1], of_key(keys[1]).encoding_matrix, rtol=1e-3
    )
    weighted = jax.jit(lambda code: partial(code, 2))(cyclic_mds(4, 2))
    assert weighted.encoding_matrix.shape == (8, 12)
    np.testing.assert_array_equal(weighted.required_parts, [[2, 5]] * 4)


def test_partial_of_bad_codes():
    code = cyclic_mds(4, 1)
    with pytest.raises(ValueError, match="num_uncoded must be at least 0; got -1"):
        partial(code, -1)
    with pytest.raises(TypeError, match="num_uncoded must be"):
        partial(code, 1.5)
    with pytest.raises(TypeError, match="code must be a GradientCode"):
        partial(None, 1)
    with pytest.raises(ValueError, match="partial needs a code with num_segments = 1"):
        partial(communication_efficient(4, 1, 2), 1)
    with pytest.raises(ValueError, match="partial needs a code with messages_per"):
        partial(multi_message(code), 1)
    two = jaxwgc.codes.clustered(cyclic_mds(2, 1), 2)
    with pytest.raises(ValueError, match="use clustered on the partial code instead"):
        partial(two, 1)
