"""Decoded gradients, from messages or from partial gradients.

A block is a segment of the gradient, or half of a segment if messages are complex. In
terms of blocks every code is real. A code with one segment and real messages has one
block. In rounds that cannot be decoded exactly, blocks leak into each other.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import flat_vectors
from jaxwgc._common.arrays import (
    Array,
    array_module,
    inverse_power_of_two,
    one_norm,
    product,
    promoted,
    squares,
)
from jaxwgc._common.some_rows import any_under_vmap
from jaxwgc._common.tolerances import DECODES

# Bound, in machine epsilons of the weight of a part, up to which the disturbance
# between blocks counts as rounding and is dropped. Larger disturbances also occur in
# rounds that decode.
_ROUNDED_LEAKAGE = 100
# Number of messages in a block. Blocks are summed first, and then added up.
_BLOCK = 8
# Bounds of residuals and rounding errors, as multiples of their root mean square:
# _LEAKS for residuals, and _LEAKS + _LEAKS_OF_FEW / number of messages for rounding
# errors. Residuals reach 3 over all patterns of exact codes of up to 7 workers.
# Rounding errors reach 8 with two messages, and 4 with six. For many messages they are
# normally distributed, and 6 is nine standard deviations.
_LEAKS = 6
_LEAKS_OF_FEW = 24
# Bound of the rounding of sent messages, in machine epsilons. It is seven standard
# deviations.
_ROUNDED_MESSAGES = 2


def unmixed(weights: Any, num_blocks: int) -> Any:
    """Returns block weights if no block of a gradient disturbs another."""
    xp = array_module(weights)
    is_own_block = np.eye(num_blocks, dtype=bool)[:, None, :]
    return xp.where(is_own_block, weights[..., None, :, None], 0)


class Leaks(NamedTuple):
    """Weights with which one block of a gradient disturbs another.

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
    """Returns the weights with which blocks of a gradient disturb each other."""
    leaks = block_weights - unmixed(effective_weights, block_weights.shape[-1])
    size = jnp.max(jnp.abs(leaks), axis=(-3, -1))
    allowed = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    is_lossy = ~(relative_residual <= DECODES) | jnp.any(size > allowed, axis=-1)
    rounding = _ROUNDED_LEAKAGE * jnp.finfo(leaks.dtype).eps * jnp.abs(target)
    is_mixed = is_lossy | jnp.any(size > rounding, axis=-1)
    return Leaks(weights=leaks, is_lossy=is_lossy, is_mixed=is_mixed)


@functools.partial(jax.jit, static_argnames="num_segments")
def collapse_leaves(
    weights: jax.Array,
    leaks: Leaks | None,
    num_segments: int,
    partial_gradients: Any,
) -> Any:
    """Computes the decoded gradient from partial gradients, see `collapse_function`.

    Sums are computed in at least float32. A part of weight zero may hold NaN: no worker
    has responded for it.

    Args:
      weights: Effective weights, (num_parts,).
      leaks: Leaks between blocks; None if the gradient is one block.
      num_segments: Number of segments of the code.
      partial_gradients: Pytree with leaves (num_parts, ...).
    """
    paths = jax.tree_util.tree_leaves_with_path(partial_gradients)
    if not paths:
        raise ValueError(
            f"partial_gradients must have at least one array; got {partial_gradients}"
        )
    num_parts = len(weights)
    for path, leaf in paths:
        if leaf.shape[:1] != (num_parts,):
            raise ValueError(
                f"partial_gradients{jax.tree_util.keystr(path)} must have a leading "
                f"axis of num_parts = {num_parts}; got shape {leaf.shape}"
            )
    collapsed = _weighted_sums(partial_gradients, weights)
    is_off = jnp.array(False) if leaks is None else leaks.is_mixed
    for leaf in jax.tree.leaves(collapsed):
        is_off |= ~jnp.isfinite(leaf).all()

    def without_unused_parts():
        is_used = weights != 0
        if leaks is not None:
            is_used |= jnp.any(leaks.weights != 0, axis=(-3, -1))
        sums = functools.partial(_weighted_sums, partial_gradients, is_used=is_used)
        gradient = sums(weights)
        if leaks is None:
            return gradient
        return _with_leaks(gradient, leaks, num_segments, sums)

    # A selection copies all rows, which takes longer than the sum. Rows are therefore
    # selected only if necessary.
    return jax.lax.cond(any_under_vmap(is_off), without_unused_parts, lambda: collapsed)


