"""Codes, losses and partial gradients that the tests of the aggregator share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxwgc
from jaxwgc import stragglers

# Decoded by whole groups: any other decoder is most of a program's compilation.
GROUPS = jaxwgc.codes.binary(6, num_stragglers=2)
METHODS = ("partials", "messages")
every_method = pytest.mark.parametrize("method", METHODS)


def squared_loss(params, part):
    x, y = part
    return jnp.sum((x @ params["w"] + params["b"] - y) ** 2) / 2


def regression(num_parts, dtype=np.float64):
    """Parameters in two leaves, 5 in all, and parts of 4 rows."""
    draw = np.random.default_rng(0).normal
    params = {"w": np.ones((4), dtype), "b": np.zeros((), dtype)}
    parts = draw(size=(num_parts, 4, 4)), draw(size=(num_parts, 4))
    return params, jax.tree.map(lambda leaf: leaf.astype(dtype), parts)


def aggregate(code, key=None, lost=None, **options):
    """A coded_aggregate with uniform stragglers."""
    model = stragglers.uniform(code.num_stragglers if lost is None else lost)
    key = jax.random.key(0) if key is None else key
    return jaxwgc.coded_aggregate(code, model, key, **options)


def data_of_key(key):
    return (
        jax.random.key_data(key)
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        else key
    )


def comparable(state):
    """A state whose typed key is its bits, as array comparisons need."""
    return jax.tree.map(data_of_key, state)


def train(optimizer, params, parts, num_steps, gradient_of=None):
    """A whole training as one lax.scan: parameters after every step, last state."""

    def step(carry, _):
        params, state = carry
        if gradient_of is None:
            gradients = jaxwgc.partial_value_and_grad(squared_loss)(params, parts)[1]
        else:
            gradients = gradient_of(params, parts)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = params, optimizer.init(params)
    (_, state), trajectory = jax.lax.scan(step, start, None, num_steps)
    return trajectory, state


def full_gradient(params, parts, weights=None):
    """jax.grad of the plain loss over all rows, no parts and no code."""

    def loss(params):
        x, y = parts
        miss = (x @ params["w"] + params["b"] - y) ** 2 / 2
        return jnp.sum(miss if weights is None else miss * weights[:, None])

    return jax.grad(loss)(params)


@jax.jit
def plain_adam(params, parts, weights):
    """Twelve steps on the whole gradient, compiled once for problems of one size."""
    return train(
        optax.adam(0.1), params, parts, 12, lambda *own: full_gradient(*own, weights)
    )[0]
