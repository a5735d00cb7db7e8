"""Lagrange interpolation: a closed form for codes evaluated at roots of unity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc._some_masks import masked_map
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import relative_miss, squared_norm
from jaxwgc.decoders._dual import dual_weights
from jaxwgc.decoders._nearest_weights import Rows

# Moduli are split into a multiple of 1 / 2**10 (in log2), whose sums are exact in
# float32, and a remainder so small that the rounding of its sum does not matter.
_FRACTION_BITS = 10
# Tables are split into entries of so many bits, whose products are exact in float32,
# and what is left.
_TABLE_BITS = 11
# Rounding weights and entries of B makes weights miss by at most about so many eps of
# their norm: by a fifth to a half, over random masks of n from 50 to 200.
_EPS_OF_NORM = 0.5
# Masks that are looked at, and decoded with the dual code, side by side.
_CHUNK, _DUAL_CHUNK = 32, 4


def interpolate(received: jax.Array, positions: jax.typing.ArrayLike) -> jax.Array:
    """Returns weights that interpolate a polynomial at 0 from its values.

    aᵢ = ∏ⱼ αⱼ / (αⱼ - αᵢ) over the other workers j that answered.
    With delta = (pⱼ - pᵢ) mod n a factor has modulus 1 / (2 sin(pi delta / n)) and
    phase pi (2 delta - n) / (2n): log-moduli add, phases are integers modulo 4n,
    and a batch of masks, in the order of the points, is one product with fixed tables
    of shape (n, 3n).

    Args:
      received: bool (..., num_workers).
      positions: int (num_workers,), the pᵢ of the code's points exp(2πi pᵢ / n).

    Returns:
      Complex (..., 1, num_workers) in JAX's default precision, zero at stragglers.
      Rounded about as little as numbers of that precision can be.
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

    # Exact integers from here on; sines, cosines and powers come from tables since
    # their arguments in radians would be rounded.
    coarse_sum = coarse_sum.astype(jnp.int32)
    exponent = coarse_sum >> _FRACTION_BITS
    fraction = coarse_sum & (2**_FRACTION_BITS - 1)
    power, power_rest = _table_entries(
        np.exp2(np.arange(2**_FRACTION_BITS) / 2**_FRACTION_BITS), fraction, dtype
    )
    growth = jnp.expm1(np.log(2) * remainder_sum)
    power_rest = power_rest + (power + power_rest) * growth
    turns = phase_sum.astype(jnp.int32) % (4 * num_workers)
    angles = np.pi * np.arange(4 * num_workers) / (2 * num_workers)

    def part(function):
        entry, tail = _table_entries(function(angles), turns, dtype)
        small = power * tail + power_rest * (entry + tail)
        return jnp.ldexp(power * entry + small, exponent)

    weights = jax.lax.complex(part(np.cos), part(np.sin))[..., positions]
    return jnp.where(received, weights, 0)[..., None, :]


def _table_entries(table, index, dtype):
    """Entries of a table in two parts: a few leading bits, and the rest."""
    mantissa, exponent = np.frexp(table)
    leading = np.ldexp(
        np.round(np.ldexp(mantissa, _TABLE_BITS)), exponent - _TABLE_BITS
    )
    return (
        jnp.asarray(leading, dtype)[index],
        jnp.asarray(table - leading, dtype)[index],
    )


def lagrange_weights(
    rows: Rows, positions: jax.typing.ArrayLike, num_stragglers: int
) -> tuple[jax.Array, jax.Array]:
    """Returns Lagrange weights, and better ones for the masks where those fall short.

    Interpolation does not apply to masks with fewer answers than decoding needs, which
    are left to a decomposition. And some masks amplify rounding: their stragglers are
    neighbours on the circle, by and large, and Lagrange's weights grow until they miss
    the target. Where the miss is above rounding, weights are found again with the dual
    code, which trades it against their norm, and the better ones are taken. What still
    misses is decomposed, and so are all of these masks where there are many stragglers.

    Args:
      rows: those of a code with a target of ones.
      positions: as for `interpolate`.
      num_stragglers: what the code survives.

    Returns:
      (..., 1, num_workers), and bool (...), the masks to decompose.
    """
    received, matrix, norms, target, _ = rows
    weights = interpolate(received, positions)
    is_short = (~received).sum(-1) > num_stragglers
    weights = jnp.where(is_short[..., None, None], 0, weights).astype(matrix.dtype)
    # An estimate of the miss first: to compute it for all would take as long as the
    # weights took.
    limit = rounding(matrix.dtype)
    scaled = weights[..., 0, :] * norms
    size = jnp.sqrt(squared_norm(scaled) / squared_norm(target[0]))
    may_miss = ~(_EPS_OF_NORM * jnp.finfo(matrix.dtype).eps * size <= limit)

    def miss_of(weights, matrix, target, norms):
        return relative_miss(weights * norms, matrix, target)

    shared = (matrix, target, norms)

    def misses(weights, where):
        # Of the mask, so that under shard_map it varies with the device as that does.
        miss = masked_map(where, miss_of, size * 0, (weights,), shared, _CHUNK)
        return ~(miss <= limit)

    is_poor = misses(weights, may_miss)
    number = received.shape[-1]
    if 0 < 4 * num_stragglers <= number:
        dual = dual_of_polynomials(jnp.asarray(positions), num_stragglers, matrix.dtype)
        solve = functools.partial(dual_weights, num_stragglers=num_stragglers)
        weights = masked_map(
            is_poor,
            solve,
            weights,
            (weights, received),
            (*shared, *dual),
            _DUAL_CHUNK,
        )
        is_poor = misses(weights, is_poor)
    return weights, is_poor | is_short


def dual_of_polynomials(
    positions: jax.Array, num_stragglers: int, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """Returns what decodes from all workers, (n,), and what adds nothing, (n, s).

    Of polynomials of degree n - s - 1 at the n-th roots of unity: weights 1 / n, and at
    αᵢ those αᵢ / √n, ..., αᵢˢ / √n.
    """
    number = len(positions)
    powers = np.arange(number)[:, None] * np.arange(1, num_stragglers + 1) % number
    roots = np.exp(2j * np.pi * powers / number) / np.sqrt(number)
    return jnp.full(number, 1 / number, dtype), jnp.asarray(roots, dtype)[positions]
