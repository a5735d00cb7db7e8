"""Equal arguments give one model, so that nothing is compiled anew for it."""

import jax
import numpy as np
import pytest

from jaxwgc import stragglers

MAKERS = {
    "uniform": lambda: stragglers.uniform(2),
    "bernoulli": lambda: stragglers.bernoulli(0.25),
    "shifted_exponential": lambda: stragglers.shifted_exponential(1.0, 2.0),
    "pareto": lambda: stragglers.pareto(1.0, shape=2.0),
    "bernoulli_slowdown": lambda: stragglers.bernoulli_slowdown(0.1, 5.0),
    "fastest": lambda: stragglers.fastest(3),
    "deadline": lambda: stragglers.deadline(2.0),
    "delayed": lambda: stragglers.delayed(
        stragglers.pareto(1.0, 2.0), stragglers.fastest(3)
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_again(make):
    assert make() is make()


def test_by_name_or_by_place():
    assert stragglers.uniform(2) is stragglers.uniform(num_stragglers=2)
    assert stragglers.uniform(2) is not stragglers.uniform(3)


def test_numbers_that_compare_as_equal_are_not_the_same():
    """True equals 1, and is no number of stragglers."""
    stragglers.uniform(1)
    with pytest.raises(TypeError, match="num_stragglers must be an int; got True"):
        stragglers.uniform(True)


def test_arrays_and_tracers_are_not_kept():
    assert stragglers.bernoulli(np.array(0.5)) is not stragglers.bernoulli(
        np.array(0.5)
    )

    def answers(probability):
        model = stragglers.bernoulli(probability)
        return model.sample(jax.random.key(0), (), np.ones(4))[0].received

    for _ in range(2):
        jax.vmap(answers)(np.array([0.1, 0.9]))


class TestFixed:
    model = stragglers.fixed(np.array([True, False, True]))

    def test_every_round(self):
        loads = np.array([1.0, 2.0, 3.0])
        arrivals, _ = self.model.sample(jax.random.key(1), self.model.init(3), loads)
        np.testing.assert_array_equal(arrivals.received, [True, False, True])
        np.testing.assert_array_equal(arrivals.finished, [1, 0, 3])
        np.testing.assert_array_equal(arrivals.times, [1, np.inf, 1])
        assert arrivals.elapsed == 1

    def test_bad_input(self):
        with pytest.raises(TypeError, match="received must be bools; got int"):
            stragglers.fixed(np.ones(3, int))
        with pytest.raises(ValueError, match=r"received must have shape \(num_workers"):
            stragglers.fixed(np.ones((2, 3), bool))
        with pytest.raises(ValueError, match="num_workers must be that of received"):
            self.model.init(4)
