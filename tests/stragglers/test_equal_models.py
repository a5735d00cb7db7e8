"""Equal arguments give equal models, so that nothing is compiled anew for them."""

import jax
import numpy as np
import pytest

from jaxwgc import codes, decoders, stragglers

CODE = codes.reed_solomon(5, 5, 3)
MAKERS = {
    "uniform": lambda: stragglers.uniform(num_stragglers=2),
    "bernoulli": lambda: stragglers.bernoulli(np.array(0.25)),
    "bernoulli, unequal": lambda: stragglers.bernoulli(np.array([0.25, 1])),
    "combined": lambda: stragglers.markov(
        stragglers.affine(stragglers.pareto(1, shape=2), 1.0),
        stragglers.unequal_speeds(stragglers.weibull(1, 2), np.array([1.0, 2.0])),
        0.1,
        0.2,
    ),
    "until_decodable": lambda: stragglers.until_decodable(CODE, 0.1, decoders.Lagrange),
    "delayed": lambda: stragglers.delayed(
        stragglers.pareto(1.0, 2.0), stragglers.fastest(np.int32(3))
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal(make):
    assert make() == make() and hash(make()) == hash(make())
    assert make() != stragglers.uniform(1)


def test_rule_whose_decoder_holds_arrays():
    times = np.array([3.0, 1.0, np.inf, 2.0, np.inf])
    assert MAKERS["until_decodable"]().ends(times) == 3


def test_one_program_serves_both():
    traced = []

    def sample(model, key):
        traced.append(model)
        return model.sample(key, (), np.ones(5))[0].elapsed

    compiled = jax.jit(sample, static_argnums=0)
    for _ in range(2):
        compiled(MAKERS["delayed"](), jax.random.key(0))
    assert len(traced) == 1


class TestFixed:
    model = stragglers.fixed(np.array([True, False, True]))

    def test_every_round(self):
        loads = np.array([1.0, 2.0, 3.0])
        arrivals, _ = self.model.sample(jax.random.key(1), self.model.init(3), loads)
        np.testing.assert_array_equal(arrivals.received, [True, False, True])
        np.testing.assert_array_equal(arrivals.times, [1, np.inf, 1])
        assert arrivals.elapsed == 1
