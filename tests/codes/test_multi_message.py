"""Codes of several messages a worker: multi-message and partial."""

import dataclasses
import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes import cyclic_mds, multi_message, partially_coded
from tests.zoo import CODES, every_code

INNER = "uncoded", "binary", "cyclic_mds", "reed_solomon, slack", "weighted"


@every_code(*INNER)
class TestMultiMessage:
    def test_messages_grow_part_by_part_to_the_code_s_own(self, name):
        inner = CODES[name]
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


def test_first_parts_are_spread():
    """Every worker starts at another part, where there are as many."""
    for inner in (cyclic_mds(12, 5), jaxwgc.codes.fractional_repetition(12, 3)):
        code = multi_message(inner)
        first = code.encoding_matrix.reshape(12, -1, 12)[:, 0]
        np.testing.assert_array_equal((first != 0).sum(0), 1)
        second = code.encoding_matrix.reshape(12, -1, 12)[:, 1]
        np.testing.assert_array_equal((second != 0).sum(0), 2)


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


def test_multi_message_of_traced_entries():
    """The order depends on the assignment alone, so the entries may be traced."""
    weights = np.array([1.0, 2.0, 5.0, 3.0])

    def rows(weights):
        code = jaxwgc.weighted(cyclic_mds(4, 1), weights)
        return multi_message(code).encoding_matrix

    np.testing.assert_allclose(jax.jit(rows)(weights), rows(weights), rtol=1e-6)


@every_code(*INNER)
class TestPartial:
    def test_who_holds_what(self, name):
        inner = CODES[name]
        code = partially_coded(inner, 2)
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


def test_partial_of_traced_codes(make_key):
    keys = jax.random.split(make_key(0), 2)

    def of_key(key):
        return partially_coded(jaxwgc.codes.cyclic_repetition(key, 4, 1), 1)

    codes = jax.jit(jax.vmap(of_key))(keys)
    assert codes.encoding_matrix.shape == (2, 8, 8)
    np.testing.assert_allclose(
        codes.encoding_matrix[1], of_key(keys[1]).encoding_matrix, rtol=1e-3
    )
    weighted = jax.jit(lambda code: partially_coded(code, 2))(cyclic_mds(4, 2))
    assert weighted.encoding_matrix.shape == (8, 12)
    np.testing.assert_array_equal(weighted.required_parts, [[2, 5]] * 4)
