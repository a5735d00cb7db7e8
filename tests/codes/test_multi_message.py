"""Codes of several messages a worker: multi-message and partial."""

import dataclasses
import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes import cyclic_mds, multi_message, partially_coded


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
    matrix = assignment * np.arange(1.0, assignment.size + 1).reshape(assignment.shape)
    inner = dataclasses.replace(
        jaxwgc.codes.uncoded(1),
        encoding_matrix=matrix,
        assignment=assignment,
        target=np.ones(num_parts),
    )
    code = multi_message(inner)
    num_messages = max(1, assignment.sum(1).max())
    assert code.messages_per_worker == num_messages
    turns = np.arange(1, num_messages + 1)
    required = np.minimum(turns, assignment.sum(1)[:, None])
    np.testing.assert_array_equal(code.required_parts, required)
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
            expected[taken[worker]] = matrix[worker, taken[worker]]
        np.testing.assert_array_equal(rows[worker, turn], expected)


def test_multi_message_of_traced_entries():
    """The order depends on the assignment alone, so the entries may be traced."""
    weights = np.array([1.0, 2.0, 5.0, 3.0])

    def rows(weights):
        code = jaxwgc.weighted(cyclic_mds(4, 1), weights)
        return multi_message(code).encoding_matrix

    np.testing.assert_allclose(jax.jit(rows)(weights), rows(weights), rtol=1e-6)


def test_partial_of_traced_codes():
    keys = jax.random.split(jax.random.key(0), 2)

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
