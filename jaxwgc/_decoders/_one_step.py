"""One-step decoding: every answer counts the same."""

import jax
import jax.numpy as jnp


def one_step(received: jax.Array, scale: float, shared: bool) -> jax.Array:
    """Weights scale / r at the r answers, or scale itself.

    Args:
      received: bool (..., num_workers).
      scale: what the weights add up to, or each weight.
      shared: whether the answers share `scale`.

    Returns:
      (..., 1, num_workers) in JAX's default precision.
    """
    weight = jnp.asarray(scale, jnp.result_type(float))
    if shared:
        weight = weight / jnp.maximum(received.sum(-1, keepdims=True), 1)
    return jnp.where(received, weight, 0)[..., None, :]
