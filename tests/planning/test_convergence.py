"""Loss of gradient descent with weights, from which `jaxwgc.plan` takes steps."""

import numpy as np
import pytest

from jaxwgc.planning._convergence import (
    MOVES,
    Goal,
    Quadratic,
    StaleDescent,
    Weights,
    leave_one_out,
)

PROBLEM = Quadratic.of(Goal(condition=10.0, heterogeneity=0.0), num_workers=4)


@pytest.mark.parametrize("step", [1.5, 1.99, 2.01, 2.2, 3.0])
def test_descent_diverges_if_the_step_exceeds_2_over_the_curvature(step):
    """The largest curvature of the quadratic is 1."""
    zero = np.zeros(())
    exact = Weights(
        noise=zero, bias=zero, scale_variance=zero, lasting=zero, correlation=zero
    )
    loss = exact.loss(step, PROBLEM)(5)
    if step > 2:
        assert loss == np.inf
        return
    curvature = PROBLEM.curvature
    np.testing.assert_allclose(loss, np.mean((1 - step * curvature) ** 10))


@pytest.mark.parametrize("num_steps", [0, 5, 16, 17, 40])
def test_stale_descent_keeps_its_pace_after_the_simulated_steps(num_steps):
    rates = 0.1 + 0.2 * MOVES
    remainder = np.exp(-np.outer(rates, np.arange(17)))
    descent = StaleDescent(
        left=remainder, displaced=2 * remainder, unknown=np.zeros(())
    )
    problem = Quadratic.of(Goal(condition=1.0, heterogeneity=0.5), num_workers=4)
    size = problem.parts
    step = MOVES[3]
    expected = np.exp(-rates[3] * num_steps) * (1 + 2 * size * step**2)
    np.testing.assert_allclose(descent.loss(step, problem)(num_steps), expected)


def test_messages_that_are_unknown_after_the_simulated_steps_displace_the_limit():
    remainder = np.exp(-np.outer(np.ones(len(MOVES)), np.arange(17)))
    descent = StaleDescent(left=remainder, displaced=remainder, unknown=np.array(0.3))
    problem = Quadratic.of(Goal(condition=1.0, heterogeneity=0.5), num_workers=4)
    size = problem.parts
    loss = descent.loss(MOVES[3], problem)
    np.testing.assert_allclose(loss(np.inf), 0.3 * size)
    # Half of the exponent, because distances and not their squares decay.
    at_20 = np.exp(-20) * (1 + size * MOVES[3] ** 2)
    at_20 += 0.3 * size * (1 - np.exp(-2)) ** 2
    np.testing.assert_allclose(loss(20), at_20)


def test_means_without_one_group_follow_the_mean_of_all():
    groups = np.random.default_rng(0).normal(size=(5, 3))
    result = leave_one_out(groups)
    np.testing.assert_allclose(result[0], groups.mean(axis=0))
    for number in range(5):
        expected = np.delete(groups, number, axis=0).mean(axis=0)
        np.testing.assert_allclose(result[1 + number], expected)
