"""Powers of two, which scale without rounding."""

import jax
import jax.numpy as jnp

from jaxwgc._arrays import power_below


def inverse_power_of_two(values: jax.Array) -> jax.Array:
    """Returns the power of two nearest to 1 / values; 1 for a zero."""
    # The exponent stays clear of the ends of the range, where powers are subnormal and
    # would be flushed to zero.
    bound = 2.0 ** (jnp.finfo(values.dtype).maxexp - 28)
    safe = jnp.clip(jnp.where(values > 0, values, 1), 1 / bound, bound)
    return 1 / power_below(safe * 2**0.5)


def next_power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
