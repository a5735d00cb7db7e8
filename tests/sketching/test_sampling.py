"""The laws of the two ways to draw parts, against closed forms and NumPy."""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxwgc import sketching
from jaxwgc.sketching._samplers._partitions import _exponential, _poisson

# One for all tests, so that they share compiled functions.
NUM_SAMPLES = 20_000
KEY = jax.random.key(0)


@functools.partial(jax.jit, static_argnames=("num_distinct", "num_draws"))
def jitted_samples(key, probabilities, **rule):
    keys = jax.random.split(key, NUM_SAMPLES)
    return jax.vmap(lambda k: sketching.sample_partitions(k, probabilities, **rule))(
        keys
    )


def many_samples(key, probabilities, **rule):
    """One of each of many keys, as arrays of NumPy."""
    return jax.tree.map(np.asarray, jitted_samples(key, probabilities, **rule))


def assert_law(observed, expected_probabilities):
    """A chi-square test of counts of outcomes; rare outcomes are pooled."""
    num = NUM_SAMPLES
    expected = {cell: num * p for cell, p in expected_probabilities.items()}
    common = [cell for cell, size in expected.items() if size >= 10]
    observed_sizes = np.array([observed[cell] for cell in common], float)
    expected_sizes = np.array([expected[cell] for cell in common])
    observed_sizes = np.append(observed_sizes, num - observed_sizes.sum())
    expected_sizes = np.append(expected_sizes, num - expected_sizes.sum())
    if expected_sizes[-1] < 1:
        assert observed_sizes[-1] < 10
        observed_sizes, expected_sizes = observed_sizes[:-1], expected_sizes[:-1]
        expected_sizes *= observed_sizes.sum() / expected_sizes.sum()
    assert scipy.stats.chisquare(observed_sizes, expected_sizes).pvalue > 1e-3


def outcomes(sample):
    rows = np.concatenate([sample.indices, sample.counts], axis=1)
    return collections.Counter(map(tuple, rows.tolist()))


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
    sample = many_samples(jax.random.key(0), PROBABILITIES, num_distinct=3)
    assert_law(outcomes(sample), law)
    np.testing.assert_array_equal(sample.num_draws, sample.counts.sum(1))
    np.testing.assert_allclose(
        sample.probabilities, PROBABILITIES[sample.indices], rtol=1e-6
    )


def test_every_part_can_be_asked_for_and_with_raw_keys():
    key = jax.random.PRNGKey(0)
    sample = sketching.sample_partitions(key, PROBABILITIES[:4], num_distinct=4)
    assert sorted(sample.indices.tolist()) == [0, 1, 2, 3]
    counts = sample.counts.tolist()
    assert counts[-1] == 1 and min(counts) >= 1
    assert sample.indices.dtype == sample.counts.dtype == jnp.int32
    assert sample.num_draws.shape == () and sample.num_draws.dtype == jnp.int32


