"""The laws of the row samplers, their inclusion probabilities and their scales."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc.sketching import row_probabilities, sample_rows
from jaxwgc.sketching._samplers._sample_rows import poisson_rows, systematic_rows

# Row 1 is in every sample of 3 distinct rows, and in every Poisson sample.
PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.05, 0.2])
INCLUSION = {
    "without_replacement": np.array([0.4, 1, 0.6, 0.2, 0.8]),
    "poisson": np.array([0.3, 1, 0.45, 0.15, 0.6]),
}
DISTINCT = sorted(INCLUSION)
METHODS = ("with_replacement", *DISTINCT)


# One for most tests, so that they share compiled functions.
NUM_SAMPLES = 20_000


@functools.partial(jax.jit, static_argnames=("num", "size", "method", "weighted"))
def _many_samples(key, probabilities, num=NUM_SAMPLES, size=3, **options):
    keys = jax.random.split(key, num)
    return jax.vmap(lambda key: sample_rows(key, probabilities, size, **options))(keys)


def many_samples(*args, **options):
    """In NumPy, which compiles nothing for what follows."""
    return jax.device_get(_many_samples(*args, **options))


@jax.jit
def many_systematic(key, probabilities, size):
    keys = jax.random.split(key, 20)
    return jax.vmap(lambda key: systematic_rows(key, probabilities, size))(keys)


def spread(sample, values, num_rows=5):
    """The values of the slots at their rows, (num, num_rows)."""
    result = np.zeros((len(values), num_rows))
    samples, slots = np.nonzero(sample.counts)
    rows = np.asarray(sample.indices)[samples, slots]
    result[samples, rows] = np.asarray(values)[samples, slots]
    # Rows in used slots are distinct.
    assert np.count_nonzero(result) == np.count_nonzero(np.asarray(values))
    return result


class TestUnbiased:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("sharp", [False, True])
    def test_gram_matrix(self, method, sharp):
        """E[sum of scale² x xᵀ] = XᵀX within four standard errors."""
        probabilities = PROBABILITIES if sharp else np.ones(5) / 5
        sample = many_samples(jax.random.key(0), probabilities, method=method)
        squares = spread(sample, sample.scale**2)
        matrix = np.random.default_rng(0).normal(size=(5, 2))
        grams = np.einsum("tj,ja,jb->tab", squares, matrix, matrix)
        error = grams.std(0) / np.sqrt(NUM_SAMPLES)
        assert np.all(np.abs(grams.mean(0) - matrix.T @ matrix) < 4 * error + 1e-6)
        deviation = np.abs(squares.mean(0) - 1)
        assert np.all(deviation < 4 * squares.std(0) / np.sqrt(NUM_SAMPLES) + 1e-6)
        assert not sample.num_lost.any()

    def test_top_k_is_not(self):
        sample = sample_rows(None, PROBABILITIES, 3, "top_k")
        assert sample.indices.tolist() == [1, 4, 2]
        for values in (sample.counts, sample.probabilities, sample.scale):
            np.testing.assert_array_equal(values, np.ones(3))

    @pytest.mark.parametrize("method", ["with_replacement", "poisson"])
    def test_unweighted(self, method):
        """As LEVUNW: a row counts as often as it was drawn."""
        sample = many_samples(
            jax.random.key(1), PROBABILITIES, method=method, weighted=False
        )
        np.testing.assert_allclose(sample.scale**2, sample.counts, rtol=1e-6)
        assert sample.counts.any()


class TestLaws:
    @pytest.mark.parametrize("method", DISTINCT)
    def test_inclusion(self, method):
        """The probabilities that are returned, and how often rows are there."""
        sample = many_samples(jax.random.key(3), PROBABILITIES, method=method)
        is_in = spread(sample, sample.counts)
        inclusion = INCLUSION[method]
        for row in range(5):
            successes = int(is_in[:, row].sum())
            if inclusion[row] == 1:
                assert successes == NUM_SAMPLES
            else:
                test = scipy.stats.binomtest(successes, NUM_SAMPLES, inclusion[row])
                assert test.pvalue > 1e-3
        used = np.asarray(sample.counts) > 0
        np.testing.assert_allclose(
            np.asarray(sample.probabilities)[used],
            inclusion[np.asarray(sample.indices)[used]],
            rtol=1e-6,
        )

    def test_poisson_rows_are_independent(self):
        sample = many_samples(jax.random.key(4), PROBABILITIES, method="poisson")
        is_in = spread(sample, sample.counts)[:, [0, 2, 3, 4]]
        chances = INCLUSION["poisson"][[0, 2, 3, 4]]
        cells = np.array(list(itertools.product([0, 1], repeat=4)))
        expected = np.prod(np.where(cells, chances, 1 - chances), axis=1) * NUM_SAMPLES
        observed = np.bincount((is_in @ [8, 4, 2, 1]).astype(int), minlength=16)
        assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3

    def test_without_replacement_has_its_size_and_every_triple(self):
        sample = many_samples(
            jax.random.key(5), np.ones(5), method="without_replacement"
        )
        assert np.all(sample.counts == 1)
        triples = collections.Counter(map(tuple, sample.indices.tolist()))
        # All ten are as likely, where rows are: by symmetry of the random order.
        assert len(triples) == 10
        assert scipy.stats.chisquare(list(triples.values())).pvalue > 1e-3

    @pytest.mark.parametrize(
        ("num_rows", "size", "spread", "x64"),
        [
            *(
                (2000, size, spread, x64)
                for size, spread in [(300, 2.0), (1900, 0.1), (7, 4.0)]
                for x64 in (False, True)
            ),
            (5, 5, 1.0, False),
        ],
    )
    def test_exact_chances(self, num_rows, size, spread, x64):
        """They sum to the size, which every sample has, also with rounding."""
        draw = np.random.default_rng(0).normal
        probabilities = np.exp(spread * draw(size=num_rows))
        probabilities = probabilities / probabilities.sum()
        with jax.enable_x64(x64):
            result = many_systematic(jax.random.key(6), probabilities, np.int32(size))
        is_in, inclusion = jax.device_get(result)
        probabilities = probabilities.astype(inclusion.dtype)
        np.testing.assert_array_equal(np.sum(is_in, axis=1), size)
        total = np.asarray(inclusion, np.float64).sum(1)
        np.testing.assert_allclose(total, size, rtol=1e-15 if x64 else 1e-6)
        # In proportion, where they are not 1, as all are where all rows are taken.
        is_uncertain = inclusion[0] < 1
        assert is_uncertain.any() == (size < num_rows)
        ratio = (inclusion[0] / probabilities)[is_uncertain]
        if len(ratio):
            large = inclusion[0][is_uncertain] > 1e-4
            np.testing.assert_allclose(ratio[large], ratio[large][0], rtol=1e-5)

    @pytest.mark.parametrize("law", [poisson_rows, systematic_rows])
    def test_rare_rows_are_not_lost(self, law):
        """Chances below 2⁻³² are rounded up, and the scale uses the rounded ones."""
        probabilities = jnp.array([0.5, 0.5, 1e-15, 0.0], jnp.float32)
        draw = jax.jit(law, static_argnums=2)
        _, inclusion = jax.device_get(draw(jax.random.key(0), probabilities, 1))
        assert inclusion[2] == 2.0**-32 and inclusion[3] == 0


def test_overflow_is_reported():
    sample = sample_rows(jax.random.key(0), np.ones(50), 50, "poisson", num_slots=20)
    # All 50 rows have the probability 1.
    assert sample.num_lost == 30
    assert sample.counts.tolist() == [1] * 20


def test_default_slots_suffice():
    sample = many_samples(jax.random.key(7), np.ones(400), 500, 100, method="poisson")
    assert 100 < sample.counts.shape[1] < 200
    assert not sample.num_lost.any()
    sizes = np.sum(sample.counts, axis=1)
    assert abs(sizes.mean() - 100) < 4 * np.sqrt(75 / 500)


@pytest.mark.parametrize(
    ("method", "is_raw"),
    [
        ("with_replacement", False),
        ("without_replacement", True),
        ("poisson", True),
        ("top_k", False),
    ],
)
def test_precision_keys_and_jit(method, is_raw):
    """float64 in and out in 64-bit mode; a traced call gives the same sample."""
    traced = many_samples(jax.random.key(8), PROBABILITIES, method=method)
    key = jax.random.split(jax.random.key(8), NUM_SAMPLES)[7]
    key = jax.random.key_data(key) if is_raw else key
    single = sample_rows(key, PROBABILITIES, 3, method)
    assert single.scale.dtype == single.probabilities.dtype == np.float32
    for one, many in zip(single, traced):
        np.testing.assert_allclose(one, many[7], rtol=1e-5)
    with jax.enable_x64(True):
        double = sample_rows(key, PROBABILITIES, 3, method)
    assert double.scale.dtype == double.probabilities.dtype == np.float64
    assert double.indices.dtype == double.counts.dtype == np.int32
    assert double.num_lost.dtype == np.int32
    if method in DISTINCT:
        # Drawn from bits: the same rows. Draws with replacement use uniform variables.
        np.testing.assert_array_equal(single.indices, double.indices)


@pytest.mark.parametrize("method", [*METHODS, "top_k"])
def test_invalid_traced_probabilities(method):
    key = jax.random.key(0)
    for bad in ([0.5, np.nan, 0.5], [0.5, -1, 0.5], [0, 0, 0], [np.inf, 1, 1]):
        sample = many_samples(key, np.array([*bad, 0, bad[0]], float), method=method)
        assert not sample.counts.any()
        assert np.isnan(sample.scale).all()
    # Fewer positive ones than rows to be drawn.
    sample = many_samples(key, np.array([0.0, 3, 0, 0, 0]), method=method)
    assert np.all(sample.indices[:, 0] == 1)
    used = sample.counts > 0
    assert used[:, 0].all() and not used[:, 1:].any()
    assert np.isfinite(sample.scale).all() and not sample.scale[:, 1:].any()


class TestRowProbabilities:
    SCORES = np.array([3.0, 1.0, 0.0, 4.0])

    def test_rules(self):
        leverage = self.SCORES / 8
        np.testing.assert_allclose(row_probabilities(self.SCORES), leverage)
        np.testing.assert_allclose(row_probabilities(self.SCORES, "unif"), 0.25)
        np.testing.assert_allclose(
            row_probabilities(self.SCORES, "slev", 0.6), 0.6 * leverage + 0.1, rtol=1e-6
        )
        default = row_probabilities(self.SCORES, "slev")
        np.testing.assert_allclose(default, 0.9 * leverage + 0.025, rtol=1e-6)

    def test_huge_scores(self):
        np.testing.assert_allclose(row_probabilities(np.full(4, 3e38)), 0.25)

    def test_traced(self):
        call = jax.jit(row_probabilities, static_argnums=1)
        assert np.isnan(call(np.array([1, np.nan]), "unif")).all()
        assert np.isnan(call(np.zeros(2), "lev")).all()
        np.testing.assert_allclose(call(self.SCORES, "slev", 1.0), self.SCORES / 8)
        for alpha in (2.0, -0.5):
            assert np.isnan(call(self.SCORES, "slev", alpha)).all()
