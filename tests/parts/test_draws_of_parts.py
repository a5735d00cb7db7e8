"""Random variables that draw partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc.parts._draws_of_parts import _exponential, _poisson
from tests.oracles import check_counts

NUM_VARIABLES = 100_000


@jax.jit
def poisson_variables(key, mean):
    """Every second one has the mean 0."""
    return _poisson(key, jnp.resize(jnp.array([mean, 0]), NUM_VARIABLES))


@pytest.mark.parametrize("mean", [0.3, 12.0, 3e3, 5e3, 1e6])
def test_poisson_law_in_float32(mean):
    drawn = np.asarray(poisson_variables(jax.random.key(5), np.float32(mean)))
    assert not drawn[1::2].any()
    law = scipy.stats.poisson(mean)
    edges = np.unique(law.ppf(np.linspace(0, 1, 31)[1:-1]))
    observed = np.histogram(drawn[::2], [-1, *edges + 0.5, np.inf])[0]
    check_counts(observed, np.diff([0, *law.cdf(edges), 1]) * NUM_VARIABLES / 2)


def test_earliest_arrivals_of_many_do_not_tie():
    # On a grid of 2**-23, 2**18 arrivals would have 4,000 pairs that tie.
    exponential = jax.jit(_exponential, static_argnums=(1, 2))
    arrivals = np.asarray(exponential(jax.random.key(6), (2**18,), np.float32))
    smallest = np.sort(arrivals)[:1000]
    assert smallest[0] > 0 and len(np.unique(smallest)) > 990
    # The gaps between the smallest are exponential as well.
    gaps = np.diff(smallest) * (2**18 - np.arange(1, 1000))
    for drawn in (arrivals[:20_000], gaps):
        assert scipy.stats.kstest(drawn, scipy.stats.expon().cdf).pvalue > 1e-3
