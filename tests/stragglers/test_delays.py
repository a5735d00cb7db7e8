"""Workers that are slow now and then, and parameters that are mapped over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc import stragglers
from tests.stragglers.laws import SIGNIFICANCE, times_of


class TestDelays:
    loads = np.array([1.0, 3.0, 0.5])

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
