"""Random zero-one matrices that do not depend on the precision setting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.codes._gradient_code import Array

_LARGEST = np.uint32(2**32 - 1)


# Jitted so that calls outside of jit compile once per shape, not once per operation.
@functools.partial(jax.jit, static_argnames="shape")
def bernoulli_matrix(
    key: jax.Array, shape: tuple[int, ...], probability: jax.typing.ArrayLike
) -> jax.Array:
    """Draws independent bools, True with `probability`, broadcast to `shape`."""
    # In float32, so that a key gives the same code in every precision.
    draws = jax.random.uniform(key, shape, jnp.float32)
    return draws < jnp.asarray(probability, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape")
def random_subsets(
    key: jax.Array,
    sizes: jax.typing.ArrayLike,
    shape: tuple[int, ...],
    eligible: jax.Array | None = None,
) -> jax.Array:
    """Draws a subset per row: `sizes[i]` items of all, or of those eligible in the row.

    Subsets are drawn uniformly without replacement. `sizes` is broadcast to the rows,
    and is at most the number of eligible items.
    """
    draws = jax.random.bits(key, shape, jnp.uint32)
    if eligible is not None:
        draws = jnp.where(eligible, draws // 2, _LARGEST)
    sizes = jnp.broadcast_to(jnp.asarray(sizes, jnp.int32), shape[:1])[:, None]
    # Sorting the values is several times faster than ranking by argsort.
    last = jnp.take_along_axis(draws.sort(axis=-1), jnp.maximum(sizes - 1, 0), axis=-1)
    smaller = draws < last
    # The first of equal draws are taken, so that there are exactly `sizes` items.
    tied = draws == last
    missing = sizes - smaller.sum(axis=-1, keepdims=True)
    return smaller | (tied & (tied.cumsum(axis=-1) <= missing))


def known(values: jax.Array) -> Array:
    """Returns a NumPy array if the values are known, otherwise the tracer."""
    return values if _validation.is_traced(values) else np.asarray(values)


def zeros_and_ones(assignment: Array) -> Array:
    """Returns an assignment as a matrix, float64 on the host or in JAX's precision."""
    if _validation.is_traced(assignment):
        return assignment.astype(jnp.result_type(float))
    return np.asarray(assignment, np.float64)
