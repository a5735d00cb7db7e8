"""Copies of every part, the order in which they are computed, and who sends what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc.codes import replicated
from tests.zoo import CODES, gradients_of, like


def orders(code):
    """The parts of each worker, in the order of its messages."""
    rows = code.encoding_matrix.reshape(code.num_workers, -1, code.num_parts)
    return [np.nonzero(own)[1].tolist() for own in rows]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_owner_forwards_and_helpers_backwards(data):
    """Against lists; and every part has so many holders, whatever the loads."""
    num_workers = data.draw(st.integers(1, 6))
    num_parts = data.draw(st.integers(1, 12))
    copies = data.draw(st.integers(1, num_workers))
    loads = data.draw(
        st.lists(st.integers(0, 5), min_size=num_workers, max_size=num_workers).filter(
            any
        )
    )
    code = replicated(num_workers, num_parts, copies, loads)
    shares = np.array(loads) / sum(loads) * num_parts
    owned = orders(replicated(num_workers, num_parts, 1, loads))
    assert sum(owned, []) == list(range(num_parts))
    assert np.all(np.abs([len(own) for own in owned] - shares) < 1)
    for worker, order in enumerate(orders(code)):
        helped = [owned[(worker + step) % num_workers] for step in range(1, copies)]
        assert order == owned[worker] + sum((own[::-1] for own in helped), [])
    assert np.all(code.assignment.sum(0) == copies)
    # `check` knows what a decoder's copies have to be.
    code.decoders[0].check(code.encoding_matrix, code.segment_targets)


@jax.jit
def requests_of(code, finished):
    return jaxwgc.decoding(code, finished=finished).requests


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_each_part_once_from_the_lightest(copies):
    """Against a loop over the parts, for numbers of finished parts at random."""
    code = replicated(4, 10, copies, loads=[1, 2, 1, 1])
    finished = np.random.default_rng(0).integers(0, code.parts_per_worker + 1, (200, 4))
    finished[0] = code.parts_per_worker
    requests = np.asarray(requests_of(code, finished))
    assert requests.shape == (200, 4, code.messages_per_worker)
    for counts, request in zip(finished, requests, strict=True):
        done = [set(own[:count]) for own, count in zip(orders(code), counts)]
        having = [[w for w in range(4) if part in done[w]] for part in range(10)]
        burdens = np.bincount([own[0] for own in having if len(own) == 1], minlength=4)
        for part, workers in enumerate(having):
            asked = [
                worker
                for worker, own in enumerate(orders(code))
                if part in own and request[worker, own.index(part)]
            ]
            assert len(asked) == min(len(workers), 1)
            assert set(asked) <= set(workers)
            if len(workers) > 1:
                assert burdens[asked[0]] == burdens[workers].min()
                burdens[asked[0]] += 1
        assert set(np.unique(request)) <= {0, 1}


def test_decodes_as_its_weights_do():
    """Whether a part is missing is known without weights: the same answer."""
    code = jaxwgc.weighted(replicated(3, 5, 2), np.array([1e-3, 1, 2, 0, 5]))
    finished = np.stack(np.meshgrid(*[np.arange(5)] * 3), -1).reshape(-1, 3)
    finished = np.minimum(finished, code.parts_per_worker)
    decoded = jaxwgc.decoding(code, finished=finished)
    for tolerance in (1e-5, 1e-3, 0.5):
        np.testing.assert_array_equal(
            code.decodes(decoded.mask, tolerance), ~decoded.failed(tolerance)
        )
    expected = np.where(
        decoded.mask.astype(int) @ (code.encoding_matrix != 0) > 0, 1, 0
    )
    np.testing.assert_allclose(decoded.effective_weights, expected * code.target)


def test_uncoded_in_proportion():
    code = jaxwgc.codes.uncoded(3, 8, loads=[2, 1, 1])
    np.testing.assert_array_equal(code.parts_per_worker, [4, 2, 2])
    np.testing.assert_array_equal(code.encoding_matrix.sum(0), np.ones(8))
    weights = jaxwgc.effective_weights(code, np.array([True, False, True]))
    np.testing.assert_array_equal(weights, np.arange(8) // 2 != 2)


def test_one_message_on_request():
    code = jaxwgc.codes.replicated(4, 1, copies=4)
    requests = jaxwgc.decoding(code, np.arange(4) == 2).requests
    np.testing.assert_array_equal(requests, (np.arange(4) == 2)[:, None])


@pytest.mark.parametrize(
    ("name", "x64"),
    [("replicated", False), ("multi_message", True), ("partial", False)],
    indirect=["x64"],
)
def test_sums_on_request_are_the_gradient(name, x64):
    """What has not been asked for may hold anything, and nobody sends more than one."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    messages = jaxwgc.encode(code, gradients)
    finished = np.asarray(code.parts_per_worker) - (np.arange(code.num_workers) == 1)
    decoded = jaxwgc.decoding(code, finished=finished)
    messages = jnp.where(decoded.mask[:, None], messages, jnp.nan)
    by_worker = messages.reshape(code.num_workers, code.messages_per_worker, -1)
    answers = jaxwgc.coding.answer_request(decoded.requests, by_worker)
    assert answers.shape == (code.num_workers, 7)
    found = jaxwgc.coding.decode_answers(answers, like(gradients))
    expected = jaxwgc.decode(code, messages, None, like(gradients), finished=finished)
    jax.tree.map(
        lambda *own: np.testing.assert_allclose(*own, 1e-4, 1e-5), found, expected
    )
    aggregate = jaxwgc.decode_aggregate(code, on_request=True)
    state = aggregate.init(like(gradients))
    updates, state = aggregate.update(
        answers, state, like(gradients), finished=finished
    )
    jax.tree.map(np.testing.assert_array_equal, updates, found)
    assert state.num_undecodable == 0
