"""Delay models against their laws, as SciPy gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc import stragglers
from tests.stragglers.laws import SIGNIFICANCE, times_of


class TestDelays:
    """Kolmogorov-Smirnov against scipy.stats, at every load."""

    loads = np.array([1.0, 3.0, 0.5])

    @pytest.mark.parametrize(
        ("delay", "law"),
        [
            (
                stragglers.shifted_exponential(0.5, 4.0),
                scipy.stats.expon(loc=0.5, scale=1 / 4.0),
            ),
            (stragglers.shifted_exponential(0.0, 0.1), scipy.stats.expon(scale=10.0)),
            (stragglers.pareto(2.0, 1.2), scipy.stats.pareto(1.2, scale=2.0)),
            (stragglers.pareto(0.1, 3.0), scipy.stats.pareto(3.0, scale=0.1)),
        ],
        ids=["shifted", "exponential", "heavy", "light"],
    )
    def test_laws(self, delay, law, x64):
        times = times_of(delay, self.loads, 3000)
        assert times.shape == (3000, 3)
        assert times.dtype == (np.float64 if x64 else np.float32)
        for column, load in zip(times.T, self.loads, strict=True):
            test = scipy.stats.kstest(column / load, law.cdf)
            assert test.pvalue > SIGNIFICANCE
        # Workers are independent: ranks do not correlate.
        ranks = scipy.stats.spearmanr(times).statistic
        assert np.abs(ranks - np.eye(3)).max() < 4 / np.sqrt(3000)

    def test_bernoulli_slowdown(self):
        number = 4000
        delay = stragglers.bernoulli_slowdown(0.3, 8.0, time=0.5)
        times = times_of(delay, self.loads, number)
        slow = times > self.loads
        np.testing.assert_array_equal(
            times, np.where(slow, 4.0 * self.loads, 0.5 * self.loads)
        )
        for worker in slow.T:
            assert (
                scipy.stats.binomtest(worker.sum(), number, 0.3).pvalue > SIGNIFICANCE
            )
        counts = np.bincount(slow.sum(1), minlength=4)
        expected = number * scipy.stats.binom(3, 0.3).pmf(np.arange(4))
        assert scipy.stats.chisquare(counts, expected).pvalue > SIGNIFICANCE

    @pytest.mark.parametrize(("probability", "factor"), [(0.0, 1.0), (1.0, 7.0)])
    def test_bernoulli_slowdown_at_the_ends(self, probability, factor):
        delay = stragglers.bernoulli_slowdown(probability, 7.0)
        times = times_of(delay, self.loads, 50)
        np.testing.assert_array_equal(
            times, np.tile(factor * self.loads, (50, 1)).astype(np.float32)
        )

    def test_parameters_may_be_mapped_over(self):
        """A study over rates, or over probabilities, in one compiled function."""

        def means(rate, probability):
            exponential = stragglers.shifted_exponential(1.0, rate)
            slowed = stragglers.bernoulli_slowdown(probability, 3.0)
            key, loads = jax.random.key(0), jnp.ones(4000)
            return (
                exponential.sample(key, (), loads)[0].mean(),
                slowed.sample(key, (), loads)[0].mean(),
            )

        rates, probabilities = np.array([0.5, 2.0, 8.0]), np.array([0.1, 0.5, 0.9])
        first, second = jax.jit(jax.vmap(means))(rates, probabilities)
        error = 4 / np.sqrt(4000)
        assert np.all(np.abs(first - (1 + 1 / rates)) < error / rates)
        spread = 2 * np.sqrt(probabilities * (1 - probabilities))
        assert np.all(np.abs(second - (1 + 2 * probabilities)) < error * spread)
