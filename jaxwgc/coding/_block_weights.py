"""Weights of blocks: aᵀB in real form, and its distance from the target.

A block is a segment of the gradient, or half of a segment if messages are complex. In
terms of blocks every code is real. A code with one segment and real messages has one
block.
"""

import math

import jax
import jax.numpy as jnp

from jaxwgc import _flat_vectors
from jaxwgc._arrays import product, squares, working
from jaxwgc._targets import DECODES, Array, target_scale


@jax.jit
def block_weights(weights: jax.Array, matrix: Array) -> jax.Array:
    """Returns the weights of blocks of parts in blocks of the decoded gradient.

    Args:
      weights: Decoding weights a, (..., num_segments, num_messages).
      matrix: B, (num_messages, num_parts * num_segments).

    Returns:
      Real (..., num_blocks, num_parts, num_blocks). Entry (p, j, q) is the weight of
      block q of part j in block p.
    """
    mixed = product(weights, working(matrix))
    *batch, num_blocks, num_columns = mixed.shape
    num_parts = num_columns // num_blocks
    if jnp.iscomplexobj(mixed):
        mixed = _flat_vectors.real_form(mixed)
        num_blocks = 2 * num_blocks
    return mixed.reshape(*batch, num_blocks, num_parts, num_blocks)


@jax.jit
def effective(blocks: jax.Array) -> jax.Array:
    """Returns the effective weight of each part, (..., num_parts).

    This is the mean over the blocks of the gradient.
    """
    return jnp.diagonal(blocks, axis1=-3, axis2=-1).mean(-1)


def unmixed(weights: jax.Array, num_blocks: int) -> jax.Array:
    """Returns block weights that are equal in all blocks, and zero between them."""
    identity = jnp.eye(num_blocks, dtype=weights.dtype)
    return weights[..., None, :, None] * identity[:, None, :]


def leakage(blocks: jax.Array) -> jax.Array:
    """Returns block weights minus the effective weights."""
    return blocks - unmixed(effective(blocks), blocks.shape[-1])


@jax.jit
def squared_error(
    blocks: jax.Array, target: Array, scale: jax.typing.ArrayLike = 1
) -> jax.Array:
    """Returns the squared norm of (aᵀB - target) / scale, averaged over blocks.

    The result is (...), the target (num_parts,).
    """
    num_blocks = blocks.shape[-1]
    residual = (blocks - unmixed(jnp.asarray(target), num_blocks)) / scale
    return jnp.sum(squares(residual), axis=(-3, -2, -1)) / num_blocks


@jax.jit
def residual(
    blocks: jax.Array, target: Array, tolerance: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Returns the norm of aᵀB - target, and whether it exceeds `tolerance`.

    The tolerance is relative to the norm of the target. Both results are (...).
    """
    scale = jax.lax.stop_gradient(target_scale(target))
    relative = jnp.sqrt(squared_error(blocks, target, scale))
    return relative * scale, ~(relative <= tolerance * jnp.linalg.norm(target / scale))


@jax.jit
def is_lossy(blocks: jax.Array, target: Array) -> jax.Array:
    """Returns whether a round loses more than rounding, bool (...).

    False for every round that decodes. Each part is also compared with its own weight.
    """
    _, failed = residual(blocks, target, DECODES)
    most = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    leaks = jnp.abs(leakage(blocks)) > most[:, None]
    return failed | jnp.any(leaks, axis=(-3, -2, -1))
