"""Uncoded, repetition, binary and replicated codes, and who sends what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes, decoders
from tests.catalogue.codes import CODES
from tests.conftest import own_decoder, random_patterns
from tests.oracles import least_miss
from tests.zoo import KEY, gradients_of, like


def test_uncoded_gives_each_worker_consecutive_parts():
    code = codes.uncoded(2, 6)
    expected = [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    np.testing.assert_array_equal(code.encoding_matrix, expected)
    np.testing.assert_array_equal(code.assignment, expected)
    assert own_decoder(code, decoders.OneStep).scale == 2
    peeling = own_decoder(code, decoders.Peeling)
    np.testing.assert_array_equal(peeling.assignment, np.eye(2, dtype=bool))
    np.testing.assert_array_equal(codes.uncoded(3).encoding_matrix, np.eye(3))


def test_uncoded_assigns_parts_in_proportion_to_loads():
    code = codes.uncoded(3, 8, loads=[2, 1, 1])
    np.testing.assert_array_equal(code.parts_per_worker, [4, 2, 2])
    np.testing.assert_array_equal(code.encoding_matrix.sum(0), np.ones(8))
    weights = jaxwgc.decoding(code, np.array([True, False, True])).effective_weights
    np.testing.assert_array_equal(weights, np.arange(8) // 2 != 2)


def test_fractional_repetition_has_groups_of_equal_rows():
    code = codes.fractional_repetition(12, 2)
    [groups] = code.decoders[0].groups
    same_rows = (code.encoding_matrix[:, None] == code.encoding_matrix).all(-1)
    np.testing.assert_array_equal(groups[:, None] == groups, same_rows)
    assert code.decoders[0].is_a(decoders.Group)
    assert own_decoder(code, decoders.OneStep).scale == 4


class TestCyclicRepetition:
    def test_float32_is_as_accurate_as_numpy_for_rows_of_very_different_norms(self):
        """Tandon's matrices: their rows differ by orders of magnitude."""
        code = codes.cyclic_repetition(KEY, 40, 5)
        received = random_patterns(40, 5, 200)
        weights = np.asarray(jaxwgc.decoding(code, received).weights[..., 0, :], float)
        matrix = np.asarray(code.encoding_matrix, np.float32)
        norms = np.linalg.norm(weights @ matrix.astype(float) - 1, axis=1)
        residuals = [least_miss(matrix, np.ones((1, 40)), mask) for mask in received]
        norms = norms / np.sqrt(40)
        residuals = np.array(residuals) / np.sqrt(40)
        assert np.mean(norms > 1e-3) < 0.05
        assert np.mean((norms <= 1e-5) | (norms <= 3 * residuals)) > 0.9

    def test_rows_are_in_the_null_space_of_the_random_matrix(self):
        code = codes.cyclic_repetition(KEY, 12, 4)
        matrix = code.encoding_matrix
        assert np.all(np.diag(matrix) == 1)
        assert np.all((matrix != 0) == code.assignment)
        # All rows in one space of dimension n - s, which holds the vector of ones.
        assert np.linalg.matrix_rank(matrix) == 8
        ones = np.linalg.lstsq(matrix.T, np.ones(12), rcond=None)[0] @ matrix
        np.testing.assert_allclose(ones, 1, atol=1e-10)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_groups_and_classes_of_binary_codes(data):
    num_workers = data.draw(st.integers(1, 40))
    num_stragglers = data.draw(st.integers(0, num_workers - 1))
    code = codes.binary(num_workers, num_stragglers)
    np.testing.assert_array_equal(code.encoding_matrix, code.assignment)
    classes = np.arange(num_workers) % (num_stragglers + 1)
    for one in range(num_stragglers + 1):
        rows = code.assignment[classes == one]
        # The workers of a class hold every part once, in runs as even as can be.
        np.testing.assert_array_equal(rows.sum(0), 1)
        assert np.ptp(rows.sum(1)) <= 1
        assert np.all(np.diff(rows.argmax(0)) >= 0)
    # Equal rows in a group, every part once in a family.
    groups = code.decoders[0].groups
    for family in groups:
        rows_of_groups = [
            code.assignment[family == group] for group in range(family.max() + 1)
        ]
        assert all(np.all(rows == rows[0]) for rows in rows_of_groups)
        np.testing.assert_array_equal(
            sum(rows[0].astype(int) for rows in rows_of_groups), 1
        )
    # Every worker is in the family of its class, and in no other.
    np.testing.assert_array_equal((groups >= 0).sum(0), 1)
    assert len(groups) == 1 + (num_workers % (num_stragglers + 1) > 0)
    scale = own_decoder(code, decoders.OneStep).scale
    assert scale == num_workers / (num_stragglers + 1)
    peeling = own_decoder(code, decoders.Peeling)
    np.testing.assert_array_equal(peeling.assignment, code.assignment)


