"""Segments and scale of the decoding target, and residuals of decoding."""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxwgc._arrays import array_module, product, squares, working

Array: TypeAlias = jax.Array | np.ndarray

# Largest residual, relative to the norm of the target, with which a round counts as
# decoded.
DECODES = 1e-3


def segment_target(target: Any, num_segments: int) -> Any:
    """Returns the target of aᵀB, (num_segments, num_parts * num_segments).

    A NumPy target gives a NumPy array.
    """
    xp = array_module(target)
    return xp.kron(target, xp.eye(num_segments, dtype=target.dtype))


def target_scale(target: Array) -> jax.Array:
    """Returns the largest absolute entry, or 1 if all entries are zero.

    The target is divided by this scale, because squares of tiny entries would
    underflow.
    """
    largest = jnp.max(jnp.abs(target))
    return jnp.where(largest > 0, largest, 1)


def rounding(dtype: jax.typing.DTypeLike) -> float:
    """Returns the relative residual that is attributed to rounding.

    In float32 it is a tenth of `DECODES`.
    """
    return {32: 1e-4, 64: 1e-10}[jnp.finfo(dtype).bits]


@jax.jit
def mixing(matrix: Array, weights: jax.Array) -> jax.Array:
    """Returns aᵀB, (..., num_segments, num_parts, num_segments).

    Entry (u, j, v) is the weight of segment v of part j in segment u of the decoded
    gradient.
    """
    mixed = product(weights, working(matrix))
    *batch, num_segments, num_columns = mixed.shape
    num_parts = num_columns // num_segments
    return mixed.reshape(*batch, num_segments, num_parts, num_segments)


@jax.jit
def effective(mixed: jax.Array) -> jax.Array:
    """Returns the effective weight of each partial gradient, real (..., num_parts).

    This is the mean over the segments, which have different weights.
    """
    return jnp.diagonal(mixed.real, axis1=-3, axis2=-1).mean(-1)


@jax.jit
def squared_error(
    mixed: jax.Array, target: Array, scale: jax.typing.ArrayLike = 1
) -> jax.Array:
    """Returns the squared norm of (aᵀB - target) / scale, averaged over segments.

    The result is real (...), the target (num_parts,).
    """
    num_segments = mixed.shape[-1]
    segments = segment_target(working(target), num_segments)
    residual = (mixed - segments.reshape(mixed.shape[-3:])) / scale
    return jnp.sum(squares(residual), axis=(-3, -2, -1)) / num_segments


@jax.jit
def residual(
    mixed: jax.Array, target: Array, tolerance: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns the norm of aᵀB - target, and whether it exceeds `tolerance`.

    The tolerance is relative to the norm of the target, (num_parts,). Both results
    are (...).
    """
    target = working(target)
    scale = stop_gradient(target_scale(target))
    relative = jnp.sqrt(squared_error(mixed, target, scale))
    return relative * scale, ~(relative <= tolerance * jnp.linalg.norm(target / scale))
