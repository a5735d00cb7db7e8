"""Segments that a gradient is cut into."""

import jax
import jax.numpy as jnp


def segment_target(target: jax.Array, num_segments: int) -> jax.Array:
    """What a^T B should be, (num_segments, num_parts * num_segments)."""
    if num_segments == 1:
        return target[None]
    each = target[:, None] * jnp.eye(num_segments, dtype=target.dtype)[:, None, :]
    return each.reshape(num_segments, -1)
