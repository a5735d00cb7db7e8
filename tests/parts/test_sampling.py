"""The laws of the two ways to draw parts, against closed forms and NumPy."""

import collections
import functools
import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxwgc
from jaxwgc import sketching
from tests.oracles import check_counts

# One for all tests, so that they share compiled functions.
NUM_SAMPLES = 20_000


@functools.partial(jax.jit, static_argnames=("num_distinct", "num_draws"))
def _sample(key, probabilities, **rule):
    return jaxwgc.parts.sample_partitions(key, probabilities, **rule)


@functools.partial(jax.jit, static_argnames=("num_distinct", "num_draws"))
def _many_samples(key, probabilities, **rule):
    keys = jax.random.split(key, NUM_SAMPLES)
    return jax.vmap(lambda key: _sample(key, probabilities, **rule))(keys)


def one_sample(seed, probabilities, **rule):
    return jax.device_get(_sample(jax.random.key(seed), probabilities, **rule))


def many_samples(seed, probabilities, **rule):
    return jax.device_get(_many_samples(jax.random.key(seed), probabilities, **rule))


def assert_law(outcomes, law):
    """Rows of integers have these probabilities; other outcomes are rare."""
    observed = collections.Counter(map(tuple, outcomes.tolist()))
    observed = [observed[cell] for cell in law]
    expected = NUM_SAMPLES * np.array(list(law.values()))
    rest = NUM_SAMPLES - np.array([sum(observed), expected.sum()])
    check_counts([*observed, rest[0]], [*expected, max(rest[1], 0)])


# The last part is never drawn.
PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05, 0.0])


def test_num_distinct_has_the_exact_joint_law():
    # Draws a first; the other na - 1 draws of a and the nb of b in any order; then c.
    law = {}
    for a, b, c in itertools.permutations(range(4), 3):
        for num_a, num_b in itertools.product(range(1, 30), repeat=2):
            orders = math.comb(num_a + num_b - 1, num_b)
            pa, pb, pc = PROBABILITIES[[a, b, c]]
            law[a, b, c, num_a, num_b, 1] = orders * pa**num_a * pb**num_b * pc
    assert abs(sum(law.values()) - 1) < 2e-3
    sample = many_samples(0, PROBABILITIES, num_distinct=3)
    assert_law(np.concatenate([sample.indices, sample.counts], axis=1), law)
    np.testing.assert_array_equal(sample.num_draws, sample.counts.sum(1))
    expected = PROBABILITIES[sample.indices]
    np.testing.assert_allclose(sample.probabilities, expected, rtol=1e-6)


@pytest.mark.parametrize("ratio", [1e-3, 1e-6])
def test_rare_parts_take_a_geometric_number_of_draws(ratio):
    # A float32 law of large means is easily wrong.
    probabilities = np.array([1 - ratio, ratio, 0, 0, 0])
    sample = many_samples(3, probabilities, num_distinct=3)
    counts = sample.counts[sample.indices[:, 0] == 0, 0]
    assert len(counts) > 0.98 * NUM_SAMPLES
    bins = scipy.stats.geom.ppf(np.linspace(0, 1, 41), ratio)
    expected = np.diff(scipy.stats.geom.cdf(bins, ratio)) * len(counts)
    assert abs(expected.sum() / len(counts) - 1) < 1e-6
    check_counts(np.histogram(counts, bins + 0.5)[0], expected)


