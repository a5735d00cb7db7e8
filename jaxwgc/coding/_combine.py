"""Decoded gradients from messages, without the rounding errors of packed blocks."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc._common.arrays import inverse_power_of_two, one_norm, product, squares
from jaxwgc.coding._block_weights import Leaks

# Number of messages in a block. Blocks are summed first, and then added up.
_BLOCK = 8
# Bounds of leaks, as multiples of their root mean square. The bound is _LEAKS for
# residuals, and _LEAKS + _LEAKS_OF_FEW / number of messages for rounding. Residuals
# reach 3 over all patterns of exact codes of up to 7 workers. Rounding reaches 8 with
# two messages, and 4 with six. Rounding of many messages is normally distributed: 6 is
# nine standard deviations.
_LEAKS = 6
_LEAKS_OF_FEW = 24
# Bound of the rounding of sent messages, in machine epsilons. It is seven standard
# deviations.
_ROUNDED_MESSAGES = 2


@functools.partial(jax.jit, static_argnames="message_dtype")
def floor_weights(
    leaks: Leaks,
    matrix: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    message_dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Computes the weight of each message in the bound of rounding errors.

    Messages pack several blocks of a gradient. Entries that are zero in one block
    decode to leaks from the others: rounding errors of messages and weights, and the
    residual.

    Leaks of different messages add up like independent numbers. The bound of an entry
    is therefore the root of the sum over messages of (weight * size)². A part with
    gradient v leaks its residual times |v|, and adds the norm of its column of B times
    |v| to the messages. The largest ratio of the two bounds the leak of all parts.

    Args:
      leaks: Leaks between the blocks of the gradient.
      matrix: B, (num_messages, num_parts * num_segments).
      weights: Decoding weights, (..., num_segments, num_messages).
      mask: Which messages have arrived, bool (..., num_messages).
      message_dtype: Dtype that messages were rounded to.

    Returns:
      Real (..., num_segments, num_messages), also for messages that have not arrived.
    """
    num_blocks, num_parts, _ = leaks.weights.shape[-3:]
    num_segments = weights.shape[-2]
    # Powers of two scale the columns of B, so that squares stay in range. The two
    # halves of a segment share a column.
    units = inverse_power_of_two(jnp.max(one_norm(matrix), axis=0))
    columns = product(mask.astype(units.dtype), squares(matrix * units))
    inverse_norms = jnp.where(columns > 0, units / jnp.sqrt(columns), 0)
    inverse_norms = jnp.repeat(inverse_norms, num_blocks // num_segments, axis=-1)
    inverse_norms = inverse_norms.reshape(*mask.shape[:-1], 1, num_parts, num_blocks)
    ratios = jnp.abs(leaks.weights) * inverse_norms
    ratio_of_block = jnp.max(ratios, axis=(-2, -1))
    batch = ratio_of_block.shape[:-1]
    ratio = ratio_of_block.reshape(*batch, num_segments, -1).max(-1)
    # If a round does not decode, its leak is larger than rounding, and is kept.
    ratio = jnp.where(leaks.is_lossy[..., None], 0, ratio)
    computed = jnp.promote_types(message_dtype, jnp.float32)
    eps = max(jnp.finfo(weights.dtype).eps, jnp.finfo(computed).eps)
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    count = count[..., None, None].astype(ratio.dtype)
    rounded = (_LEAKS + _LEAKS_OF_FEW / count) * eps
    rounded += _ROUNDED_MESSAGES * jnp.finfo(message_dtype).eps
    unit = inverse_power_of_two(jnp.max(one_norm(weights)))
    leaked = ratio[..., None] * (unit * _LEAKS)
    return jnp.sqrt(leaked**2 + rounded**2 * squares(weights * unit)) / unit


@jax.jit
def combine(
    weights: jax.Array, floors: jax.Array | None, messages: jax.Array, mask: jax.Array
) -> jax.Array:
    """Computes the weighted sum of the received messages, and clears rounding errors.

    Args:
      weights: Decoding weights a, (..., num_segments, num_messages).
      floors: From `floor_weights`, of the shape of weights; None if nothing is packed.
      messages: Promoted, (..., num_messages, length); messages not received may hold
        anything.
      mask: Which messages were received, bool (..., num_messages).

    Returns:
      The raveled gradient, real (..., count * length), padded with zeros; count is
      num_segments, and twice that for complex messages.
    """
    weights = weights.astype(messages.dtype)
    num_segments, number = weights.shape[-2:]
    batch = jnp.broadcast_shapes(
        weights.shape[:-2], messages.shape[:-2], mask.shape[:-1]
    )
    zeros = jnp.zeros((*batch, num_segments, messages.shape[-1]), messages.dtype)
    # Rows and floors are in units of epsilon, so that squares stay in the range of the
    # dtype.
    eps = jnp.finfo(messages.dtype).eps
    if floors is not None:
        floors = floors / eps

    def received_message(index):
        return jnp.where(mask[..., index, None], messages[..., index, :], 0)

    def sum_block(start, count):
        indices = [start + place for place in range(count)]
        received = [received_message(index) for index in indices]
        rows = zeros
        if floors is None:
            for index, message in zip(indices, received, strict=True):
                rows = rows + weights[..., index, None] * message[..., None, :]
            return _Sums(rows, rounding=None)
        unit = _unit_of(received)
        squared_bounds = zeros.real
        for index, message in zip(indices, received, strict=True):
            row = (message * unit)[..., None, :]
            rows = rows + weights[..., index, None] * row
            bound = floors[..., index, None] * one_norm(row)
            squared_bounds = squared_bounds + bound**2
        return _Sums(rows, _Rounding(squared_bounds, unit[..., None, :]))

    def add_block(block, sums):
        return sums.plus(sum_block(first_size + block * _BLOCK, _BLOCK))

    # The loop reads each message once. A matrix product would first copy the selected
    # messages, which takes several times as long as the product. Sums of blocks also
    # have less rounding than one long sum. The sum starts with the first block, because
    # under shard_map zeros would not vary over the mesh axes of messages.
    num_blocks = (number - 1) // _BLOCK
    first_size = number - num_blocks * _BLOCK
    first = sum_block(0, first_size)
    rows, rounding = jax.lax.fori_loop(0, num_blocks, add_block, first)
    if jnp.iscomplexobj(rows):
        rows = jnp.stack([rows.real, rows.imag], axis=-2)
        rounding = jax.tree.map(lambda array: array[..., None, :], rounding)
    if rounding is not None:
        squared_bounds, unit = rounding
        is_rounding = (rows / eps) ** 2 <= squared_bounds
        is_rounding &= jnp.isfinite(squared_bounds)
        rows = jnp.where(is_rounding, 0, rows) / unit
    return rows.reshape(*batch, math.prod(rows.shape[len(batch) :]))


def _unit_of(messages: list[jax.Array]) -> jax.Array:
    """Returns powers of two that scale the largest of several messages to about one.

    They differ by entry. Squares and partial sums of scaled entries stay in the range
    of the dtype.
    """
    sizes = [one_norm(message) for message in messages]
    largest = functools.reduce(jnp.maximum, sizes)
    tiny = jnp.finfo(largest.dtype).tiny
    return inverse_power_of_two(jnp.maximum(jax.lax.stop_gradient(largest), tiny))


class _Rounding(NamedTuple):
    """Bounds of the rounding errors of sums.

    Attributes:
      squared_bounds: Squared bounds, real (..., num_segments, length), in `unit`.
      unit: Powers of two by which sums and bounds are multiplied, (..., 1, length).
    """

    squared_bounds: jax.Array
    unit: jax.Array


class _Sums(NamedTuple):
    """Sums over some messages.

    Attributes:
      rows: Weighted sums, (..., num_segments, length), in the unit of `rounding`.
      rounding: Bounds of their rounding errors; None if nothing is packed.
    """

    rows: jax.Array
    rounding: _Rounding | None

    def plus(self, other: "_Sums") -> "_Sums":
        """Returns the sums over the messages of both."""
        if self.rounding is None or other.rounding is None:
            return _Sums(self.rows + other.rows, rounding=None)
        bounds, own_unit = self.rounding
        other_bounds, other_unit = other.rounding
        unit = jnp.minimum(own_unit, other_unit)
        own_factor = unit / own_unit
        other_factor = unit / other_unit
        rows = self.rows * own_factor + other.rows * other_factor
        bounds = bounds * own_factor**2 + other_bounds * other_factor**2
        return _Sums(rows, _Rounding(bounds, unit))
