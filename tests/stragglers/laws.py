"""Rounds in numbers, and the level at which a law is rejected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

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