def test_counts_saturate_and_do_not_overflow():
    probabilities = np.array([1.0, 1e-3, 1e-30, 0, 0])
    sample = many_samples(4, probabilities, num_distinct=3)
    assert np.all(sample.counts > 0) and np.all(sample.num_draws > 0)
    assert np.all(sample.counts[:, 0] == (2**31 - 1) // 3)


@pytest.mark.parametrize(("num_parts", "x64"), [(4, False), (3, True)])
def test_num_draws_has_the_multinomial_law(num_parts, x64):
    probabilities = PROBABILITIES[:num_parts] / PROBABILITIES[:num_parts].sum()
    num_draws = 5
    with jax.enable_x64(x64):
        sample = many_samples(7, probabilities, num_draws=num_draws)
    assert sample.indices.shape == (NUM_SAMPLES, num_parts)
    assert sample.probabilities.dtype == (np.float64 if x64 else np.float32)
    for field in (sample.indices, sample.counts, sample.num_draws):
        assert field.dtype == np.int32
    counts = np.zeros((NUM_SAMPLES, num_parts), int)
    np.put_along_axis(counts, sample.indices, sample.counts, 1)
    law = {
        drawn: scipy.stats.multinomial.pmf(drawn, num_draws, probabilities)
        for drawn in itertools.product(range(num_draws + 1), repeat=num_parts)
        if sum(drawn) == num_draws
    }
    assert_law(counts, law)
    assert np.all(np.diff(sample.counts, axis=1) <= 0)
    np.testing.assert_array_equal(sample.num_draws, num_draws)


def test_num_draws_of_many_parts_in_float32():
    # A cumulative sum in float32 would round the small probabilities at its end away.
    num_parts = 2**16
    probabilities = np.full(num_parts, 1e-9)
    probabilities[: num_parts // 2] = 1.0
    probabilities[-1000:] = 1e-3
    sample = one_sample(8, probabilities, num_draws=2**20)
    counts = np.zeros(num_parts)
    counts[sample.indices] = sample.counts
    expected = probabilities / probabilities.sum() * 2**20
    assert abs(counts[-1000:].sum() - expected[-1000:].sum()) < 5 * np.sqrt(32)
    check_counts(counts[: num_parts // 2])
    assert counts.sum() == 2**20


@pytest.mark.parametrize(("is_last", "chance"), [(False, 5.9e-8), (True, 1e-8)])
def test_rare_parts_are_drawn_at_their_probability(is_last, chance):
    # On the grid of uniform variables after a likely part never, before it as 1.2e-7.
    rare = np.array([*2 ** np.arange(6), *range(3, 64, 2)])
    probabilities = np.zeros(64)
    probabilities[0] = 1
    probabilities[rare] = chance
    probabilities = probabilities[::-1] if is_last else probabilities
    sample = one_sample(9, probabilities, num_draws=2**22)
    law = scipy.stats.poisson(len(rare) * chance * 2**22)
    num_rare = 2**22 - sample.counts.max()
    assert law.cdf(num_rare) > 1e-3 and law.sf(num_rare - 1) > 1e-3


SIZES = 3 * [0.0, 1e-6, 0.5, 1.0, 7.0] + [np.nan, np.inf, -0.5]


@settings(max_examples=80, deadline=None)
@given(
    # A power of two, so that a walk down the tree of sums ends at a part.
    st.lists(
        st.sampled_from(3 * SIZES + [np.nan, np.inf, -0.5]), min_size=4, max_size=4
    ),
    st.integers(0, 2**32 - 1),
    st.sampled_from([{"num_distinct": 4}, {"num_draws": 9}]),
)
def test_invariants(values, seed, rule):
    probabilities = np.array(values, np.float32)
    is_valid = np.isfinite(probabilities).all() and probabilities.min() >= 0
    num_positive = (probabilities > 0).sum() if is_valid else 0
    sample = one_sample(seed, probabilities, **rule)
    used = sample.counts > 0
    assert len(set(sample.indices.tolist())) == len(sample.indices)
    assert sample.num_draws == sample.counts.sum()
    chances = probabilities[sample.indices[used]]
    assert np.all(chances > 0)
    # Used slots come first.
    assert np.all(used[:-1] | ~used[1:])
    if num_positive == 0:
        assert not used.any()
    elif "num_distinct" in rule:
        assert used.sum() == min(rule["num_distinct"], num_positive)
        assert sample.counts[used.sum() - 1] == 1
    else:
        assert sample.num_draws == rule["num_draws"]
        means = sample.num_draws * chances / probabilities.sum()
        counts = sample.counts[used]
        scale = np.asarray(sample.scale)[used]
        np.testing.assert_allclose(scale**2, counts / means, rtol=1e-5)


def test_drop_last_distinct_is_unbiased():
    sample = many_samples(10, PROBABILITIES, num_distinct=3)
    dropped = jaxwgc.parts.drop_last_distinct(sample)
    assert dropped.indices.shape == dropped.counts.shape == (NUM_SAMPLES, 2)
    np.testing.assert_array_equal(dropped.num_draws, sample.num_draws - 1)

    def deviations(sample):
        estimates = np.zeros((NUM_SAMPLES, 4))
        num_draws = np.asarray(sample.num_draws)
        values = sample.counts / num_draws[:, None] / sample.probabilities
        np.put_along_axis(estimates, sample.indices, values, axis=1)
        error = estimates.std(0) / np.sqrt(NUM_SAMPLES)
        return (estimates.mean(0) - 1) / error

    assert np.all(np.abs(deviations(dropped)) < 4)
    # Without the drop the rare part is counted too often, as documented.
    assert deviations(sample)[3] > 10


def test_traced_order_that_is_no_permutation_gives_nan():
    key = jax.random.key(0)
    scores = np.ones(50)
    sample = jax.jit(
        lambda order: sketching.sample_rows(key, scores, 5, "pivotal", order=order)
    )(np.zeros(50, int))
    assert np.all(np.isnan(sample.scale))
    assert not sample.counts.any()