def orders(code):
    """The parts of each worker, in the order of its messages."""
    rows = code.encoding_matrix.reshape(code.num_workers, -1, code.num_parts)
    return [np.nonzero(row)[1].tolist() for row in rows]


class TestReplicated:
    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_owners_take_parts_forwards_and_helpers_backwards(self, data):
        """Lists are the reference; every part has `copies` holders for any loads."""
        num_workers = data.draw(st.integers(1, 6))
        num_parts = data.draw(st.integers(1, 12))
        copies = data.draw(st.integers(1, num_workers))
        load = st.lists(st.integers(0, 5), min_size=num_workers, max_size=num_workers)
        loads = data.draw(load.filter(any))
        code = codes.replicated(num_workers, num_parts, copies, loads)
        shares = np.array(loads) / sum(loads) * num_parts
        owned = orders(codes.replicated(num_workers, num_parts, 1, loads))
        assert sum(owned, []) == list(range(num_parts))
        assert np.all(np.abs([len(part) for part in owned] - shares) < 1)
        for worker, order in enumerate(orders(code)):
            helped = [owned[(worker + step) % num_workers] for step in range(1, copies)]
            assert order == owned[worker] + sum((part[::-1] for part in helped), [])
        assert np.all(code.assignment.sum(0) == copies)
        rows = code.encoding_matrix[code.decoders[0].copies]
        expected = np.eye(num_parts)[:, None].repeat(copies, axis=1)
        np.testing.assert_array_equal(rows, expected)

    @pytest.mark.parametrize("copies", [1, 2, 3])
    def test_each_part_is_requested_once_from_its_first_holder(self, copies):
        """Against a loop over the parts, for numbers of finished parts at random.

        The owner is the first holder, then come its neighbours before it on the ring.
        """
        loads = [1, 2, 1, 1]
        code = codes.replicated(4, 10, copies, loads)
        owned = orders(codes.replicated(4, 10, 1, loads))
        owners = [w for part in range(10) for w in range(4) if part in owned[w]]
        parts = code.parts_per_worker
        finished = np.random.default_rng(0).integers(0, parts + 1, (200, 4))
        finished[0] = parts
        requests = jax.jit(
            lambda counts: jaxwgc.decoding(code, finished=counts).requests
        )
        requests = np.asarray(requests(finished))
        assert requests.shape == (200, 4, code.messages_per_worker)
        assert set(np.unique(requests)) <= {0, 1}
        for counts, request in zip(finished, requests, strict=True):
            done = [set(order[:count]) for order, count in zip(orders(code), counts)]
            for part, owner in enumerate(owners):
                holders = [(owner - step) % 4 for step in range(copies)]
                having = [worker for worker in holders if part in done[worker]]
                asked = [
                    worker
                    for worker, order in enumerate(orders(code))
                    if part in order and request[worker, order.index(part)]
                ]
                assert asked == having[:1]

    def test_decodings_on_request_agree_with_decoding_weights(self):
        """A missing part is known without weights, and gives equal sums."""
        code = jaxwgc.weighted(codes.replicated(3, 5, 2), np.array([1e-3, 1, 2, 0, 5]))
        finished = np.stack(np.meshgrid(*[np.arange(5)] * 3), -1).reshape(-1, 3)
        finished = np.minimum(finished, code.parts_per_worker)

        @jax.jit
        def decode(finished):
            decoded = jaxwgc.decoding(code, finished=finished)
            tolerances = 1e-5, 1e-3, 0.5
            actual = [code.decodes(decoded.mask, tolerance) for tolerance in tolerances]
            failed = [decoded.failed(tolerance) for tolerance in tolerances]
            return decoded.mask, decoded.effective_weights, actual, failed

        mask, weights, result, failed = decode(finished)
        np.testing.assert_array_equal(result, ~np.array(failed))
        arrived = np.asarray(mask).astype(int) @ (code.encoding_matrix != 0) > 0
        np.testing.assert_allclose(weights, arrived * code.target)

    def test_one_message_on_request(self):
        requests = jaxwgc.decoding(codes.replicated(4, 1, copies=4), np.arange(4) == 2)
        np.testing.assert_array_equal(requests.requests[:, 0], np.arange(4) == 2)


