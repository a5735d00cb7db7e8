"""Random projections: short rows that stand for long messages."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._arrays import promoted

# Entries are added up under random signs, into so many sums.
_NUM_BUCKETS = 1024
# So many numbers are added up at a time: of long sums, rounding grows with the length.
# No more than bits in a word, from which signs are taken.
_AT_ONCE = 32


def key_from(messages: jax.Array) -> jax.Array:
    """Returns a key that nobody knows who does not know a part of every message."""
    parts = promoted(messages)[:, :_NUM_BUCKETS]
    parts = jnp.stack([parts.real, parts.imag]) if jnp.iscomplexobj(parts) else parts
    words = jax.lax.bitcast_convert_type(parts, jnp.uint32).reshape(-1)
    # Every bit of each word, and its place, change the sum in many bits.
    places = jnp.arange(len(words), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift in (16, 15, 13):
        words = (words ^ (words >> shift) ^ places) * jnp.uint32(0x2C1B3C6D)
    return jax.random.key(jnp.sum(words, dtype=jnp.uint32))


def project(key: jax.Array, messages: jax.Array, num_columns: int) -> jax.Array:
    """Returns (num_messages, num_columns), the same projection of every message.

    In one pass over the messages, in at least float32. Linear relations between
    messages hold between their projections, and what breaks one shows.

    Args:
      key: PRNG key; drawn after the messages have arrived, nobody can aim at it.
      messages: (num_messages, length), real or complex.
      num_columns: of the projection. Rows keep their norm on average.
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
    """Cuts an axis into pieces, the last one filled up with zeros."""
    padding = [(0, 0)] * array.ndim
    padding[axis] = 0, -array.shape[axis] % _AT_ONCE
    array = jnp.pad(array, padding)
    shape = list(array.shape)
    shape[axis : axis + 1] = -1, _AT_ONCE
    return array.reshape(shape)


def _sum_in_steps(array):
    """Adds up the second axis of three."""
    while array.shape[1] > _AT_ONCE:
        # Else the compiler makes one long sum of them all.
        array = jax.lax.optimization_barrier(_split(array, 1).sum(2))
    return jax.lax.optimization_barrier(array).sum(1)
