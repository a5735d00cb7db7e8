"""The target of decoding: its segments, its scale, and what misses it by rounding."""

import jax
import jax.numpy as jnp


def segment_target(target: jax.Array, num_segments: int) -> jax.Array:
    """What aᵀB should be, (num_segments, num_parts * num_segments)."""
    if num_segments == 1:
        return target[None]
    each = target[:, None] * jnp.eye(num_segments, dtype=target.dtype)[:, None, :]
    return each.reshape(num_segments, -1)


def target_scale(target: jax.Array) -> jax.Array:
    """The largest entry, or one where all are zero: squares of tiny ones underflow."""
    largest = jnp.max(jnp.abs(target))
    return jnp.where(largest > 0, largest, 1)


def rounding(dtype: jax.typing.DTypeLike) -> float:
    """The share of the target below which a miss is rounding."""
    return {32: 1e-5, 64: 1e-10}[jnp.finfo(dtype).bits]
