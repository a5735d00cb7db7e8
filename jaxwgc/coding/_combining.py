"""Combining messages: the gradient that decoding weights make of them."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product, promoted
from jaxwgc._targets import mixing
from jaxwgc.coding._collapsed import is_mixed_up, leakage

# Messages that are added up before they join the others.
_BLOCK = 8
# What is missed of several parts, or segments of one, is below its bound unless they
# cancel in all messages. Over all patterns of the exact codes of up to 12 workers four
# times the bound are reached, where every worker holds every part.
_MISSES = 8


def floor_weights(
    matrix: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    message_dtype: jax.typing.DTypeLike,
) -> jax.Array | None:
    """Weights of the moduli of messages, whose sum is the rounding of a decoded entry.

    Where halves or segments of a gradient are packed into one message, zeros of one
    decode to what rounding leaves of the other: of the messages and their sum, and of
    the weights, whose aᵀB misses the zeros off the target. A part whose gradient is v
    adds a miss times |v| to the wrong half, and the column of B times |v| to the
    messages, so that the largest ratio of the two bounds the miss of all parts.

    Args:
      matrix: B (num_messages, num_parts * num_segments).
      target: (num_parts,).
      weights: (..., num_segments, num_messages).
      mask: bool (..., num_messages).
      message_dtype: what messages have been rounded to.

    Returns:
      Real (..., num_segments, num_messages), of messages that are not there as well;
      or None where nothing is packed.
    """
    num_segments = weights.shape[-2]
    if num_segments == 1 and not jnp.iscomplexobj(matrix):
        return None
    sizes = jnp.abs(weights.real) + jnp.abs(weights.imag)
    moduli = jnp.abs(matrix)
    columns = product(mask.astype(moduli.dtype), moduli)
    columns = columns.reshape(*mask.shape[:-1], 1, len(target), num_segments)
    leaked = leakage(mixing(matrix, weights))
    ratio = jnp.abs(leaked) / jnp.where(columns > 0, columns, jnp.inf)
    miss = jnp.max(ratio, axis=(-2, -1))
    # More than rounding stays in the result.
    miss = jnp.where(is_mixed_up(leaked, target)[..., None], 0, miss)
    computed = jnp.promote_types(message_dtype, jnp.float32)
    eps = max(jnp.finfo(dtype).eps for dtype in (weights.dtype, computed))
    # In a sum of many, roundings cancel; where there are few messages, parts may cancel
    # in all of them. Over all patterns of the exact codes of up to 12 workers ten
    # roundings of each message are reached, with 50 to 200 workers less than one.
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None]
    # On their way messages are rounded once, and by half an eps at most.
    eps = (2 + 144 / count) * eps + jnp.finfo(message_dtype).eps / 2
    return _MISSES * miss[..., None] + (eps * sizes).astype(sizes.dtype)


def combine(
    weights: jax.Array, floors: jax.Array | None, messages: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns the sum over the received messages i of aᵢ messageᵢ, without rounding.

    Args:
      weights: decoding weights a (..., num_segments, num_messages).
      floors: as from `floor_weights`, of the same shape.
      messages: (..., num_messages, length); those not received may hold anything.
      mask: bool (..., num_messages), the messages that were received.

    Returns:
      Real (..., count * length), the raveled gradient, filled up with zeros; count is
      num_segments, and twice that for complex messages.
    """
    return _combine(weights, floors, promoted(messages), mask)


@jax.jit
def _combine(weights, floors, messages, mask):
    weights = weights.astype(messages.dtype)
    num_segments, number = weights.shape[-2:]
    batch = jnp.broadcast_shapes(
        weights.shape[:-2], messages.shape[:-2], mask.shape[:-1]
    )
    zeros = jnp.zeros((*batch, num_segments, messages.shape[-1]), messages.dtype)

    def add(index, sums):
        rows, bounds = sums
        message = jnp.where(mask[..., index, None], messages[..., index, :], 0)
        message = message[..., None, :]
        rows = rows + weights[..., index, None] * message
        if floors is not None:
            size = jnp.abs(message.real) + jnp.abs(message.imag)
            bounds = bounds + floors[..., index, None] * size
        return rows, bounds

    def sum_block(start, size):
        sums = zeros, None if floors is None else zeros.real
        for index in range(size):
            sums = add(start + index, sums)
        return sums

    def add_block(block, sums):
        block_sums = sum_block(first_size + block * _BLOCK, _BLOCK)
        return jax.tree.map(jnp.add, sums, block_sums)

    # One pass over the messages. A matrix product would first make a copy of them, for
    # the selection, which takes several times as long as the product itself. In blocks,
    # whose sums are rounded less than one long sum would be. From the first block on,
    # since under shard_map zeros would not vary as messages do.
    num_blocks = (number - 1) // _BLOCK
    first_size = number - num_blocks * _BLOCK
    first = sum_block(0, first_size)
    rows, bounds = jax.lax.fori_loop(0, num_blocks, add_block, first)
    if jnp.iscomplexobj(rows):
        rows = jnp.stack([rows.real, rows.imag], axis=-2)
        bounds = None if bounds is None else bounds[..., None, :]
    if bounds is not None:
        is_rounding = (jnp.abs(rows) <= bounds) & jnp.isfinite(bounds)
        rows = jnp.where(is_rounding, 0, rows)
    return rows.reshape(*batch, math.prod(rows.shape[len(batch) :]))
