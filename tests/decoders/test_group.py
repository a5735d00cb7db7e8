"""Group decoding: exact to the last bit, and what it loses beyond."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc.decoders import Group
from tests.conftest import every_pattern, random_patterns

decoding_weights = jax.jit(jaxwgc.decoding_weights, static_argnames="decoder")
decoding_error = jax.jit(jaxwgc.decoding_error, static_argnames="decoder")


def codes_of_size(num_workers):
    """Both constructions for every s that they have."""
    for s in range(num_workers):
        yield jaxwgc.codes.binary(num_workers, s)
        if num_workers % (s + 1) == 0:
            yield jaxwgc.codes.fractional_repetition(num_workers, s)


def group(masks, groups, assignment, target):
    """The decoder on its own, from the arrays that it looks at."""
    return Group(groups).weights(assignment, target[None], masks)


def by_hand(code, mask, worth):
    """The first answers of the family whose silent groups weigh least."""
    best = None
    for family in np.asarray(code.decoders[0].groups):
        answers, silent = [], 0.0
        for own in np.unique(family[family >= 0]):
            workers = np.flatnonzero(family == own)
            answering = workers[mask[workers]]
            answers += list(answering[:1])
            if not len(answering):
                silent += worth[np.asarray(code.assignment)[workers[0]]].sum()
        if best is None or silent < best[0]:
            best = silent, answers
    weights = np.zeros(code.num_workers)
    weights[best[1]] = 1
    return weights


@pytest.mark.parametrize("num_workers", [1, 5, 10])
def test_one_of_each_part_up_to_s(num_workers):
    """Every pattern and every s, not to rounding but to the last bit."""
    decode = jax.jit(group)
    for code in codes_of_size(num_workers):
        # As it is when it is given by hand.
        code.decoders[0].check(code.encoding_matrix, code.segment_targets)
        masks = every_pattern(num_workers, code.num_stragglers)
        # An empty family more, so that all codes share a compiled function.
        families = np.full((2, num_workers), -1)
        families[: len(code.decoders[0].groups)] = code.decoders[0].groups
        weights = np.asarray(decode(masks, families, code.assignment, code.target))
        weights = weights[:, 0]
        assert set(np.unique(weights)) <= {0, 1}
        assert not np.any(weights[~masks])
        np.testing.assert_array_equal(weights @ code.encoding_matrix, 1)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15])
def test_the_size_of_the_weights_does_not_matter(size):
    """Squares of these are zero or infinite in float32."""
    code, masks = jaxwgc.codes.binary(5, 2), every_pattern(5, 5)
    small = jaxwgc.weighted(code, np.full(5, size))
    np.testing.assert_array_equal(
        jaxwgc.decoding_weights(small, masks), jaxwgc.decoding_weights(code, masks)
    )


@pytest.mark.parametrize("name", ["fractional_repetition", "binary", "uncoded"])
def test_weighted_codes_have_no_error_either(name):
    """Weights that no float holds exactly, zero among them."""
    code = {
        "fractional_repetition": jaxwgc.codes.fractional_repetition(8, 1),
        "binary": jaxwgc.codes.binary(8, 2),
        "uncoded": jaxwgc.codes.uncoded(4, 8),
    }[name]
    weights = np.random.default_rng(0).uniform(0.1, 3, 8)
    weights[3] = 0
    code = jaxwgc.weighted(code, weights)
    masks = every_pattern(code.num_workers, code.num_stragglers)
    assert np.all(np.asarray(decoding_error(code, masks)) == 0)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("num_workers", "s"), [(7, 2), (9, 6)])
def test_the_family_that_loses_least(num_workers, s, weighted):
    """Binary codes have two families where s + 1 does not divide n."""
    code = jaxwgc.codes.binary(num_workers, s)
    assert len(code.decoders[0].groups) == 2
    worth = np.ones(num_workers)
    if weighted:
        weights = np.random.default_rng(1).integers(0, 4, num_workers).astype(float)
        code = jaxwgc.weighted(code, weights)
        worth = weights**2
    masks = every_pattern(num_workers, num_workers)
    expected = np.array([by_hand(code, mask, worth) for mask in masks])
    np.testing.assert_array_equal(decoding_weights(code, masks), expected)
    mixed = expected @ code.encoding_matrix
    np.testing.assert_array_equal(
        decoding_error(code, masks), np.sum((mixed - code.target) ** 2, 1)
    )
    # Both families are chosen, each where the other would lose more.
    families = np.asarray(code.decoders[0].groups) >= 0
    chosen = [
        {bool((own[family] > 0).any()) for own in expected} for family in families
    ]
    assert chosen == [{False, True}] * 2


def test_batch_axes_jit_and_map():
    code = jaxwgc.codes.binary(8, 2)
    masks = random_patterns(8, 4, 6)
    flat = decoding_weights(code, masks)
    grid = decoding_weights(code, masks.reshape(2, 3, 8))
    np.testing.assert_array_equal(grid.reshape(6, 8), flat)
    np.testing.assert_array_equal(decoding_weights(code, masks[0]), flat[0])
    mapped = jax.jit(jax.vmap(jaxwgc.decoding_weights, (None, 0)))(code, masks)
    np.testing.assert_array_equal(mapped, flat)
    assert jaxwgc.decoding_weights(code, masks[:0]).shape == (0, 8)

    @jax.jit
    def error(weights):
        return jaxwgc.decoding_error(jaxwgc.weighted(code, weights), masks)

    weights = np.random.default_rng(0).integers(0, 4, (3, 8)).astype(np.float32)
    for own, found in zip(weights, jax.jit(jax.vmap(error))(weights), strict=True):
        np.testing.assert_array_equal(found, error(own))
