"""Contributions, which workers import without the tests."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxwgc

NUM_LOCAL_STEPS = 4
# Value of the first entry of params at which part 2 is not finite, and at which its
# computation raises.
NOT_FINITE = 1e6
RAISES = 1e9


def draw(key, part):
    return jax.random.choice(key, part, (6,), replace=False)


def squared_error(params, rows):
    return jnp.mean((rows[:, :-1] @ params["w"] - rows[:, -1]) ** 2)


# The key draws the rows of each step.
drawn_steps = jaxwgc.local_steps(
    squared_error,
    optax.sgd(0.05, momentum=0.9),
    NUM_LOCAL_STEPS,
    batch=draw,
    returns_losses=True,
)


def _fail_if(is_due):
    if is_due:
        raise ArithmeticError("as told")
    return np.float32(0)


def faulty(params, part):
    """The sum of the rows of a part, unless params say otherwise."""
    first = params["w"][0]
    is_second = part["index"] == 2
    zero = jax.pure_callback(
        _fail_if,
        jax.ShapeDtypeStruct((), np.float32),
        is_second & (first == RAISES),
    )
    total = part["rows"].sum(0) + zero
    return {"w": jnp.where(is_second & (first == NOT_FINITE), jnp.nan, total)}


def of_process(params, part):
    """Depends on the process, which no contribution may."""
    noise = np.random.default_rng(os.getpid()).normal(size=2).astype(np.float32)
    return {"w": part["rows"].sum(0) * noise}


def shape_of_process(params, part):
    """Has another shape on the process of worker 1."""
    size = 3 if os.environ.get("JAXWGC_TEST_SHAPE") else 2
    return {"w": jnp.zeros(size)}
