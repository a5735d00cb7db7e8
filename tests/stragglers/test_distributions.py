"""Means and quantiles of the f-th fastest time, against formulas and simulation."""

import math

import numpy as np
import pytest
from scipy import special, stats

from jaxwgc import stragglers

NUM_WORKERS = 12


@pytest.mark.parametrize("shape", [0.4, 1.0, 1.01, 3.0])
def test_pareto(shape):
    law = stragglers.pareto(2.0, shape).law(1.0)
    for num_required in (1, 6, 11, 12):
        later = NUM_WORKERS - num_required + 1
        logarithm = (
            special.gammaln(NUM_WORKERS + 1)
            - special.gammaln(later)
            + special.gammaln(later - 1 / shape)
            - special.gammaln(NUM_WORKERS + 1 - 1 / shape)
        )
        expected = 2 * math.exp(logarithm) if later * shape > 1 else math.inf
        found = law.fastest_mean(num_required, NUM_WORKERS)
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_workers", [10, 1000])
def test_law_that_jumps(num_workers):
    law = stragglers.bernoulli_slowdown(0.1, slowdown=5.0).law(2.0)
    np.testing.assert_array_equal(law.isf([0.09, 0.1]), [10, 2])
    for num_required in (int(0.85 * num_workers), int(0.9 * num_workers)):
        slow = stats.binom.sf(num_workers - num_required, num_workers, 0.1)
        found = law.fastest_mean(num_required, num_workers)
        assert found == pytest.approx(2 + 8 * slow, rel=1e-5)


def test_workers_that_never_answer():
    law = stragglers.bernoulli_slowdown(0.01, slowdown=math.inf).law(1.0)
    assert law.fastest_mean(30, 32) == math.inf
    # More than 22 of 32 dead: 1e-38.
    assert law.fastest_mean(10, 32) == pytest.approx(1, rel=1e-9)
    # To a deadline of three all times are finite.
    some_dead = 1 - 0.99**32
    found = stragglers.deadline(3.0).expected_time(law, 32)
    assert found == pytest.approx(1 + 2 * some_dead, rel=1e-4)
    assert law.fastest_quantile(32, 32, 0.5) == 1
    assert law.fastest_quantile(32, 32, 0.9) == math.inf


def test_quantiles_and_deadlines_against_simulation():
    deviation, at_most = 0.7, 1.8
    law = stragglers.log_normal(1.0, deviation).law(1.0)
    draws = np.random.default_rng(0).normal(size=(40_000, NUM_WORKERS))
    times = np.sort(np.exp(deviation * draws), axis=1)
    for num_required in (3, 9, 12):
        own = times[:, num_required - 1]
        error = 4 * own.std() / math.sqrt(len(own))
        wait = stragglers.fastest(num_required)
        mean = wait.expected_time(law, NUM_WORKERS)
        assert mean == pytest.approx(own.mean(), abs=error)
        level = np.mean(own <= wait.time_quantile(law, NUM_WORKERS, 0.9))
        assert level == pytest.approx(0.9, abs=4 * 0.3 / math.sqrt(len(own)))
        cut = np.minimum(own, at_most)
        error = 4 * cut.std() / math.sqrt(len(own)) + 1e-9
        found = law.fastest_mean(num_required, NUM_WORKERS, at_most)
        assert found == pytest.approx(cut.mean(), abs=error)
