"""Powers of two, which scale without rounding."""

import jax
import jax.numpy as jnp


def inverse_power_of_two(values: jax.Array) -> jax.Array:
    """The power of two nearest to 1 / values; 1 for a zero."""
    # The exponent stays clear of the ends of the range, where powers are subnormal and
    # would be flushed to zero.
    bound = jnp.finfo(values.dtype).maxexp - 28
    safe = jnp.where(values > 0, values, 1)
    exponent = jnp.clip(jnp.round(jnp.log2(safe)), -bound, bound).astype(jnp.int32)
    return jnp.ldexp(jnp.ones_like(values), -exponent)


def next_power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
