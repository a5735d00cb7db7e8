"""Loads and times of every kind, and those that are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import codes, stragglers, studies

KEY, PARETO = jax.random.key(0), stragglers.pareto(1.0, 2.0)
MODELS = {
    "uniform": stragglers.uniform(1),
    "bernoulli": stragglers.bernoulli(0.5),
    "adversarial": studies.adversarial(codes.fractional_repetition(4, 1), 1),
    "pareto": PARETO,
    "delayed": stragglers.delayed(PARETO, stragglers.fastest(2)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_lists_and_ints_are_arrays(model):
    expected = jax.tree.leaves(model.sample(KEY, (), jnp.array([2.0, 1, 0, 3])))
    for loads in ([2, 1, 0, 3], np.array([2, 1, 0, 3], np.int8)):
        drawn = jax.tree.leaves(model.sample(KEY, (), loads))
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)


@pytest.mark.parametrize("wait", [stragglers.fastest(2), stragglers.deadline(1.0)])
def test_infinite_times(wait):
    arrivals = wait.arrivals(KEY, [0.5, np.inf, 2.0, 0.1])
    np.testing.assert_array_equal(arrivals.received, [True, False, False, True])


@pytest.mark.parametrize("load", [-1.0, np.nan, np.inf])
def test_traced_loads_that_are_none_show(load):
    """As a time that is no number; such a worker is not received."""

    @jax.jit
    def rounds(loads):
        waits = stragglers.fastest(4), stragglers.deadline(1e6)
        models = [stragglers.delayed(PARETO, wait) for wait in waits]
        return [model.sample(KEY, (), loads)[0] for model in models]

    for arrivals in rounds(np.array([1.0, load, 1.0, 1.0])):
        assert np.isnan(arrivals.times[1]) and np.isnan(arrivals.elapsed)
        assert not arrivals.received[1]


def test_waiting_rules_without_an_end():
    wait = type("Made", (stragglers.WaitingRule,), {})()
    with pytest.raises(NotImplementedError, match="wait must define is_over"):
        jax.jit(stragglers.delayed(PARETO, wait).sample)(KEY, (), np.ones(4))
