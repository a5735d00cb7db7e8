"""Waiting rules against sorting, and against the laws of order statistics."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxwgc import stragglers
from tests.stragglers.laws import SIGNIFICANCE, binary, keys_of


@functools.cache
def fastest(required):
    """At one length and dtype a count, so that few functions are compiled."""
    return jax.jit(stragglers.fastest(required).arrivals)


class TestFastest:
    @settings(max_examples=80, deadline=None)
    @given(
        times=st.lists(
            st.one_of(
                st.sampled_from([0.0, 1.0, 2.0, 1e-45, 3e38, math.inf]),
                st.floats(0, 4, width=32),
                st.floats(0, math.inf),
            ),
            min_size=5,
            max_size=5,
        ),
        required=st.integers(1, 5),
        seed=st.integers(0, 2**32 - 1),
        x64=st.booleans(),
    )
    @example(times=[math.inf] * 5, required=3, seed=0, x64=False)
    @example(times=[0.0] * 5, required=5, seed=0, x64=False)
    @example([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 5e-324, math.inf], 2, 0, True)
    def test_are_the_least_times(self, times, required, seed, x64):
        """With ties, subnormal times and workers that never finish."""
        with np.errstate(over="ignore"):
            times = np.array(times, np.float64 if x64 else np.float32)
        with jax.enable_x64(x64):
            key = jax.random.PRNGKey(seed)
            arrivals = jax.device_get(fastest(required)(key, times))
        received, finite = arrivals.received, np.isfinite(times)
        assert arrivals.elapsed.dtype == times.dtype
        np.testing.assert_array_equal(arrivals.times, times)
        assert received.sum() == min(required, finite.sum())
        assert not np.any(received & ~finite)
        # XLA takes subnormal numbers for zero.
        tiny, expected = np.finfo(times.dtype).tiny, np.sort(times)[required - 1]
        np.testing.assert_allclose(arrivals.elapsed, expected, rtol=0, atol=tiny)
        if received.any() and np.any(finite & ~received):
            assert times[received].max() <= times[finite & ~received].min()

    def test_ties_are_decided_uniformly(self, make_key):
        """One surely, two of the four that tie, never the slowest."""
        times = jnp.array([2.0, 1.0, 2.0, 3.0, 2.0, 2.0])
        wait = stragglers.fastest(3)
        arrivals = jax.jit(jax.vmap(lambda key: wait.arrivals(key, times)))(
            keys_of(make_key, 3000)
        )
        received = np.asarray(arrivals.received)
        assert np.all(received[:, 1])
        assert not np.any(received[:, 3])
        masks, counts = np.unique(binary(received), return_counts=True)
        assert len(masks) == math.comb(4, 2)
        assert scipy.stats.chisquare(counts).pvalue > SIGNIFICANCE


class TestDeadline:
    def test_takes_who_has_answered(self):
        times = np.random.default_rng(0).uniform(0, 4, (40, 4)).astype(np.float32)
        times[::2, 1], times[::3, 2], times[:2] = 1.5, np.inf, [[np.inf], [1.0]]
        wait, key = stragglers.deadline(1.5), jax.random.key(0)
        arrivals = jax.jit(jax.vmap(lambda own: wait.arrivals(key, own)))(times)
        np.testing.assert_array_equal(arrivals.received, times <= 1.5)
        np.testing.assert_array_equal(arrivals.elapsed, times.max(1).clip(max=1.5))
        np.testing.assert_array_equal(arrivals.times, times)

    def test_an_infinite_deadline_waits_for_everyone(self):
        times = jnp.array([1.0, jnp.inf])
        arrivals = stragglers.deadline(math.inf).arrivals(jax.random.key(0), times)
        np.testing.assert_array_equal(arrivals.received, [True, False])
        assert arrivals.elapsed == math.inf

    def test_whole_numbers_as_times(self):
        """A deadline between them is not rounded to one."""
        arrivals = stragglers.deadline(1.5).arrivals(
            jax.random.key(0), jnp.array([1, 2])
        )
        np.testing.assert_array_equal(arrivals.received, [True, False])
        assert arrivals.elapsed == 1.5


def test_zeros_of_both_signs_tie():
    times = np.array([0.0, -0.0, 1.0], np.float32)
    wait = stragglers.fastest(1)
    received = jax.vmap(lambda key: wait.arrivals(key, times).received)(
        keys_of(jax.random.key, 64)
    )
    np.testing.assert_array_equal(received.any(0), [True, True, False])
