"""Straggler models against their laws, as SciPy and arithmetic give them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxwgc import stragglers

# Samples are drawn with fixed keys; a law is rejected below this p-value.
SIGNIFICANCE = 1e-3


def keys_of(make_key, number, seed=0):
    return jax.random.split(make_key(seed), number)


def rounds_of(model, loads, number, make_key=jax.random.key):
    """Arrivals of that many independent rounds, leaves (number, ...)."""
    loads = jnp.asarray(loads, float)
    state = model.init(len(loads))
    sample = jax.jit(jax.vmap(lambda key: model.sample(key, state, loads)[0]))
    return jax.tree.map(np.asarray, sample(keys_of(make_key, number)))


def times_of(delay, loads, number):
    loads = jnp.asarray(loads, float)
    sample = jax.jit(jax.vmap(lambda key: delay.sample(key, (), loads)[0]))
    return np.asarray(sample(keys_of(jax.random.key, number)))


def binary(masks):
    """Each mask as a number."""
    return masks @ (1 << np.arange(masks.shape[1]))


class TestUniform:
    @pytest.mark.parametrize("num_stragglers", [1, 3, 4])
    def test_every_subset_is_as_likely(self, num_stragglers, make_key, x64):
        """Exactly s of 6 workers; chi-square over all C(6, s) subsets."""
        number = 6000
        model = stragglers.uniform(num_stragglers)
        arrivals = rounds_of(model, np.ones(6), number, make_key)
        assert np.all(arrivals.received.sum(1) == 6 - num_stragglers)
        _, counts = np.unique(binary(arrivals.received), return_counts=True)
        assert len(counts) == math.comb(6, num_stragglers)
        assert scipy.stats.chisquare(counts).pvalue > SIGNIFICANCE
        lost = number - arrivals.received.sum(0)
        # Workers are lost without replacement, so their counts vary less by 1 - s/n.
        share = num_stragglers / 6
        statistic = np.sum((lost - number * share) ** 2) / (
            number * share * (1 - share)
        )
        law = scipy.stats.chi2(5, scale=6 / 5)
        assert SIGNIFICANCE < law.cdf(statistic) < 1 - SIGNIFICANCE
        np.testing.assert_array_equal(
            arrivals.times, np.where(arrivals.received, 1.0, np.inf)
        )
        np.testing.assert_array_equal(arrivals.elapsed, 1.0)

    @pytest.mark.parametrize(
        ("num_workers", "lost"), [(1, 0), (5, 0), (7, 6), (130, 65)]
    )
    def test_number_at_the_ends(self, num_workers, lost):
        model = stragglers.uniform(lost)
        arrivals = rounds_of(model, np.ones(num_workers), 20)
        assert np.all(arrivals.received.sum(1) == num_workers - lost)

    def test_rounds_are_independent(self):
        """A chain of rounds: which of 3 workers is lost, against the one before."""
        model = stragglers.uniform(1)
        _, lost = jax.lax.scan(
            lambda key, _: (
                jax.random.split(key)[0],
                model.sample(jax.random.split(key)[1], (), jnp.ones(3))[
                    0
                ].received.argmin(),
            ),
            jax.random.key(4),
            None,
            2000,
        )
        table = np.zeros((3, 3))
        np.add.at(table, (np.asarray(lost[:-1]), np.asarray(lost[1:])), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > SIGNIFICANCE

    def test_same_key_same_round(self, make_key):
        model = stragglers.uniform(3)
        alone = [model.sample(key, (), jnp.ones(6))[0] for key in keys_of(make_key, 4)]
        mapped = rounds_of(model, np.ones(6), 4, make_key)
        for own, received in zip(alone, mapped.received, strict=True):
            np.testing.assert_array_equal(own.received, received)


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


class TestFastest:
    # At one length and dtype a count, so that few functions are compiled.
    @staticmethod
    def check(times, received, elapsed, required):
        finite = np.isfinite(times)
        order = np.sort(times)
        assert received.sum() == min(required, finite.sum())
        assert not np.any(received & ~finite)
        assert elapsed == order[required - 1]
        if received.any() and np.any(finite & ~received):
            assert times[received].max() <= times[finite & ~received].min()

    @settings(max_examples=150, deadline=None)
    @given(
        times=st.lists(
            st.one_of(
                st.sampled_from([0.0, 1.0, 2.0, 1e-45, 3e38, math.inf]),
                st.floats(0, 4, width=32),
            ),
            min_size=5,
            max_size=5,
        ),
        required=st.integers(1, 5),
        seed=st.integers(0, 2**32 - 1),
    )
    @example(times=[math.inf] * 5, required=3, seed=0)
    @example(times=[0.0] * 5, required=5, seed=0)
    def test_are_the_least_times(self, times, required, seed):
        """With ties, subnormal times and workers that never finish, in float32."""
        times = np.array(times, np.float32)
        key = jax.random.PRNGKey(seed)
        arrivals = self.wait(required)(key, times)
        np.testing.assert_array_equal(arrivals.times, times)
        self.check(times, np.asarray(arrivals.received), arrivals.elapsed, required)

    compiled = {}

    def wait(self, required):
        if required not in self.compiled:
            self.compiled[required] = jax.jit(stragglers.fastest(required))
        return self.compiled[required]

    @settings(max_examples=40, deadline=None)
    @given(
        times=st.lists(st.floats(0, math.inf), min_size=5, max_size=5),
        required=st.integers(1, 5),
    )
    @example(times=[1.0, 1.0 + 1e-12, 1.0 - 1e-12, 5e-324, math.inf], required=2)
    def test_in_float64(self, times, required):
        with jax.enable_x64(True):
            wait = self.wait(required)
            arrivals = wait(jax.random.PRNGKey(0), np.array(times))
            assert arrivals.elapsed.dtype == np.float64
            self.check(
                np.array(times),
                np.asarray(arrivals.received),
                arrivals.elapsed,
                required,
            )

    def test_map_over_times(self, x64):
        dtype = np.float64 if x64 else np.float32
        times = np.random.default_rng(0).exponential(size=(20, 9)).astype(dtype)
        wait = stragglers.fastest(4)
        arrivals = jax.jit(jax.vmap(wait))(keys_of(jax.random.key, 20), times)
        order = np.sort(times, axis=1)
        np.testing.assert_array_equal(arrivals.received, times <= order[:, 3:4])
        np.testing.assert_array_equal(arrivals.elapsed, order[:, 3])

    def test_ties_are_decided_uniformly(self, make_key):
        """One surely, two of the four that tie, never the slowest."""
        times = jnp.array([2.0, 1.0, 2.0, 3.0, 2.0, 2.0])
        wait = stragglers.fastest(3)
        arrivals = jax.jit(jax.vmap(lambda key: wait(key, times)))(
            keys_of(make_key, 3000)
        )
        received = np.asarray(arrivals.received)
        assert np.all(received[:, 1])
        assert not np.any(received[:, 3])
        masks, counts = np.unique(binary(received), return_counts=True)
        assert len(masks) == math.comb(4, 2)
        assert scipy.stats.chisquare(counts).pvalue > SIGNIFICANCE

    @pytest.mark.parametrize("required", [1, 4, 6])
    def test_expected_time_of_the_fastest_exponentials(self, required, with_x64):
        """Renyi: the mean of the f-th order statistic is a harmonic sum.

        Of n exponentials of rate r, sum over i < f of 1 / ((n - i) r), and the variance
        is the sum of the squares.
        """
        number, shift, rate, load = 4000, 0.25, 2.0, 3.0
        delay = stragglers.shifted_exponential(shift, rate)
        model = stragglers.delayed(delay, stragglers.fastest(required))
        arrivals = rounds_of(model, np.full(6, load), number)
        terms = load / (rate * (6 - np.arange(required)))
        mean, deviation = load * shift + terms.sum(), np.sqrt(np.sum(terms**2))
        assert abs(arrivals.elapsed.mean() - mean) < 3.3 * deviation / np.sqrt(number)
        np.testing.assert_array_equal(
            arrivals.elapsed, np.sort(arrivals.times, 1)[:, required - 1]
        )
        assert np.all(arrivals.received.sum(1) == required)
        lost = np.bincount(binary(~arrivals.received))
        lost = lost[lost > 0]
        assert len(lost) == math.comb(6, required)
        if len(lost) > 1:
            assert scipy.stats.chisquare(lost).pvalue > SIGNIFICANCE


class TestDeadline:
    @settings(max_examples=60, deadline=None)
    @given(
        times=st.lists(
            st.one_of(st.sampled_from([1.5, math.inf]), st.floats(0, 4, width=32)),
            min_size=4,
            max_size=4,
        )
    )
    @example(times=[math.inf] * 4)
    @example(times=[1.0] * 4)
    @example(times=[1.5] * 4)
    def test_takes_who_has_answered(self, times):
        times = np.array(times, np.float32)
        arrivals = stragglers.deadline(1.5)(jax.random.PRNGKey(0), times)
        np.testing.assert_array_equal(arrivals.received, times <= 1.5)
        assert arrivals.elapsed == min(times.max(), 1.5)
        np.testing.assert_array_equal(arrivals.times, times)

    def test_number_of_answers(self, make_key, x64):
        """Binomial with the probability of the law at the deadline."""
        number = 3000
        delay = stragglers.pareto(1.0, 2.0)
        model = stragglers.delayed(delay, stragglers.deadline(2.0))
        arrivals = rounds_of(model, np.ones(4), number, make_key)
        counts = np.bincount(arrivals.received.sum(1), minlength=5)
        chance = scipy.stats.pareto(2.0).cdf(2.0)
        expected = number * scipy.stats.binom(4, chance).pmf(np.arange(5))
        assert scipy.stats.chisquare(counts, expected).pvalue > SIGNIFICANCE
        everyone = arrivals.received.all(1)
        np.testing.assert_array_equal(arrivals.elapsed[~everyone], 2.0)
        np.testing.assert_array_equal(
            arrivals.elapsed[everyone], arrivals.times[everyone].max(1)
        )

    def test_an_infinite_deadline_waits_for_everyone(self):
        times = jnp.array([1.0, jnp.inf])
        arrivals = stragglers.deadline(math.inf)(jax.random.key(0), times)
        np.testing.assert_array_equal(arrivals.received, [True, False])
        assert arrivals.elapsed == math.inf


class TestDelayed:
    def test_state_and_keys_of_a_delay_of_the_user(self):
        """State is carried; the delay and the rule get different keys."""

        def sample(key, state, loads):
            return loads + state + jax.random.uniform(key, loads.shape), state + 10.0

        def wait(key, times):
            return stragglers.Arrivals(times > 0, times, jax.random.uniform(key))

        delay = stragglers.DelayModel(lambda num_workers: jnp.zeros(()), sample)
        model = stragglers.delayed(delay, wait)
        state = model.init(3)
        for round_ in range(3):
            key = jax.random.key(7)
            arrivals, state = model.sample(key, state, jnp.arange(3.0))
            draws = np.asarray(arrivals.times) - np.arange(3) - 10 * round_
            assert np.all((draws > -1e-5) & (draws < 1 + 1e-5))
            assert state == 10 * (round_ + 1)
            assert np.all(np.abs(draws - arrivals.elapsed) > 1e-3)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "rule"),
        [
            (
                lambda: stragglers.uniform(-1),
                "num_stragglers must be at least 0; got -1",
            ),
            (
                lambda: stragglers.uniform(4).init(4),
                "num_stragglers must be less than num_workers; .* = 4 and .* = 4",
            ),
            (
                lambda: stragglers.uniform(5).sample(
                    jax.random.key(0), (), jnp.ones(4)
                ),
                "num_stragglers must be less than num_workers; .* = 5 and .* = 4",
            ),
            (
                lambda: stragglers.shifted_exponential(-0.1, 1.0),
                "shift must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.shifted_exponential(math.nan, 1.0),
                "shift must be a number; got nan",
            ),
            (
                lambda: stragglers.shifted_exponential(1.0, 0),
                "rate must be positive; got 0",
            ),
            (
                lambda: stragglers.shifted_exponential(1.0, -2.0),
                "rate must be positive; got -2",
            ),
            (lambda: stragglers.pareto(0.0, 1.0), "scale must be positive; got 0"),
            (lambda: stragglers.pareto(1.0, -1.0), "shape must be positive; got -1"),
            (
                lambda: stragglers.pareto(1.0, math.nan),
                "shape must be a number; got nan",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(-0.1, 2.0),
                "probability must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(1.1, 2.0),
                "probability must be at most 1; got 1.1",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(math.nan, 2.0),
                "probability must be a number; got nan",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(0.5, 0.9),
                "slowdown must be at least 1; got 0.9",
            ),
            (
                lambda: stragglers.bernoulli_slowdown(0.5, 2.0, time=0.0),
                "time must be positive; got 0",
            ),
            (lambda: stragglers.fastest(0), "num_required must be at least 1; got 0"),
            (
                lambda: stragglers.fastest(4)(jax.random.key(0), jnp.ones(3)),
                "num_required must be at most num_workers; .* = 4 and .* = 3",
            ),
            (lambda: stragglers.deadline(0.0), "seconds must be positive; got 0"),
            (lambda: stragglers.deadline(-1.0), "seconds must be positive; got -1"),
            (
                lambda: stragglers.deadline(math.nan),
                "seconds must be a number; got nan",
            ),
        ],
    )
    def test_values(self, make, rule):
        with pytest.raises(ValueError, match=rule):
            make()

    @pytest.mark.parametrize("value", [1.0, "1", None, True, np.ones(2)])
    def test_numbers_that_are_not_ints(self, value):
        with pytest.raises(TypeError, match="num_stragglers must be a.* int"):
            stragglers.uniform(value)
        with pytest.raises(TypeError, match="num_required must be a.* int"):
            stragglers.fastest(value)

    def test_counts_that_are_traced(self):
        with pytest.raises(TypeError, match="num_stragglers must be a Python int"):
            jax.jit(lambda count: stragglers.uniform(count).init(3))(1)

    @pytest.mark.parametrize("value", ["1", None, np.ones(2), 1j])
    def test_numbers_that_are_not_real_scalars(self, value):
        for name, make in {
            "shift": lambda: stragglers.shifted_exponential(value, 1.0),
            "rate": lambda: stragglers.shifted_exponential(1.0, value),
            "scale": lambda: stragglers.pareto(value, 1.0),
            "probability": lambda: stragglers.bernoulli_slowdown(value, 1.0),
            "seconds": lambda: stragglers.deadline(value),
        }.items():
            with pytest.raises(TypeError, match=f"{name} must be a real scalar; got"):
                make()

    def test_models(self):
        pareto, wait = stragglers.pareto(1.0, 1.0), stragglers.fastest(1)
        with pytest.raises(TypeError, match="delay must be a DelayModel; got <func"):
            stragglers.delayed(wait, wait)
        with pytest.raises(TypeError, match="delay must be a DelayModel"):
            stragglers.delayed(stragglers.uniform(1), wait)
        with pytest.raises(TypeError, match="wait must be a waiting rule; got Delay"):
            stragglers.delayed(pareto, pareto)

    @pytest.mark.parametrize("key", [0, None, np.zeros(2, np.int32), np.zeros(2)])
    def test_keys(self, key):
        pareto, wait = stragglers.pareto(1.0, 1.0), stragglers.fastest(1)
        for sample in (
            stragglers.uniform(1).sample,
            pareto.sample,
            stragglers.delayed(pareto, wait).sample,
            lambda key, _, times: stragglers.fastest(1)(key, times),
        ):
            with pytest.raises(TypeError, match="key must be a PRNG key"):
                sample(key, (), jnp.ones(3))
        with pytest.raises(ValueError, match=r"key must be one key; .* \(2"):
            pareto.sample(jax.random.split(jax.random.key(0)), (), jnp.ones(3))
