"""Matrix products that do not round their operands."""

import jax
import jax.numpy as jnp


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product in full precision.

    GPUs and TPUs round float32 operands to TF32 or bfloat16 unless asked not to, and
    decoding would amplify that.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
