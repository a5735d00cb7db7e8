"""Exact codes of data as they lie, and loads in proportion to speeds."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import codes
from jaxwgc.codes import any_placement, proportional_placement, worst_rounding
from jaxwgc.decoders import Dual, Lagrange
from tests.conftest import bools, random_patterns
from tests.oracles import worst_miss
from tests.zoo import KEY, patterns_within

METHODS = ("polynomials", "random_rows")
decode = jax.jit(jaxwgc.decoding)


def random_assignment(generator, num_workers, num_parts, num_stragglers):
    """Some holders a part, and at least s + 1."""
    order = generator.random((num_parts, num_workers)).argsort(1).argsort(1)
    counts = generator.integers(num_stragglers + 1, num_workers + 1, num_parts)
    # Mostly no more than have to be.
    counts = np.where(generator.random(num_parts) < 0.7, num_stragglers + 1, counts)
    return (order < counts[:, None]).T


@pytest.mark.parametrize("method", METHODS)
def test_every_pattern_of_200_placements(method):
    """NumPy's least squares is the reference; B is zero where a worker lacks a part."""
    generator = np.random.default_rng(0)
    for number in range(200):
        n, k = generator.integers(1, 11, 2)
        s = int(generator.integers(n))
        held = random_assignment(generator, n, k, s)
        code = any_placement(jax.random.key(number), held, s, method)
        assert worst_miss(code, patterns_within(n, s)).max() < 1e-9, held
        assert not np.any(code.encoding_matrix[~held])
        np.testing.assert_array_equal(code.assignment, held)
        assert code.num_stragglers == s
        for decoder in code.decoders:
            decoder.check(code.encoding_matrix, code.segment_targets)


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_the_decoders_are_exact_for_every_pattern(method, with_x64):
    """Every pattern of as many placements as share what is compiled."""
    generator = np.random.default_rng(0)
    masks = patterns_within(9, 3)
    for number in range(20):
        held = random_assignment(generator, 9, 12, 3)
        code = any_placement(jax.random.key(number), held, 3, method)
        assert isinstance(code.decoders[0], {"polynomials": Lagrange}.get(method, Dual))
        assert np.sqrt(decode(code, masks).error.max()) < 1e-9


def test_columns_that_repeat_have_smaller_weights_than_lagrange():
    """Parts with the same holders are as good as one, and others may be missing."""
    held = proportional_placement(np.ones(6), 6, copies=3)
    held = held[:, [0, 0, 0, 3, 3, 3]]
    code = any_placement(KEY, held, 2, "polynomials")
    masks = patterns_within(6, 2)
    weights = np.asarray(jaxwgc.decoding(code, masks).weights[..., 0, :])
    for mask, weights_of_mask in zip(masks, weights, strict=True):
        minimum_norm = np.linalg.pinv(code.encoding_matrix[mask].T) @ np.ones(6)
        np.testing.assert_allclose(weights_of_mask[mask], minimum_norm, atol=1e-5)
    assert code.decoders_of(Lagrange)


@pytest.mark.parametrize(
    ("size", "method"), [((12, 12, 2), "polynomials"), ((50, 20, 29), "random_rows")]
)
def test_the_better_conditioned_method_is_chosen(size, method):
    held = random_assignment(np.random.default_rng(0), *size)
    chosen = any_placement(KEY, held, size[2])
    by_method = {name: any_placement(KEY, held, size[2], name) for name in METHODS}
    misses = {name: worst_rounding(code)[0] for name, code in by_method.items()}
    assert min(misses, key=misses.__getitem__) == method
    np.testing.assert_array_equal(
        chosen.encoding_matrix, by_method[method].encoding_matrix
    )


def test_the_order_of_workers_keeps_entries_small():
    """The search for an order of the workers keeps the entries below 30."""
    held = random_assignment(np.random.default_rng(1), 20, 20, 4)
    sizes = [
        np.abs(any_placement(key, held, 4, "polynomials").encoding_matrix).max()
        for key in jax.random.split(KEY, 5)
    ]
    # In the order in which they come it is 159.
    assert max(sizes) < 30


def test_worst_rounding_by_enumeration():
    """Against pseudoinverses; the responses of the largest miss are those returned."""
    held = random_assignment(np.random.default_rng(0), 8, 6, 4)
    code = any_placement(KEY, held, 4, "random_rows")
    matrix = code.encoding_matrix
    misses = {}
    for mask in patterns_within(8, 4)[-70:]:
        weights = np.float32(np.ones(6) @ np.linalg.pinv(matrix[mask]))
        mixed = np.float64(weights) @ np.float32(matrix[mask])
        misses[tuple(mask)] = np.linalg.norm(mixed - 1) / np.sqrt(6)
    miss, received = worst_rounding(code)
    assert miss == pytest.approx(max(misses.values()), rel=1e-3)
    assert misses[tuple(received)] == max(misses.values())
    # Of fewer patterns the worst is no worse.
    assert worst_rounding(code, num_patterns=5)[0] <= miss


