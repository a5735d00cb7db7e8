"""The target of decoding: its segments, its scale, and by how much it is missed."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxwgc._dtypes import working
from jaxwgc._product import product

# A round decodes where aᵀB misses the target by no more than this share of its norm.
DECODES = 1e-3


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


def mixing(code: Any, weights: jax.Array) -> jax.Array:
    """aᵀB, complex for a complex code: (..., num_segments, num_parts, num_segments).

    Entry (u, j, v) is the share of segment v of part j in segment u of the decoded
    gradient.
    """
    mixed = product(weights, working(code.encoding_matrix))
    return mixed.reshape(*mixed.shape[:-1], code.num_parts, code.num_segments)


def squared_error(
    code: Any, mixing: jax.Array, scale: jax.typing.ArrayLike = 1
) -> jax.Array:
    """The squared norm of (aᵀB - target) / scale, real (...).

    The mean over the segments.
    """
    num_segments = code.num_segments
    target = segment_target(working(code.target), num_segments)
    miss = (mixing - target.reshape(mixing.shape[-3:])) / scale
    return jnp.sum(miss.real**2 + miss.imag**2, axis=(-3, -2, -1)) / num_segments


def residual(
    code: Any, mixing: jax.Array, tolerance: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The norm of aᵀB - target, and whether it is above that share of the target's.

    Both (...).
    """
    target = working(code.target)
    scale = stop_gradient(target_scale(target))
    miss = jnp.sqrt(squared_error(code, mixing, scale))
    return miss * scale, ~(miss <= tolerance * jnp.linalg.norm(target / scale))
