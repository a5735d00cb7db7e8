"""Arguments that break a rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxwgc import stragglers


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
            (
                lambda: stragglers.bernoulli(-0.1),
                "probability must be at least 0; got -0.1",
            ),
            (
                lambda: stragglers.bernoulli(1.5),
                "probability must be at most 1; got 1.5",
            ),
            (
                lambda: stragglers.bernoulli(0.5).init(0),
                "num_workers must be at least 1; got 0",
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
            stragglers.bernoulli(0.5).sample,
            pareto.sample,
            stragglers.delayed(pareto, wait).sample,
            lambda key, _, times: stragglers.fastest(1)(key, times),
        ):
            with pytest.raises(TypeError, match="key must be a PRNG key"):
                sample(key, (), jnp.ones(3))
        with pytest.raises(ValueError, match=r"key must be one key; .* \(2"):
            pareto.sample(jax.random.split(jax.random.key(0)), (), jnp.ones(3))