def _weighted_sums(
    gradients: Any, weights: jax.Array, is_used: jax.Array | None = None
) -> Any:
    """Computes weighted sums of gradients, in at least float32.

    Args:
      gradients: Pytree with leaves (num_parts, ...).
      weights: (..., num_parts).
      is_used: Parts that are not replaced by zeros, bool (num_parts,); None for all.
    """
    leaves, structure = jax.tree.flatten(gradients)
    totals = []
    for leaf in leaves:
        rows = promoted(leaf).reshape(len(leaf), -1)
        if is_used is not None:
            rows = jnp.where(is_used[:, None], rows, 0)
        total = product(weights.astype(rows.dtype), rows)
        total = total.reshape(*weights.shape[:-1], *leaf.shape[1:])
        totals.append(total.astype(leaf.dtype))
    return jax.tree.unflatten(structure, totals)


def collapse_function(
    weights: jax.Array,
    leaks: Leaks | None,
    num_segments: int,
    sums: Callable[[jax.Array], Any],
) -> Any:
    """Computes the decoded gradient from weighted sums of partial gradients.

    In a round that decodes, every block of the gradient is the sum of partial gradients
    with the effective weights. In other rounds, blocks that messages pack leak into
    each other, and these leaks are added here, too. In a round that decodes with a
    residual, they leave entries that are zero in every partial gradient.

    Args:
      weights: Effective weights, (num_parts,).
      leaks: Leaks between blocks; None if the gradient is one block.
      num_segments: Number of segments of the code.
      sums: Function of real weights c (num_parts,) that returns the pytree sum over j
        of cⱼ gⱼ.
    """
    collapsed = sums(weights)
    if leaks is None:
        return collapsed

    def with_leaks():
        return _with_leaks(collapsed, leaks, num_segments, jax.vmap(sums))

    is_mixed = any_under_vmap(leaks.is_mixed)
    if not isinstance(is_mixed, jax.core.Tracer):
        # Branches are new functions. Outside of jit, lax.cond would compile them at
        # every call.
        return with_leaks() if is_mixed else collapsed
    return jax.lax.cond(is_mixed, with_leaks, lambda: collapsed)


def _with_leaks(
    gradient: Any,
    leaks: Leaks,
    num_segments: int,
    sums_of_rows: Callable[[jax.Array], Any],
) -> Any:
    """Adds the disturbance between blocks to each block of a gradient.

    Args:
      gradient: Sum of partial gradients with the effective weights.
      leaks: Leaks between blocks.
      num_segments: Number of segments of the code.
      sums_of_rows: Function of weights (rows, num_parts) that returns the weighted sums
        of partial gradients, with rows as the leading axis.
    """
    weights = jnp.where(leaks.is_mixed, leaks.weights, 0)
    num_blocks = weights.shape[-1]
    halves = num_blocks // num_segments
    # Second halves disturb first halves by i times what first halves disturb second
    # halves. With a single segment, there are no other blocks.
    first = 1 if num_segments == 1 else 0
    rows = jnp.moveaxis(weights[first:, :, ::halves], 1, -1)
    num_into = len(rows)
    sums = sums_of_rows(rows.reshape(-1, rows.shape[-1]))
    sums = flat_vectors.blocks(flat_vectors.ravel(sums, 1), num_blocks)
    sums = sums.reshape(num_into, num_segments, num_segments, halves, sums.shape[-1])
    # For each segment v, block p gains segment v of the sum with weights (p, :, v).
    gained = jnp.trace(sums, axis1=1, axis2=2)
    gained = jnp.pad(gained, [(first, 0), (0, 0), (0, 0)])
    if halves == 2:
        second = gained[:, 1].reshape(num_segments, 2, gained.shape[-1])
        turned = jnp.stack([-second[:, 1], second[:, 0]], axis=1)
        gained = gained[:, 0] + turned.reshape(num_blocks, gained.shape[-1])
    flat = flat_vectors.ravel(gradient)
    # If a round decodes, entries that are zero in the gradient stay zero.
    is_moved = leaks.is_lossy | (flat != 0)
    gained = jnp.where(is_moved, gained.ravel()[: flat.size], 0)
    return flat_vectors.unravel(flat + gained, gradient)


@functools.partial(jax.jit, static_argnames="message_dtype")
def floor_weights(
    leaks: Leaks,
    matrix: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    message_dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Computes how much each message adds to the bound of rounding errors.

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
    # If a round does not decode, the disturbance is larger than rounding, and is kept.
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
    """Sums weighted messages, and sets entries below the rounding error to zero.

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
    # Rows and bounds are divided by epsilon, so that squares stay in the range of the
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
    """Sums over messages: of values, and for the bound of rounding errors.

    Attributes:
      rows: Weighted sums, (..., num_segments, length), in the unit of `rounding`.
      rounding: Bounds of their rounding errors; None if nothing is packed.
    """

    rows: jax.Array
    rounding: _Rounding | None

    def plus(self, other: "_Sums") -> "_Sums":
        """Adds the sums over other messages."""
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
