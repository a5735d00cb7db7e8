"""Random projections of long messages to short rows."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import promoted

# Number of sums to which entries are added with random signs.
_NUM_BUCKETS = 1024
# Number of entries summed at a time, because the rounding error grows with the length
# of a sum. At most the number of bits of a word, from which the signs are taken.
_AT_ONCE = 32


def key_from(messages: jax.Array) -> jax.Array:
    """Derives a key that cannot be predicted without knowing every message."""
    parts = promoted(messages)[:, :_NUM_BUCKETS]
    parts = jnp.stack([parts.real, parts.imag]) if jnp.iscomplexobj(parts) else parts
    words = jax.lax.bitcast_convert_type(parts, jnp.uint32).reshape(-1)
    # Every bit of each word, and its position, changes many bits of the sum.
    places = jnp.arange(len(words), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift in (16, 15, 13):
        words = (words ^ (words >> shift) ^ places) * jnp.uint32(0x2C1B3C6D)
    return jax.random.key(jnp.sum(words, dtype=jnp.uint32))


def project(key: jax.Array, messages: jax.Array, num_columns: int) -> jax.Array:
    """Projects every message by one random matrix to (num_messages, num_columns).

    One pass over the messages, in at least float32. Projections satisfy the linear
    relations between messages; a broken relation shows in them.

    Args:
      key: PRNG key, drawn after the messages arrived, so that errors cannot be chosen
        to vanish.
      messages: Real or complex, (num_messages, length).
      num_columns: Length of the projections, which keep the norm on average.
    """
    messages = promoted(messages)
    if messages.shape[1] > _NUM_BUCKETS:
        messages = _in_buckets(jax.random.fold_in(key, 1), messages)
    real = jnp.finfo(messages.dtype).dtype
    mix = jax.random.normal(key, (messages.shape[1], num_columns), real)
    mix = (mix / math.sqrt(num_columns)).astype(messages.dtype)
    blocks, mix = _split(messages, 1), _split(mix, 0)
    products = jnp.einsum("nbl,blq->nbq", blocks, mix, precision="highest")
    return _sum_in_steps(products)


def _in_buckets(key, messages):
    num_messages, length = messages.shape
    depth = min(length // _NUM_BUCKETS, _AT_ONCE)
    size = depth * _NUM_BUCKETS
    whole = length // size * size
    pieces = [messages[:, :whole].reshape(num_messages, -1, depth, _NUM_BUCKETS)]
    if whole < length:
        rest = jnp.pad(messages[:, whole:], ((0, 0), (0, size - length + whole)))
        pieces.append(rest.reshape(num_messages, 1, depth, _NUM_BUCKETS))
    sums = []
    for piece, own_key in zip(pieces, jax.random.split(key, len(pieces))):
        words = jax.random.bits(own_key, (piece.shape[1], 1, _NUM_BUCKETS), jnp.uint32)
        bits = (words >> jnp.arange(depth, dtype=jnp.uint32)[:, None]) & 1
        sums.append(jnp.where(bits == 1, -piece, piece).sum(2))
    return _sum_in_steps(jnp.concatenate(sums, 1))


def _split(array, axis):
    """Splits an axis into pieces, the last one padded with zeros."""
    padding = [(0, 0)] * array.ndim
    padding[axis] = 0, -array.shape[axis] % _AT_ONCE
    array = jnp.pad(array, padding)
    shape = list(array.shape)
    shape[axis : axis + 1] = -1, _AT_ONCE
    return array.reshape(shape)


def _sum_in_steps(array):
    """Sums over the second axis of three."""
    while array.shape[1] > _AT_ONCE:
        # Without the barrier, the compiler would merge everything into one long sum.
        array = jax.lax.optimization_barrier(_split(array, 1).sum(2))
    return jax.lax.optimization_barrier(array).sum(1)
