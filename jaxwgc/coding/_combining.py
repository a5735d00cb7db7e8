"""Weighted sums of messages with decoding weights."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import product, promoted, squares
from jaxwgc._targets import mixing
from jaxwgc.coding._collapsed import leakage, leaks

# Number of messages summed in a block, before the sum is added to the total.
_BLOCK = 8
# Bounds of leaks, relative to their root mean square. Over all patterns of the exact
# codes of up to 7 workers, residuals reach 3; rounding reaches 8 for two messages and 4
# for six. The rounding error of many messages is normal: 6 is nine standard deviations.
_LEAKS, _LEAKS_OF_FEW = 6, 24
# Bound of the rounding of sent messages in machine epsilons: seven standard deviations.
_ROUNDED_MESSAGES = 2


def floor_weights(
    matrix: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    message_dtype: jax.typing.DTypeLike,
) -> jax.Array | None:
    """Computes the weight of each message in the bound of rounding errors.

    A complex code packs two halves of a gradient into one message, and a code with
    segments several segments. Entries that are zero in one of them decode to leaks from
    the others: rounding errors of messages and weights, and the residual.

    Leaks of different messages add up like independent numbers. The bound of an entry
    is therefore the root of the sum over messages of (weight * size)². A part with
    gradient v leaks its residual times |v|, and adds the norm of its column of B times
    |v| to the messages. The largest ratio of the two bounds the leak of all parts.

    Args:
      matrix: B, (num_messages, num_parts * num_segments).
      target: Target of decoding, (num_parts,).
      weights: Decoding weights, (..., num_segments, num_messages).
      mask: Which messages have arrived, bool (..., num_messages).
      message_dtype: Dtype that messages were rounded to.

    Returns:
      Real (..., num_segments, num_messages), also for messages that have not arrived.
      None if nothing is packed.
    """
    num_segments = weights.shape[-2]
    if num_segments == 1 and not jnp.iscomplexobj(matrix):
        return None
    columns = product(mask.astype(matrix.real.dtype), squares(matrix))
    columns = columns.reshape(*mask.shape[:-1], 1, len(target), num_segments)
    mixed = mixing(matrix, weights)
    ratio = squares(leakage(mixed)) / jnp.where(columns > 0, columns, jnp.inf)
    # In a round that does not decode, the leak is no rounding error, and stays.
    ratio = jnp.where(leaks(mixed, target)[..., None], 0, jnp.max(ratio, (-2, -1)))
    computed = jnp.promote_types(message_dtype, jnp.float32)
    eps = max(jnp.finfo(dtype).eps for dtype in (weights.dtype, computed))
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None]
    rounded = (_LEAKS + _LEAKS_OF_FEW / count.astype(ratio.dtype)) * eps
    rounded += _ROUNDED_MESSAGES * jnp.finfo(message_dtype).eps
    return jnp.sqrt(ratio[..., None] * _LEAKS**2 + rounded**2 * squares(weights))


def combine(
    weights: jax.Array, floors: jax.Array | None, messages: jax.Array, mask: jax.Array
) -> jax.Array:
    """Computes the weighted sum of the received messages, and clears rounding errors.

    Args:
      weights: Decoding weights a, (..., num_segments, num_messages).
      floors: From `floor_weights`, of the shape of weights.
      messages: (..., num_messages, length); messages not received may hold anything.
      mask: Which messages were received, bool (..., num_messages).

    Returns:
      The raveled gradient, real (..., count * length), padded with zeros; count is
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
    # In units of epsilon, squares of entries from 1e-18 to 1e18 are normal numbers.
    eps = jnp.finfo(messages.dtype).eps
    floors = None if floors is None else floors / eps

    def add(index, sums):
        rows, bounds = sums
        message = jnp.where(mask[..., index, None], messages[..., index, :], 0)
        message = message[..., None, :]
        rows = rows + weights[..., index, None] * message
        if floors is not None:
            size = jnp.abs(message.real) + jnp.abs(message.imag)
            bounds = bounds + (floors[..., index, None] * size) ** 2
        return rows, bounds

    def sum_block(start, size):
        sums = zeros, None if floors is None else zeros.real
        for index in range(size):
            sums = add(start + index, sums)
        return sums

    def add_block(block, sums):
        block_sums = sum_block(first_size + block * _BLOCK, _BLOCK)
        return jax.tree.map(jnp.add, sums, block_sums)

    # One pass over the messages. A matrix product would first copy them for the
    # selection, which takes several times as long as the product. Sums of blocks are
    # rounded less than one long sum. The first block initialises the sum: under
    # shard_map, zeros would not vary over the mesh axes of messages.
    num_blocks = (number - 1) // _BLOCK
    first_size = number - num_blocks * _BLOCK
    first = sum_block(0, first_size)
    rows, bounds = jax.lax.fori_loop(0, num_blocks, add_block, first)
    if jnp.iscomplexobj(rows):
        rows = jnp.stack([rows.real, rows.imag], axis=-2)
        bounds = None if bounds is None else bounds[..., None, :]
    if bounds is not None:
        is_rounding = ((rows / eps) ** 2 <= bounds) & jnp.isfinite(bounds)
        rows = jnp.where(is_rounding, 0, rows)
    return rows.reshape(*batch, math.prod(rows.shape[len(batch) :]))
