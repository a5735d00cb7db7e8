"""Conversion of non-negative numbers to probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import validation
from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc._common.conversions import concrete, float_array, gathered


def nonnegative_vector(name: str, value: ArrayLike) -> Array:
    """Converts a vector to floats; raises ValueError unless finite and at least 0.

    Not all numbers may be zero. Values of a traced vector are not checked here, but by
    `normalised`.
    """
    array = gathered(float_array(name, value))
    validation.check_shape(name, array, "(size,)", ("any",))
    values = concrete(value, array.dtype)
    if values is None:
        return array
    is_valid = np.isfinite(values) & (values >= 0)
    validation.check_entries(name, values, is_valid, "finite and not negative")
    # Subnormal numbers count as zero, since many JAX operations flush them to zero.
    if np.all(values < np.finfo(values.dtype).tiny):
        raise ValueError(
            f"{name} must not all be zero in {values.dtype}; got {values.size} zeros"
        )
    return array


def distribution(name: str, value: ArrayLike) -> tuple[Array, Array]:
    """Returns a vector divided by its sum, and whether it was valid.

    An invalid vector raises ValueError, unless it is traced.
    """
    return normalised(nonnegative_vector(name, value))


@jax.jit
def normalised(values: Array) -> tuple[Array, Array]:
    """Returns values divided by their sum, and whether the values are valid.

    Values are valid if they are finite, not negative and not all zero.
    """
    valid = jnp.all(jnp.isfinite(values) & (values >= 0))
    valid &= jnp.any(values >= jnp.finfo(values.dtype).tiny)
    # Values are scaled first, so that the sum of huge values does not overflow.
    scaled = values * inverse_power_of_two(jnp.max(values))
    return scaled / jnp.sum(scaled), valid
