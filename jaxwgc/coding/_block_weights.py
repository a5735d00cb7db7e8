"""Weights of blocks: aᵀB in real form, its distance from the target, and its leaks.

A block is a segment of the gradient, or half of a segment if messages are complex. In
terms of blocks every code is real. A code with one segment and real messages has one
block.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._common.arrays import Array, product, scale_of, squares
from jaxwgc.coding import _flat_vectors
from jaxwgc.decoders import DECODES

# Bound of leakage that is dropped as rounding, in machine epsilons of the weight of a
# part. Leakage is dropped if no part exceeds the bound. More leakage also occurs in
# rounds that decode.
_ROUNDED_LEAKAGE = 100


class Measured(NamedTuple):
    """aᵀB, and what follows from it: see the attributes of `Decoding`."""

    block_weights: jax.Array
    effective_weights: jax.Array
    residual: jax.Array
    relative_residual: jax.Array
    share: jax.Array


@jax.jit
def measure(
    weights: jax.Array, mask: jax.Array, matrix: jax.Array, target: jax.Array
) -> Measured:
    """Computes aᵀB in real form, and its distance from the target.

    Args:
      weights: Decoding weights a, (..., num_segments, num_messages).
      mask: Which messages arrived, bool (..., num_messages).
      matrix: B, (num_messages, num_parts * num_segments).
      target: (num_parts,).
    """
    mixed = product(jnp.where(mask[..., None, :], weights, 0), matrix)
    *batch, num_blocks, num_columns = mixed.shape
    num_parts = num_columns // num_blocks
    if jnp.iscomplexobj(mixed):
        mixed = _flat_vectors.real_form(mixed)
        num_blocks = 2 * num_blocks
    blocks = mixed.reshape(*batch, num_blocks, num_parts, num_blocks)
    is_own_block = jnp.eye(num_blocks, dtype=bool)[:, None, :]
    effective = jnp.where(is_own_block, blocks, 0).sum(axis=(-3, -1)) / num_blocks
    # The scale keeps squares of tiny entries from underflow.
    scale = jax.lax.stop_gradient(scale_of(target))
    target = target / scale
    squared_norm = jnp.sum(squares(target))
    squared_norm = jnp.where(squared_norm > 0, squared_norm, 1)
    error = squared_error(blocks / scale, target)
    # The square root has an infinite derivative at zero.
    root = jnp.sqrt(jnp.where(error > 0, error, 1))
    distance = jnp.where(error > 0, root, error)
    return Measured(
        block_weights=blocks,
        effective_weights=effective,
        residual=distance * scale,
        relative_residual=distance / jnp.sqrt(squared_norm),
        share=product(effective / scale, target) / squared_norm,
    )


@jax.jit
def squared_error(blocks: jax.Array, target: Array) -> jax.Array:
    """Returns the squared norm of aᵀB - target, averaged over blocks, (...)."""
    num_blocks = blocks.shape[-1]
    residual = blocks - unmixed(jnp.asarray(target), num_blocks)
    return jnp.sum(squares(residual), axis=(-3, -2, -1)) / num_blocks


def unmixed(weights: jax.Array, num_blocks: int) -> jax.Array:
    """Returns block weights that are equal in all blocks, and zero between them."""
    is_own_block = jnp.eye(num_blocks, dtype=bool)[:, None, :]
    return jnp.where(is_own_block, weights[..., None, :, None], 0)


class Leaks(NamedTuple):
    """Leaks between the blocks of a gradient.

    Attributes:
      weights: Block weights minus effective weights, (..., num_blocks, num_parts,
        num_blocks).
      is_lossy: Whether the round loses more than rounding, bool (...). False for every
        round that decodes. Each part is also compared with its own weight.
      is_mixed: Whether leaks exceed rounding, bool (...), also in a round that decodes
        with a residual.
    """

    weights: jax.Array
    is_lossy: jax.Array
    is_mixed: jax.Array


@jax.jit
def leaks_of(
    block_weights: jax.Array,
    effective_weights: jax.Array,
    relative_residual: jax.Array,
    target: Array,
) -> Leaks:
    """Returns the leaks between the blocks of a gradient."""
    leaks = block_weights - unmixed(effective_weights, block_weights.shape[-1])
    size = jnp.max(jnp.abs(leaks), axis=(-3, -1))
    allowed = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    is_lossy = ~(relative_residual <= DECODES) | jnp.any(size > allowed, axis=-1)
    rounding = _ROUNDED_LEAKAGE * jnp.finfo(leaks.dtype).eps * jnp.abs(target)
    is_mixed = is_lossy | jnp.any(size > rounding, axis=-1)
    return Leaks(weights=leaks, is_lossy=is_lossy, is_mixed=is_mixed)