@pytest.mark.parametrize(
    ("name", "x64"),
    [("replicated", False), ("multi_message", True)],
    indirect=["x64"],
)
def test_sums_on_request_are_the_gradient(name, x64):
    """Parts that were not requested may hold anything; no worker sends two sums."""
    code = CODES[name]
    gradients = gradients_of(code.num_parts)
    params = like(gradients)
    finished = np.asarray(code.parts_per_worker) - (np.arange(code.num_workers) == 1)
    aggregate = jaxwgc.decode_aggregate(code, on_request=True)

    @jax.jit
    def a_round(gradients, finished):
        decoded = jaxwgc.decoding(code, finished=finished)
        messages = jaxwgc.encode(code, gradients)
        messages = jnp.where(decoded.mask[:, None], messages, jnp.nan)
        by_worker = messages.reshape(code.num_workers, code.messages_per_worker, -1)
        sums = jaxwgc.coding.requested_sum(decoded.requests, by_worker)
        actual = jaxwgc.coding.decode_sums(sums, params)
        expected = jaxwgc.decode(code, messages, decoded, params)
        state = aggregate.init(params)
        updated = aggregate.update(sums, state, params, finished=finished)
        return sums, actual, expected, updated

    sums, result, expected, (updates, state) = a_round(gradients, finished)
    assert sums.shape == (code.num_workers, 7)
    for one, other in zip(*map(jax.tree.leaves, (result, expected)), strict=True):
        np.testing.assert_allclose(one, other, 1e-4, 1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates, result)
    assert state.num_undecodable == 0


@pytest.mark.parametrize(
    "constructor", [codes.binary, codes.fractional_repetition, codes.cyclic_repetition]
)
def test_codes_without_responses_are_rejected(constructor):
    arguments = {"num_workers": 5, "num_stragglers": 5}
    if constructor is codes.cyclic_repetition:
        arguments["key"] = KEY
    message = "num_stragglers must be less than num_workers; .* = 5"
    with pytest.raises(ValueError, match=message):
        constructor(**arguments)


def test_fractional_repetition_rejects_groups_of_unequal_size():
    with pytest.raises(ValueError, match="num_stragglers .* = 10; got 2"):
        codes.fractional_repetition(10, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 3, "num_parts": 8}, "num_parts.* = 3; got 8"),
        (
            {"num_workers": 3, "num_parts": 8, "loads": [1, 2]},
            "loads must have (shape|a leading axis)",
        ),
    ],
)
def test_uncoded_rejects_parts_that_do_not_fit_the_workers(arguments, message):
    with pytest.raises(ValueError, match=message):
        codes.uncoded(**arguments)


@pytest.mark.parametrize(
    ("copies", "loads", "message"),
    [
        (4, None, "copies.* = 4 and"),
        (2, [1, -1, 1], "loads must be at least 0"),
        (2, [1, 1], "loads must have (shape|a leading axis)"),
    ],
)
def test_replicated_rejects_copies_and_loads_that_do_not_fit(copies, loads, message):
    with pytest.raises(ValueError, match=message):
        codes.replicated(3, 3, copies, loads)
