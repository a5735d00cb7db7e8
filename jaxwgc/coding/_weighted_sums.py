"""Weighted sums of messages, or of partial gradients, with decoding weights."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc import _arrays, _flat_vectors, _validation
from jaxwgc._arrays import inverse_power_of_two, one_norm, product, squares
from jaxwgc._some_masks import any_under_vmap
from jaxwgc._targets import DECODES, effective, mixing, residual

# Number of messages summed in a block, before the sum is added to the total.
_BLOCK = 8
# Bounds of leaks, as multiples of their root mean square: _LEAKS for residuals, and
# _LEAKS + _LEAKS_OF_FEW / number of messages for rounding. Over all patterns of the
# exact codes of up to 7 workers, residuals reach 3. Rounding reaches 8 for two messages
# and 4 for six. The rounding error of many messages is normally distributed, and 6 is
# nine standard deviations.
_LEAKS, _LEAKS_OF_FEW = 6, 24
# Leakage in machine epsilons of the weight of a part, up to which it is dropped as
# rounding if no part exceeds it. Larger leakage also occurs in rounds that decode.
_ROUNDED_LEAKAGE = 100
# Bound of the rounding of sent messages in machine epsilons: seven standard deviations.
_ROUNDED_MESSAGES = 2


def leakage(mixing: jax.Array) -> jax.Array:
    """Returns `mixing` minus the effective weights, which are equal in all segments."""
    identity = jnp.eye(mixing.shape[-1])[:, None, :]
    diagonal = effective(mixing)[..., None, :, None] * identity
    return mixing - diagonal.astype(mixing.dtype)


@jax.jit
def leaks(mixing: jax.Array, target: jax.Array) -> jax.Array:
    """Returns whether the leakage of a round exceeds rounding error, bool (...).

    False for every round that decodes. Each part is also compared with its own weight.
    """
    _, failed = residual(mixing, target, DECODES)
    most = DECODES * math.sqrt(len(target)) * jnp.abs(target)
    leaked = jnp.abs(leakage(mixing)) > most[:, None]
    return failed | jnp.any(leaked, axis=(-3, -2, -1))


@jax.jit
def collapse_leaves(mixing: jax.Array, target: jax.Array, partial_gradients: Any):
    """Computes the decoded gradient from partial gradients, see `collapse`.

    Sums are computed in at least float32. A part of weight zero may hold NaN: no worker
    has responded for it.
    """
    leaves, structure = jax.tree.flatten(partial_gradients)
    wide = [_arrays.promoted(leaf) for leaf in leaves]
    rows = [leaf.reshape(len(leaf), -1) for leaf in wide]

    def sums(weights, rows=rows):
        return jax.tree.unflatten(
            structure,
            [
                product(weights.astype(row.dtype), row)
                .reshape(*weights.shape[:-1], *leaf.shape[1:])
                .astype(jax.dtypes.canonicalize_dtype(given.dtype))
                for row, leaf, given in zip(rows, wide, leaves, strict=True)
            ],
        )

    def masked_sums(weights):
        # Rows are selected only here, because selecting copies all rows, which takes
        # longer than the sum.
        is_used = jnp.any(weights != 0, axis=0)[:, None]
        return sums(weights, [jnp.where(is_used, row, 0) for row in rows])

    return collapse(mixing, target, sums, masked_sums)


def collapse(
    mixing: jax.Array,
    target: jax.Array,
    sums: Callable[[jax.Array], Any],
    masked_sums: Callable[[jax.Array], Any] | None = None,
) -> Any:
    """Computes the decoded gradient from weighted sums of partial gradients.

    A complex code packs the halves (u, v) of a gradient as u + iv. In a round with too
    many stragglers, effective weights c have an imaginary part. The halves then leak
    into each other: u loses Im(c) v, and v gains Im(c) u. Segments leak in this way,
    too. Messages contain these leaks, so they are added here, too. In a round that
    decodes, they leave entries that are zero in every partial gradient.

    Args:
      mixing: aᵀB, (num_segments, num_parts, num_segments), see `mixing`.
      target: Target of decoding, (num_parts,).
      sums: Function of real weights c (num_parts,) that returns the pytree sum over j
        of cⱼ gⱼ.
      masked_sums: Function of weights (rows, num_parts) that returns these sums with a
        leading axis, without parts of weight zero. It replaces sums that
        are not finite.
    """
    weights = effective(mixing)
    collapsed = sums(weights)
    leaked = _leaked_rows(mixing, target)
    add_leaks = functools.partial(_add_leaks, mixing=mixing, target=target)
    is_rare = jnp.any(leaked != 0)
    if masked_sums is not None:
        for leaf in jax.tree.leaves(collapsed):
            is_rare |= ~jnp.isfinite(leaf).all()
    elif not len(leaked):
        return collapsed

    def compute_exactly():
        if masked_sums is None:
            return add_leaks(collapsed, jax.vmap(sums)(leaked))
        both = masked_sums(jnp.concatenate([weights[None], leaked]))
        own = jax.tree.map(lambda leaf: leaf[0], both)
        return add_leaks(own, jax.tree.map(lambda leaf: leaf[1:], both))

    is_rare = any_under_vmap(is_rare)
    if not _validation.is_traced(is_rare):
        # Outside of jit, lax.cond would compile its branches, which are new functions,
        # at every call.
        return compute_exactly() if is_rare else collapsed
    return jax.lax.cond(is_rare, compute_exactly, lambda: collapsed)


def _leaked_rows(mixing, target):
    """Returns the weights, real (rows, num_parts), with which segments and halves leak.

    All are zero if they are at the level of rounding. No rows if nothing is packed.
    """
    num_parts, num_segments = mixing.shape[-2:]
    is_complex = jnp.iscomplexobj(mixing)
    if num_segments == 1 and not is_complex:
        return jnp.zeros((0, num_parts), mixing.dtype)
    leaked = leakage(mixing)
    most = _ROUNDED_LEAKAGE * jnp.finfo(mixing.dtype).eps * jnp.abs(target)
    is_kept = leaks(mixing, target) | jnp.any(one_norm(leaked) > most[:, None])
    leaked = jnp.where(is_kept, leaked, 0)
    rows = jnp.moveaxis(leaked, 1, -1).reshape(num_segments**2, num_parts)
    if num_segments == 1:
        return rows.imag
    return jnp.concatenate([rows.real, rows.imag]) if is_complex else rows


def _add_leaks(gradient, leaked, mixing, target):
    """Adds the leaks, sums with the weights of `_leaked_rows`, to a gradient.

    In a round that decodes, they would move parameters without a gradient.
    """
    num_segments, is_complex = mixing.shape[-1], jnp.iscomplexobj(mixing)
    pairs = 2 if is_complex else 1
    sums = _flat_vectors.ravel(leaked, num_batch_axes=1)
    if not len(sums):
        return gradient
    rows = _flat_vectors.blocks(sums, num_segments * pairs)
    shape = -1, num_segments, num_segments, num_segments, pairs, rows.shape[-1]
    # Segment u gains, for each v, segment v of the sum with weights (u, :, v).
    gains = jnp.trace(rows.reshape(shape), axis1=2, axis2=3)
    leak = gains[0] if num_segments > 1 else jnp.zeros(())
    if is_complex:
        turned = gains[-1]
        leak = leak + jnp.stack([-turned[:, 1], turned[:, 0]], axis=1)
    flat = _flat_vectors.ravel(gradient)
    is_moved = leaks(mixing, target) | (flat != 0)
    leak = jnp.where(is_moved, leak.ravel()[: flat.size], 0)
    return _flat_vectors.unravel(flat + leak, gradient)


@functools.partial(jax.jit, static_argnames="message_dtype")
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
    # Columns of B are scaled by powers of two, so that squares stay in range.
    units = inverse_power_of_two(jnp.max(one_norm(matrix), axis=0))
    columns = product(mask.astype(units.dtype), squares(matrix * units))
    shape = 1, len(target), num_segments
    columns = columns.reshape(*mask.shape[:-1], *shape)
    mixed = mixing(matrix, weights)
    ratio = squares(leakage(mixed)) / jnp.where(columns > 0, columns, jnp.inf)
    ratio = jnp.sqrt(ratio) * units.reshape(shape)
    # In a round that does not decode, the leak is no rounding error, and is kept.
    ratio = jnp.where(leaks(mixed, target)[..., None], 0, jnp.max(ratio, (-2, -1)))
    computed = jnp.promote_types(message_dtype, jnp.float32)
    eps = max(jnp.finfo(dtype).eps for dtype in (weights.dtype, computed))
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)[..., None, None]
    rounded = (_LEAKS + _LEAKS_OF_FEW / count.astype(ratio.dtype)) * eps
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
      floors: From `floor_weights`, of the shape of weights.
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
    # In units of epsilon, rows and floors have squares in the range of the dtype.
    eps = jnp.finfo(messages.dtype).eps
    floors = None if floors is None else floors / eps

    def sum_block(start, count):
        places = [start + place for place in range(count)]
        received = [
            jnp.where(mask[..., index, None], messages[..., index, :], 0)
            for index in places
        ]
        rows = zeros
        if floors is None:
            for index, message in zip(places, received, strict=True):
                rows = rows + weights[..., index, None] * message[..., None, :]
            return _Sums(rows, None, None)
        unit = _unit_of(received)
        bounds = zeros.real
        for index, message in zip(places, received, strict=True):
            message = (message * unit)[..., None, :]
            rows = rows + weights[..., index, None] * message
            bounds = bounds + (floors[..., index, None] * one_norm(message)) ** 2
        return _Sums(rows, bounds, unit[..., None, :])

    def add_block(block, sums):
        return sums.plus(sum_block(first_size + block * _BLOCK, _BLOCK))

    # One pass over the messages. A matrix product would first copy them for the
    # selection, which takes several times as long as the product. Sums of blocks are
    # rounded less than one long sum. The first block initialises the sum: under
    # shard_map, zeros would not vary over the mesh axes of messages.
    num_blocks = (number - 1) // _BLOCK
    first_size = number - num_blocks * _BLOCK
    first = sum_block(0, first_size)
    rows, bounds, unit = jax.lax.fori_loop(0, num_blocks, add_block, first)
    if jnp.iscomplexobj(rows):
        rows = jnp.stack([rows.real, rows.imag], axis=-2)
        bounds, unit = jax.tree.map(lambda sums: sums[..., None, :], (bounds, unit))
    if bounds is not None:
        is_rounding = ((rows / eps) ** 2 <= bounds) & jnp.isfinite(bounds)
        rows = jnp.where(is_rounding, 0, rows) / unit
    return rows.reshape(*batch, math.prod(rows.shape[len(batch) :]))


def _unit_of(messages):
    """Returns powers of two that scale the largest of several messages to about one.

    They differ by entry. Squares and partial sums of scaled entries stay in the range
    of the dtype.
    """
    largest = functools.reduce(jnp.maximum, map(one_norm, messages))
    least = jnp.finfo(largest.dtype).tiny
    return inverse_power_of_two(jnp.maximum(jax.lax.stop_gradient(largest), least))


class _Sums(NamedTuple):
    """Sums over some messages.

    Attributes:
      rows: Weighted sums times `unit`, (..., num_segments, length).
      bounds: Squared bounds of their rounding, real; None if nothing is packed.
      unit: Powers of two, (..., 1, length); None if nothing is packed, as 1.
    """

    rows: Any
    bounds: Any
    unit: Any

    def plus(self, other: "_Sums") -> "_Sums":
        """Returns the sums over the messages of both."""
        if self.unit is None:
            return self._replace(rows=self.rows + other.rows)
        unit = jnp.minimum(self.unit, other.unit)
        own_factor = unit / self.unit
        other_factor = unit / other.unit
        rows = self.rows * own_factor + other.rows * other_factor
        bounds = self.bounds * own_factor**2 + other.bounds * other_factor**2
        return _Sums(rows, bounds, unit)
