"""Simulated rounds and times, and the level at which a law is rejected."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import stragglers

# Samples are drawn with fixed keys; a law is rejected below this p-value.
SIGNIFICANCE = 1e-3


def rounds_of(model, loads, number, make_key=jax.random.key):
    """Arrivals of that many independent rounds, leaves (number, ...)."""
    loads = jnp.asarray(loads, float)
    state = model.init(len(loads))
    sample = jax.jit(jax.vmap(lambda key: model.sample(key, state, loads)[0]))
    return jax.tree.map(np.asarray, sample(jax.random.split(make_key(0), number)))


def binary(masks):
    """Each mask as a number."""
    return masks @ (1 << np.arange(masks.shape[1]))


def consecutive_times(delay, loads, number, seed=0):
    """Times (number, workers) of rounds that follow each other."""
    keys = jax.random.split(jax.random.key(seed), number)
    return np.asarray(_simulated(delay, np.asarray(loads, float), keys))


@functools.partial(jax.jit, static_argnums=0)
def _simulated(delay, loads, keys):

    def step(state, key):
        times, state = delay.sample(key, state, loads)
        return state, times

    return jax.lax.scan(step, delay.init(len(loads)), keys)[1]


def simulated(law, shape, seed=0):
    """Times drawn from a distribution of SciPy."""
    return law.rvs(shape, random_state=np.random.default_rng(seed))


@dataclasses.dataclass(frozen=True)
class numerical_weibull(stragglers.IndependentDelay):
    """Weibull times without a closed form of the estimates."""

    scale: float
    shape: float
    rules = stragglers.weibull.rules

    draw = stragglers.weibull.draw
    logpdf = stragglers.weibull.logpdf
    logsf = stragglers.weibull.logsf
    isf = stragglers.weibull.isf


@dataclasses.dataclass(frozen=True)
class exponential(stragglers.IndependentDelay):
    """Exponential times, without a density."""

    scale: float
    rules = {"scale": {"positive": True}}

    def draw(self, key, shape):
        return self.scale * jax.random.exponential(key, shape)

    def logsf(self, x):
        return -x / self.scale

    def isf(self, q):
        return -self.scale * np.log(q)
