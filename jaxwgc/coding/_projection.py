"""Random projections of long messages to short rows."""

import math

import jax
import jax.numpy as jnp

from jaxwgc._common import flat_vectors
from jaxwgc._common.arrays import inverse_power_of_two, one_norm, promoted

# Maximum number of buckets. Each bucket is a sum of entries with random signs.
_NUM_BUCKETS = 1024
# Number of entries summed at a time. Longer sums have larger rounding errors. The signs
# are bits of one word, so this is at most the number of bits of a word.
_AT_ONCE = 32


def key_from(messages: jax.Array) -> jax.Array:
    """Derives a key that cannot be predicted without knowing every message.

    Args:
      messages: Real or complex, (num_messages, length).

    Returns:
      A typed PRNG key, for `project` or `jaxwgc.locate_errors`.
    """
    entries = promoted(messages)[:, :_NUM_BUCKETS]
    if jnp.iscomplexobj(entries):
        entries = jnp.stack([entries.real, entries.imag])
    words = jax.lax.bitcast_convert_type(entries, jnp.uint32).reshape(-1)
    # A change of any bit of a word, or of its position, changes many bits of the sum.
    places = jnp.arange(len(words), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift in (16, 15, 13):
        words = (words ^ (words >> shift) ^ places) * jnp.uint32(0x2C1B3C6D)
    return jax.random.key(jnp.sum(words, dtype=jnp.uint32))


def project(key: jax.Array, messages: jax.Array, num_columns: int) -> jax.Array:
    """Projects every message to a short row, all by one random matrix.

    Projections satisfy the linear relations between messages, such as the parity checks
    of a code. A broken relation shows in them.

    Args:
      key: PRNG key, drawn after the messages arrived, so that errors cannot be chosen
        to vanish.
      messages: Real or complex, (num_messages, length).
      num_columns: Length of the projections, which keep the norm on average.

    Returns:
      (num_messages, num_columns), in at least float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import coding
      >>> messages = jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])
      >>> first, copy, other = coding.project(jax.random.key(0), messages, 8)
      >>> bool(jnp.allclose(first, copy)), bool(jnp.allclose(first, other))
      (True, False)
    """
    rows, units = project_in_units(key, messages, num_columns)
    return rows / units


def project_in_units(
    key: jax.Array, messages: jax.Array, num_columns: int
) -> tuple[jax.Array, jax.Array]:
    """Projects messages, scaled by powers of two; returns also these powers.

    The powers scale the largest entry of each message to about one, so that sums of
    entries stay in the range of the dtype.

    Args:
      key: PRNG key, drawn after the messages arrived, so that errors cannot be chosen
        to vanish.
      messages: Real or complex, (num_messages, length).
      num_columns: Length of the projections, which keep the norm on average.
    """
    messages = promoted(messages)
    largest = one_norm(messages).max(1, keepdims=True, initial=0)
    units = inverse_power_of_two(largest)
    messages = messages * units
    while messages.shape[1] > _NUM_BUCKETS:
        key, sign_key = jax.random.split(key)
        messages = _signed_sums(sign_key, messages)
    pieces = flat_vectors.blocks(messages, _AT_ONCE)
    real = jnp.finfo(messages.dtype).dtype
    shape = (*pieces.shape[1:], num_columns)
    # The generator compiles to a much smaller program for a flat array.
    mix = jax.random.normal(key, (math.prod(shape),), real).reshape(shape)
    mix = (mix / math.sqrt(num_columns)).astype(messages.dtype)
    products = jnp.einsum("nbl,blq->nbq", pieces, mix, precision="highest")
    # Without the barrier, the compiler would merge all steps into one long sum.
    return jax.lax.optimization_barrier(products).sum(1), units


def _signed_sums(key: jax.Array, messages: jax.Array) -> jax.Array:
    """Adds up to 32 entries of each message, with random signs, to each sum."""
    depth = min(-(-messages.shape[1] // _NUM_BUCKETS), _AT_ONCE)
    rows = flat_vectors.blocks(messages, depth)
    words = jax.random.bits(key, rows.shape[2:], jnp.uint32)
    shifts = jnp.arange(depth, dtype=jnp.uint32)[:, None]
    is_negative = ((words >> shifts) & 1) == 1
    sums = jnp.where(is_negative, -rows, rows).sum(1)
    return jax.lax.optimization_barrier(sums)
