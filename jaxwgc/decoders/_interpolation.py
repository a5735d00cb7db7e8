"""Lagrange interpolation: a closed form for codes evaluated at roots of unity."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import power_of_two, product
from jaxwgc.decoders._dual import DualCode

# Log-moduli are split into a multiple of 1 / 2**10 (in log2), with sums that are exact
# in float32, and a small remainder, so that the rounding of its sum is negligible.
_FRACTION_BITS = 10
# Number of leading bits into which table entries are split, with products that are
# exact in float32; the rest is added.
_TABLE_BITS = 11


def interpolate(received: jax.Array, positions: jax.typing.ArrayLike) -> jax.Array:
    """Returns weights that interpolate a polynomial at 0 from its values.

    The weights are aᵢ = ∏ⱼ αⱼ / (αⱼ - αᵢ) over the other workers j that responded.
    With delta = (pⱼ - pᵢ) mod n, a factor has modulus 1 / (2 sin(pi delta / n)) and
    phase pi (2 delta - n) / (2n). Log-moduli add, and phases are integers modulo 4n. A
    batch of masks, in the order of the points, is one product with fixed tables of
    shape (n, 3n).

    Args:
      received: bool (..., num_workers).
      positions: int (num_workers,), pᵢ in the points exp(2πi pᵢ / n) of the code.

    Returns:
      Complex (..., 1, num_workers) in JAX's default precision, zero at stragglers.
      Accurate to about that precision.
    """
    num_workers = received.shape[-1]
    dtype = jnp.result_type(float)
    around = jnp.arange(num_workers)
    around = jnp.zeros_like(around).at[positions].set(around)
    in_order = received[..., around]
    points = np.arange(num_workers)
    difference = (points[:, None] - points) % num_workers
    others = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = -np.log2(modulus, where=others, out=np.zeros_like(modulus))
    coarse = np.round(log_modulus * 2**_FRACTION_BITS)
    remainder = log_modulus - coarse / 2**_FRACTION_BITS
    phase = np.where(others, 2 * difference - num_workers, 0)
    tables = jnp.asarray(np.concatenate([coarse, phase, remainder], 1), dtype)
    sums = product(in_order.astype(dtype), tables)
    coarse_sum, phase_sum, remainder_sum = jnp.split(sums, 3, axis=-1)

    # Exact integers from here on. Sines, cosines and powers come from tables, since
    # arguments in radians would be rounded.
    coarse_sum = coarse_sum.astype(jnp.int32)
    exponent = coarse_sum >> _FRACTION_BITS
    fraction = coarse_sum & (2**_FRACTION_BITS - 1)
    fractions = np.arange(2**_FRACTION_BITS) / 2**_FRACTION_BITS
    power, power_rest = _table_entries(np.exp2(fractions)[:, None], fraction, dtype)
    growth = jnp.expm1(np.log(2) * remainder_sum)[..., None]
    power_rest = power_rest + (power + power_rest) * growth
    turns = phase_sum.astype(jnp.int32) % (4 * num_workers)
    angles = np.pi * np.arange(4 * num_workers) / (2 * num_workers)
    circle = np.stack([np.cos(angles), np.sin(angles)], -1)
    entry, tail = _table_entries(circle, turns, dtype)
    parts = power * entry + (power * tail + power_rest * (entry + tail))
    parts = parts * power_of_two(exponent, dtype)[..., None]
    weights = jax.lax.complex(parts[..., 0], parts[..., 1])[..., positions]
    return jnp.where(received, weights, 0)[..., None, :]


def _table_entries(table, index, dtype):
    """Looks up table rows in two parts: a few leading bits, and the rest."""
    mantissa, exponent = np.frexp(table)
    leading = np.ldexp(
        np.round(np.ldexp(mantissa, _TABLE_BITS)), exponent - _TABLE_BITS
    )
    both = jnp.asarray(np.concatenate([leading, table - leading], -1), dtype)
    return jnp.split(both[index], 2, axis=-1)


def dual_of_polynomials(
    positions: jax.Array, num_stragglers: int, dtype: jax.typing.DTypeLike
) -> DualCode:
    """Returns the dual code, with s columns, of polynomials at the roots of unity.

    Polynomials have degree n - s - 1 and are evaluated at the n-th roots of unity. The
    weights are 1 / n. The columns at αᵢ are αᵢ / √n, ..., αᵢˢ / √n.
    """
    number = len(positions)
    powers = np.arange(number)[:, None] * np.arange(1, num_stragglers + 1) % number
    roots = np.exp(2j * np.pi * powers / number) / np.sqrt(number)
    null = jnp.asarray(roots, dtype)[positions]
    return DualCode(jnp.full(number, 1 / number, dtype), null)