@pytest.mark.parametrize("ratio", [1e-3, 1e-6])
def test_rare_parts_take_a_geometric_number_of_draws(ratio):
    # The count of the first part is geometric; a float32 law of large means is easily
    # wrong.
    probabilities = np.array([1 - ratio, ratio, 0, 0, 0])
    sample = many_samples(jax.random.key(3), probabilities, num_distinct=3)
    counts = sample.counts[sample.indices[:, 0] == 0, 0]
    assert len(counts) > 0.98 * NUM_SAMPLES
    bins = scipy.stats.geom.ppf(np.linspace(0, 1, 41), ratio)
    observed = np.histogram(counts, bins + 0.5)[0]
    expected = np.diff(scipy.stats.geom.cdf(bins, ratio)) * len(counts)
    assert abs(expected.sum() / len(counts) - 1) < 1e-6
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_counts_saturate_and_do_not_overflow():
    probabilities = np.array([1.0, 1e-3, 1e-30, 0, 0])
    sample = many_samples(jax.random.key(4), probabilities, num_distinct=3)
    assert np.all(sample.counts > 0) and np.all(sample.num_draws > 0)
    assert np.all(sample.counts[:, 0] == (2**31 - 1) // 3)


NUM_VARIABLES = 100_000


jitted_poisson = jax.jit(_poisson)


def variables(key, means):
    """So many with each mean in turn, in NumPy."""
    means = np.resize(np.asarray(means, np.float32), NUM_VARIABLES)
    return np.asarray(jitted_poisson(key, means))


@pytest.mark.parametrize("mean", [0.0, 0.3, 12.0, 3e3, 5e3, 1e6])
def test_poisson_law_in_float32(mean):
    drawn = variables(jax.random.key(5), mean)
    if mean == 0:
        assert not drawn.any()
        return
    law = scipy.stats.poisson(mean)
    edges = np.unique(law.ppf(np.linspace(0, 1, 31)[1:-1]))
    observed = np.histogram(drawn, np.concatenate([[-1], edges + 0.5, [np.inf]]))[0]
    expected = np.diff(np.concatenate([[0], law.cdf(edges), [1]])) * NUM_VARIABLES
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_earliest_arrivals_of_many_do_not_tie():
    # On a grid of 2**-23, 2**18 arrivals would have 4,000 pairs that tie.
    exponential = jax.jit(_exponential, static_argnums=(1, 2))
    arrivals = np.asarray(exponential(jax.random.key(6), (2**18,), np.float32))
    smallest = np.sort(arrivals)[:1000]
    assert smallest[0] > 0 and len(np.unique(smallest)) > 990
    law = scipy.stats.expon()
    assert scipy.stats.kstest(arrivals[:20_000], law.cdf).pvalue > 1e-3
    # The gaps between the smallest are exponential as well.
    gaps = np.diff(smallest) * (2**18 - np.arange(1, 1000))
    assert scipy.stats.kstest(gaps, law.cdf).pvalue > 1e-3


def multinomial_law(num_draws, probabilities):
    law = {}
    for drawn in itertools.product(range(num_draws + 1), repeat=len(probabilities)):
        if sum(drawn) == num_draws:
            law[drawn] = scipy.stats.multinomial.pmf(drawn, num_draws, probabilities)
    return law


@pytest.mark.parametrize(("num_parts", "x64"), [(4, False), (3, True)])
def test_num_draws_has_the_multinomial_law(num_parts, x64):
    probabilities = PROBABILITIES[:num_parts] / PROBABILITIES[:num_parts].sum()
    num_draws = 5
    with jax.enable_x64(x64):
        sample = many_samples(jax.random.key(7), probabilities, num_draws=num_draws)
    assert sample.indices.shape == (NUM_SAMPLES, num_parts)
    counts = np.zeros((NUM_SAMPLES, num_parts), int)
    np.put_along_axis(counts, sample.indices, sample.counts, 1)
    observed = collections.Counter(map(tuple, counts.tolist()))
    assert_law(observed, multinomial_law(num_draws, probabilities))
    assert np.all(np.diff(sample.counts, axis=1) <= 0)
    np.testing.assert_array_equal(sample.num_draws, num_draws)


def test_num_draws_of_many_parts_in_float32():
    # A cumulative sum in float32 would round the small probabilities at its end away.
    num_parts = 2**16
    probabilities = np.full(num_parts, 1e-9)
    probabilities[: num_parts // 2] = 1.0
    probabilities[-1000:] = 1e-3
    sample = traced_sample(jax.random.key(8), probabilities, "num_draws", 2**20)
    counts = np.zeros(num_parts)
    counts[sample.indices] = sample.counts
    expected = probabilities / probabilities.sum() * 2**20
    observed = [counts[: num_parts // 2].sum(), counts[-1000:].sum()]
    assert abs(observed[1] - expected[-1000:].sum()) < 5 * np.sqrt(32)
    large = counts[: num_parts // 2]
    assert scipy.stats.chisquare(large, np.full_like(large, large.mean())).pvalue > 1e-3
    assert counts.sum() == 2**20


def test_scale_is_the_root_of_counts_over_their_means():
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    sample = sketching.sample_partitions(KEY, probabilities, num_draws=50)
    means = 50 * probabilities[np.asarray(sample.indices)]
    counts = np.asarray(sample.counts, float)
    assert counts.max() > 1
    np.testing.assert_allclose(sample.scale**2, counts / means, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=2)
def total_counts(keys, probabilities, num_draws):
    """How often each part comes in so many draws of each key, as many at a time."""

    def add(counts, key):
        sample = sketching.sample_partitions(key, probabilities, num_draws=num_draws)
        return counts.at[sample.indices].add(sample.counts), None

    return jax.lax.scan(add, jnp.zeros(len(probabilities), jnp.int32), keys)[0]


@pytest.mark.parametrize(
    ("is_last", "chance", "num_keys"), [(False, 5.9e-8, 4), (True, 1e-8, 2)]
)
def test_rare_parts_come_as_often_as_they_should(is_last, chance, num_keys):
    # On the grid of uniform variables after a likely part never, before it as 1.2e-7.
    probabilities = np.zeros(256)
    probabilities[0], probabilities[2 ** np.arange(8)] = 1, chance
    keys = jax.random.split(jax.random.key(9), num_keys)
    probabilities = probabilities[::-1] if is_last else probabilities
    counts = np.asarray(total_counts(keys, np.array(probabilities), 2**22))
    num_draws = num_keys * 2**22
    law = scipy.stats.poisson(8 * chance * num_draws)
    num_rare = num_draws - counts.max()
    assert law.cdf(num_rare) > 1e-3 and law.sf(num_rare - 1) > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 7.0]), min_size=5, max_size=5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([("num_distinct", 3), ("num_draws", 3), ("num_draws", 9)]),
)
def test_invariants(values, seed, rule):
    probabilities = np.array(values, np.float32)
    num_positive = (probabilities > 0).sum()
    sample = traced_sample(jax.random.key(seed), probabilities, *rule)
    used = sample.counts > 0
    assert len(set(sample.indices.tolist())) == len(sample.indices)
    assert sample.num_draws == sample.counts.sum()
    assert np.all(probabilities[sample.indices[used]] > 0)
    # Used slots come first.
    assert np.all(used[:-1] | ~used[1:])
    if num_positive == 0:
        assert not used.any()
    elif rule[0] == "num_distinct":
        assert used.sum() == min(3, num_positive)
        assert sample.counts[used.sum() - 1] == 1
    else:
        assert sample.num_draws == rule[1]


@functools.partial(jax.jit, static_argnums=(2, 3))
def jitted_sample(key, probabilities, rule, value):
    return sketching.sample_partitions(key, probabilities, **{rule: value})


def traced_sample(*args):
    """One, as arrays of NumPy."""
    return jax.tree.map(np.asarray, jitted_sample(*args))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_invalid_probabilities(bad):
    # A power of two, so that a walk down the tree of sums ends at a part.
    probabilities = np.array([0.5, bad, 0.5, 0.5])
    for rule in (("num_distinct", 3), ("num_draws", 3)):
        sample = traced_sample(jax.random.key(0), probabilities, *rule)
        assert not sample.counts.any() and sample.num_draws == 0


def test_drop_last_distinct_is_unbiased():
    sample = many_samples(jax.random.key(10), PROBABILITIES, num_distinct=3)
    dropped = sketching.drop_last_distinct(sample)
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


def test_poisson_saturates():
    """At the largest float32 that an int32 holds, for an infinite mean as well."""
    drawn = variables(jax.random.key(0), [1e30, np.inf])
    assert drawn.max() == drawn[1::2].max() == 2**31 - 128
    assert drawn.min() > 2**31 - 10 * 2**15.5
