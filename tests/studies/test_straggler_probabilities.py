"""How often workers straggle, against SciPy and in use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxwgc import codes, stragglers
from jaxwgc.studies import expected_error, straggler_probabilities


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_counts_and_wilsons_intervals(make):
    """From a worker that was never late to one that always was."""
    late = np.array([0, 1, 17, 49, 50])
    received = np.arange(50)[:, None] >= late
    found = straggler_probabilities(make(received), 0.9)
    np.testing.assert_allclose(found.mean, (late + 0.5) / 51)
    for count, low, high in zip(late.tolist(), found.low, found.high, strict=True):
        interval = scipy.stats.binomtest(count, 50).proportion_ci(0.9, "wilsoncc")
        assert (low, high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_code_of_a_trace():
    """Times, a deadline, estimates and a code: nearly unbiased, within the intervals.

    The bias of a part lies between those at the ends of the intervals.
    """
    scales = np.array([0.3, 0.6, 0.9, 1.2])
    times = np.random.default_rng(0).exponential(scales, (2000, 4))
    wait = stragglers.deadline(1.5)
    rounds = jax.vmap(lambda own: wait.arrivals(jax.random.key(0), own))(times)
    estimates = straggler_probabilities(rounds.received, 0.999)
    true = np.exp(-1.5 / scales)
    assert np.all((estimates.low < true) & (true < estimates.high))
    code = codes.unequal(estimates.mean, 5)
    bias = expected_error(code, true).bias
    ends = [expected_error(code, end).bias for end in (estimates.high, estimates.low)]
    assert np.all((ends[0] <= bias) & (bias <= ends[1]))
    assert np.abs(bias).max() < 0.05
