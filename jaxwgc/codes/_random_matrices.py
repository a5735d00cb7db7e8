"""Random zero-one matrices, where a key means the same one in every precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import Array

_LARGEST = np.uint32(2**32 - 1)


# Jitted so that calls outside of jit compile once a shape, not once an operation.
@functools.partial(jax.jit, static_argnames="shape")
def bernoulli_matrix(
    key: jax.Array, shape: tuple[int, ...], probability: jax.typing.ArrayLike
) -> jax.Array:
    """Independent bools, True with `probability`, which is broadcast to `shape`."""
    # In float32 whatever the precision setting, so that a key means one code.
    draws = jax.random.uniform(key, shape, jnp.float32)
    return draws < jnp.asarray(probability, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape")
def random_subsets(
    key: jax.Array,
    sizes: jax.typing.ArrayLike,
    shape: tuple[int, ...],
    eligible: jax.Array | None = None,
) -> jax.Array:
    """Row i marks `sizes[i]` items out of all, or out of those eligible in that row.

    Uniformly at random without replacement. `sizes` is broadcast to the rows, and is
    not more than the number of eligible items.
    """
    draws = jax.random.bits(key, shape, jnp.uint32)
    if eligible is not None:
        draws = jnp.where(eligible, draws // 2, _LARGEST)
    sizes = jnp.broadcast_to(jnp.asarray(sizes, jnp.int32), shape[:1])[:, None]
    # Sorting values alone is several times faster than ranking them by argsort.
    last = jnp.take_along_axis(draws.sort(axis=-1), jnp.maximum(sizes - 1, 0), axis=-1)
    smaller = draws < last
    # Of items with equal draws, the first ones: exactly `sizes` items in all.
    tied = draws == last
    missing = sizes - smaller.sum(axis=-1, keepdims=True)
    return smaller | (tied & (tied.cumsum(axis=-1) <= missing))


def known(values: jax.Array) -> Array:
    """A NumPy array where the values are known, the tracer where they are not."""
    return values if _validation.is_traced(values) else np.asarray(values)


def zeros_and_ones(assignment: Array) -> Array:
    """The matrix of an assignment, float64 on the host or in JAX's precision."""
    if _validation.is_traced(assignment):
        return assignment.astype(jnp.result_type(float))
    return np.asarray(assignment, np.float64)
