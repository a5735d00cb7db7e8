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
    """Converts non-negative numbers to a float array.

    Values of a traced array are not checked here. See `normalised`.
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
            f"{name} must not all be zero (as {values.dtype}); got {values.size} zeros"
        )
    return array


def distribution(name: str, value: ArrayLike) -> tuple[Array, Array]:
    """Normalises a vector, and tests whether it is valid if traced."""
    return normalised(nonnegative_vector(name, value))


@jax.jit
def normalised(values: Array) -> tuple[Array, Array]:
    """Divides values by their sum, and tests whether they are probabilities.

    They are valid if they are finite, not negative and not all zero.
    """
    valid = jnp.all(jnp.isfinite(values) & (values >= 0))
    valid &= jnp.any(values >= jnp.finfo(values.dtype).tiny)
    # Values are scaled first, so that the sum of huge values does not overflow.
    scaled = values * inverse_power_of_two(jnp.max(values))
    return scaled / jnp.sum(scaled), valid
