"""Powers of two from the bits of numbers."""

import jax
import jax.numpy as jnp


def power_below(numbers: jax.Array) -> jax.Array:
    """The largest power of two that is at most each of some positive, normal numbers.

    `jnp.frexp`, `jnp.log2` and `jnp.ldexp` are large programs to compile.
    """
    precision = jnp.finfo(numbers.dtype)
    bits = jax.lax.bitcast_convert_type(numbers, f"int{precision.bits}")
    bits = (bits >> precision.nmant) << precision.nmant
    return jax.lax.bitcast_convert_type(bits, numbers.dtype)
