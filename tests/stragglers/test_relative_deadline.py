"""Deadlines relative to the fastest workers."""

import jax
import numpy as np
import pytest

import jaxwgc
from jaxwgc import stragglers


@pytest.mark.parametrize(("factor", "quorum"), [(1.0, 1), (1.5, 2), (3.0, 4)])
def test_against_sorting(factor, quorum):
    times = np.random.default_rng(0).exponential(size=(50, 6)).astype(np.float32)
    times[::5, 2:] = np.inf
    wait = stragglers.relative_deadline(factor, quorum)
    keys = jax.random.split(jax.random.key(0), 50)
    arrivals = jax.jit(jax.vmap(wait.arrivals))(keys, times)
    limit = np.float32(factor) * np.sort(times)[:, quorum - 1]
    np.testing.assert_array_equal(arrivals.elapsed, np.minimum(limit, times.max(1)))
    expected = (times <= limit[:, None]) & np.isfinite(times)
    np.testing.assert_array_equal(arrivals.received, expected)


def test_in_a_plan():
    """Workers that hang cost half of the time of the others, and not for ever."""
    delay = stragglers.bernoulli_slowdown(0.1, np.inf)
    wait = stragglers.relative_deadline(1.5, quorum=3)
    found = jaxwgc.plan(
        delay,
        6,
        jax.random.key(0),
        replications=[1],
        waiting=[wait],
        num_rounds=400,
        heterogeneity=0.0,
    )
    assert found.best.wait == wait
    someone = 1 - 0.9**6
    expected = pytest.approx(1 + 0.5 * someone, abs=0.05)
    assert found.best.step_time.value == expected