def test_worst_rounding_of_segments_and_several_messages():
    """All kinds of codes are covered; codes of zeros and ones are not rounded."""
    for code in (
        jaxwgc.codes.communication_efficient(6, 1, 2),
        jaxwgc.codes.replicated(4, 8, copies=2),
    ):
        miss, received = worst_rounding(code)
        assert miss < 1e-6
        assert received.sum() == code.num_workers - 1


def test_keys_of_both_kinds_give_one_code_in_both_precisions(make_key, x64):
    held = random_assignment(np.random.default_rng(0), 6, 5, 2)
    code = any_placement(make_key(3), held, 2)
    with jax.enable_x64(not x64):
        other = any_placement(make_key(3), held, 2)
    np.testing.assert_array_equal(code.encoding_matrix, other.encoding_matrix)


@settings(max_examples=100)
@given(st.data())
def test_loads_in_proportion_to_speeds(data):
    """Capped at all parts: min(k, c v), c so that they sum up, to less than a part."""
    speeds = np.array(data.draw(st.lists(st.floats(0.01, 100), min_size=1, max_size=8)))
    num_parts = data.draw(st.integers(1, 30))
    copies = data.draw(st.integers(1, len(speeds)))
    held = proportional_placement(speeds, num_parts, copies)
    assert held.dtype == bool
    np.testing.assert_array_equal(held.sum(0), copies)
    low = 0.0
    high = num_parts / speeds.min()
    for _ in range(200):
        middle = (low + high) / 2
        is_enough = np.minimum(num_parts, middle * speeds).sum() >= num_parts * copies
        low, high = (low, middle) if is_enough else (middle, high)
    exact = np.minimum(num_parts, high * speeds)
    assert np.all(np.abs(held.sum(1) - exact) < 1 + 1e-6)


def test_speeds_of_any_size():
    held = proportional_placement([1e308, 1e308, 1e-300], 4, 2)
    np.testing.assert_array_equal(held.sum(1), [4, 4, 0])
    code = any_placement(KEY, held, 1)
    received = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(
        jaxwgc.decoding(code, received).effective_weights, 1, atol=1e-5
    )


def test_one_copy_of_each_part_needs_no_code():
    """Weights of one or minus one, real messages."""
    held = proportional_placement([2, 1, 1], 4, copies=1)
    code = any_placement(KEY, held, 0)
    assert not code.is_complex
    np.testing.assert_allclose(np.abs(code.encoding_matrix), held, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_fifty_workers_decode_accurately_in_float32(method):
    """No worse than the prototypes of random placements with nine stragglers."""
    held = ~random_patterns(50, 10, 50).T
    code = any_placement(KEY, held, 9, method)
    errors = np.sqrt(decode(code, random_patterns(50, 9, 1000)).error / 50)
    assert np.median(errors) < 2e-6
    assert np.quantile(errors, 0.99) < 1e-4


# Three workers, two parts.
HELD = bools("11 10 11")


@pytest.mark.parametrize(
    ("assignment", "num_stragglers", "message"),
    [
        (HELD, 2, "assignment.*got 2 .* of part 1$"),
        (HELD, 3, "num_stragglers must be less than"),
        (HELD[0], 0, "assignment must have (shape|a leading axis)"),
        (HELD[:0], 0, "assignment must have (shape|a leading axis)"),
        (HELD[:, :0], 0, "assignment must have (shape|a leading axis)"),
    ],
)
def test_any_placement_rejects_parts_with_too_few_copies(
    assignment, num_stragglers, message
):
    with pytest.raises(ValueError, match=message):
        any_placement(KEY, assignment, num_stragglers)


def test_any_placement_rejects_traced_arguments():
    with pytest.raises(TypeError, match="concrete"):
        jax.eval_shape(lambda held: any_placement(KEY, held, 1), HELD)
    with pytest.raises(TypeError, match="key must be"):
        jax.eval_shape(lambda key: any_placement(key, HELD, 1), KEY)


def test_worst_rounding_rejects_a_traced_code():
    with pytest.raises(TypeError, match="code must be concrete"):
        jax.eval_shape(worst_rounding, codes.cyclic_mds(4, 1))


@pytest.mark.parametrize(
    ("speeds", "copies", "message"),
    [
        ([1, 0, 1], 1, r"speeds.*speeds\[1\] = 0"),
        ([1, np.nan], 1, "speeds must be finite"),
        ([1, 2], 3, "copies.* = 3 and"),
        ([[1, 2]], 1, "speeds must have (shape|a leading axis)"),
        ([], 1, "speeds must have (shape|a leading axis)"),
    ],
)
def test_proportional_placement_rejects_wrong_speeds_and_copies(
    speeds, copies, message
):
    with pytest.raises(ValueError, match=message):
        proportional_placement(speeds, 3, copies)
