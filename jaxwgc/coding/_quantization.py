"""Unbiased stochastic rounding of messages to few bits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import inverse_power_of_two, promoted

# Smallest and largest number of bits: a sign and a level, and the precision of float32.
_LEAST_BITS = 2
_MOST_BITS = 24


def quantize(
    key: jax.Array, messages: jax.typing.ArrayLike, bits: jax.typing.ArrayLike
) -> jax.Array:
    """Rounds messages to few bits per number at random, without bias.

    A number is sent as its sign and a level from 0 to M = 2ᵇ⁻¹ - 1. One level is the
    norm of the message over M; the norm is sent, too. A number between two levels is
    rounded up with a probability proportional to its distance from the lower one. So
    E Q(m) = m (up to 2⁻²³ of a level, since uniform numbers are drawn in float32), and
    E‖Q(m) - m‖² ≤ ω ‖m‖² with ω from `quantization_variance`. To simulate it in a
    step, use `jaxwgc.corruptions.quantization`.

    Args:
      key: PRNG key of either kind. Workers that round on their own need different keys.
      messages: Real or complex (num_messages, length), e.g. from `jaxwgc.encode`. Real
        and imaginary parts are rounded separately.
      bits: Bits per number b, from 2 to 24, int or ints (num_messages,). May be traced.

    Returns:
      The rounded messages as floats of at least 32 bits. All NaN for a message that is
      not finite, or has traced bits out of range.

    Raises:
      ValueError: If a shape is wrong, or bits are below 2 or above 24.
      TypeError: If messages are not floats, bits not integers, or key is not a PRNG
        key.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> messages = jnp.array([[3.0, -4.0, 0.0]])
      >>> rounded = jaxwgc.coding.quantize(jax.random.key(0), messages, bits=3)
      >>> (rounded * 3 / 5).round(4)
      Array([[ 1., -2.,  0.]], dtype=float32)

    References:
      Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: communication-efficient SGD via
      gradient quantization and encoding", NeurIPS 2017, section 3.1.
    """
    rows = array_validation.as_array(
        "messages",
        messages,
        "real or complex floats",
        num_messages="any",
        length="any",
    )
    bits = _check_bits(bits, num_messages=len(rows))
    return _quantize(key, promoted(rows), jnp.asarray(bits, jnp.int32))


@jax.jit
def _quantize(key: jax.Array, messages: jax.Array, bits: jax.Array) -> jax.Array:
    # A complex entry is a pair of floats.
    entries = messages.view(messages.real.dtype)
    is_known = (bits >= _LEAST_BITS) & (bits <= _MOST_BITS)
    levels = (1 << (bits - 1)) - 1
    levels = jnp.where(is_known, levels.astype(entries.dtype), jnp.nan)
    levels = jnp.broadcast_to(levels, len(entries))[:, None]
    # Scaling by a power of two near 1 / largest keeps squares in range.
    largest = jnp.abs(entries).max(1, keepdims=True)
    shrink = inverse_power_of_two(largest)
    scaled = entries * shrink
    norm = jnp.sqrt(jnp.sum(scaled**2, 1, keepdims=True))
    steps = jnp.abs(scaled) / jnp.where(norm == 0, 1, norm) * levels
    below = jnp.floor(steps)
    draws = jax.random.uniform(key, entries.shape, entries.dtype)
    is_rounded_up = draws < steps - below
    taken = jnp.sign(scaled) * (below + is_rounded_up) / levels
    return (taken * norm / shrink).view(messages.dtype)


def quantization_variance(length: int, bits: jax.typing.ArrayLike) -> np.ndarray:
    """Computes a bound of the relative variance that `quantize` adds.

    It is an ω with E‖Q(m) - m‖² ≤ ω ‖m‖² for every message m and `quantize` as Q.
    For P numbers and M levels, ω = P / (4 M²) if M is at least √P / 2: the worst
    message has all numbers in the middle between two levels. For smaller M the norm
    does not allow that, and ω = √P / M - 1: the worst message has equal numbers.
    The bound is attained if M is below √P / 2, and for long messages. (The bounds
    of QSGD are P / M² and √P / M.)

    Args:
      length: Number P of real numbers per message, at least 1.
      bits: Bits per number b, from 2 to 24, int or ints of any shape. Not traced.

    Returns:
      float64 of the shape of bits.

    Raises:
      ValueError: If length is below 1, or bits are below 2 or above 24.
      TypeError: If they are not integers or are traced.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.coding.quantization_variance(64, [2, 4, 6]).round(4)
      array([7.    , 0.3265, 0.0166])

    References:
      Alistarh et al., "QSGD", NeurIPS 2017, lemma 3.1; sharpened on the page
      Mathematics.
    """
    length = validation.check_int("length", length, minimum=1)
    array_validation.check_concrete(
        "bits", bits, "the variance is computed on the host"
    )
    levels = 2.0 ** (np.asarray(_check_bits(bits)) - 1) - 1
    root = np.sqrt(length)
    of_few_levels = root / levels - 1
    of_many_levels = length / (4 * levels**2)
    return np.where(2 * levels < root, of_few_levels, of_many_levels)


def allocate_bits(
    straggler_probabilities: jax.typing.ArrayLike, length: int, total_bits: int
) -> np.ndarray:
    """Divides a total number of bits among workers for the least error.

    The error of `codes.unequal` is inversely proportional to the sum over workers of
    (1 - pᵢ) / (pᵢ + ω(bᵢ)), with ω from `quantization_variance`. The bits returned
    maximise this sum exactly, by dynamic programming. The first bits of a worker gain
    nothing by themselves, so that a worker may get none; leave it out of the code.

    Args:
      straggler_probabilities: p, (num_workers,), between 0 and 1.
      length: Number P of real numbers per message, at least 1.
      total_bits: Sum over workers of the bits per number, at least 2. More than 24 per
        worker are not used.

    Returns:
      Ints (num_workers,): 0, or from 2 to 24.

    Raises:
      ValueError: If a probability is not between 0 and 1, length is below 1 or
        total_bits below 2.
      TypeError: If an argument has the wrong type or is traced.

    Example:
      >>> import numpy as np, jaxwgc
      >>> from jaxwgc import codes, coding
      >>> probabilities = np.array([0.05, 0.1, 0.9])
      >>> bits = coding.allocate_bits(probabilities, length=64, total_bits=12)
      >>> bits
      array([7, 5, 0])
      >>> kept = bits > 0
      >>> variance = coding.quantization_variance(64, bits[kept])
      >>> code = codes.unequal(probabilities[kept], 4, quantization_variance=variance)

    References:
      Song, Choi, "Communication-efficient approximate gradient coding for distributed
      learning in heterogeneous systems", arXiv:2605.15890, optimize code and bits
      together, with a near-optimal algorithm for the bits. Here, dynamic programming
      finds the optimal integers for the bound of `quantization_variance`.
    """
    stragglers = array_validation.probabilities(
        "straggler_probabilities", straggler_probabilities
    )
    total = validation.check_int("total_bits", total_bits, minimum=_LEAST_BITS)
    total = min(total, _MOST_BITS * len(stragglers))
    positive_choices = np.arange(_LEAST_BITS, min(_MOST_BITS, total) + 1)
    choices = np.append(0, positive_choices)
    variance = np.append(np.inf, quantization_variance(length, positive_choices))
    gains = (1 - stragglers[:, None]) / (stragglers[:, None] + variance)
    # Largest sum of gains of the workers so far, by total number of bits.
    best_gains = np.zeros(total + 1)
    chosen = []
    for row in gains:
        options = np.full((len(choices), total + 1), -np.inf)
        for option, bits, gain in zip(options, choices, row, strict=True):
            option[bits:] = best_gains[: total + 1 - bits] + gain
        chosen.append(np.take(choices, options.argmax(0)))
        best_gains = options.max(0)
    bits = np.zeros(len(stragglers), int)
    for worker in reversed(range(len(stragglers))):
        bits[worker] = chosen[worker][total]
        total -= bits[worker]
    return bits


def _check_bits(bits: jax.typing.ArrayLike, **sizes: int) -> Any:
    """Checks bits, if they are not traced, and returns them as an array."""
    array = array_validation.as_array("bits", bits, "integers", or_number=True, **sizes)
    if not array_validation.is_traced(array):
        values = np.asarray(array)
        validation.check_entries(
            "bits",
            values,
            (values >= _LEAST_BITS) & (values <= _MOST_BITS),
            f"from {_LEAST_BITS} to {_MOST_BITS}",
        )
    return array
