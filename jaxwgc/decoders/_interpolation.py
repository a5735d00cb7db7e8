"""Lagrange interpolation: a closed form for codes evaluated at roots of unity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._product import product
from jaxwgc._some_masks import compute_where, in_any_lane
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import squared_norm
from jaxwgc.decoders._dual import dual_factors, dual_weights
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
# Masks that are decoded with the dual code side by side.
_CHUNK = 32


def interpolate(received: jax.Array, point_step: int) -> jax.Array:
    """Weights that interpolate a polynomial at 0 from its values at roots of unity.

    aᵢ = ∏ⱼ αⱼ / (αⱼ - αᵢ) over the other workers j that answered.
    With delta = (pⱼ - pᵢ) mod n a factor has modulus 1 / (2 sin(pi delta / n)) and
    phase pi (2 delta - n) / (2n): log-moduli add, phases are integers modulo 4n, and
    a batch of masks is one product with fixed tables of shape (n, 3n).

    Args:
      received: bool (..., num_workers).
      point_step: the m of the code's points pᵢ = m * i mod n.

    Returns:
      Complex (..., 1, num_workers) in JAX's default precision, zero at stragglers.
      Rounded about as little as numbers of that precision can be.
    """
    num_workers = received.shape[-1]
    dtype = jnp.result_type(float)
    points = point_step * np.arange(num_workers) % num_workers
    difference = (points[:, None] - points) % num_workers
    others = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = -np.log2(modulus, where=others, out=np.zeros_like(modulus))
    coarse = np.round(log_modulus * 2**_FRACTION_BITS)
    remainder = log_modulus - coarse / 2**_FRACTION_BITS
    phase = np.where(others, 2 * difference - num_workers, 0)
    tables = jnp.asarray(np.concatenate([coarse, phase, remainder], 1), dtype)
    sums = product(received.astype(dtype), tables)
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
        entry, rest = _table_entries(function(angles), turns, dtype)
        small = power * rest + power_rest * (entry + rest)
        return jnp.ldexp(power * entry + small, exponent)

    weights = jax.lax.complex(part(np.cos), part(np.sin))
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
    rows: Rows,
    num_stragglers: jax.typing.ArrayLike,
    point_step: int,
    dual_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Lagrange weights, and better ones for the masks where those fall short.

    Interpolation does not apply to masks with fewer answers than decoding needs, which
    are left to a decomposition. And some masks amplify rounding: their stragglers are
    neighbours on the circle, by and large, and Lagrange's weights grow until they miss
    the target. Where the miss is above rounding, weights are found again with the dual
    code, which trades it against their norm, and the better ones are taken. (Where
    `dual_size`, which is num_stragglers then, is 0, these masks are decomposed, too.)

    Args:
      rows: those of a code with a target of ones.
      num_stragglers: what the code survives.
      point_step: as for `interpolate`.
      dual_size: num_stragglers, or 0.

    Returns:
      (..., 1, num_workers), times norms, and bool (...), the masks to decompose.
    """
    received, matrix, norms, target, _ = rows
    weights = interpolate(received, point_step)
    is_short = (~received).sum(-1) > num_stragglers
    weights = jnp.where(is_short[..., None, None], 0, weights * norms)
    weights = weights.astype(matrix.dtype)
    # An estimate of the miss: to compute it would take as long as the weights took.
    size = jnp.sqrt(squared_norm(weights[..., 0, :]) / squared_norm(target[0]))
    miss = _EPS_OF_NORM * jnp.finfo(matrix.dtype).eps * size
    is_poor = ~(miss <= rounding(matrix.dtype))
    if not dual_size:
        return weights, is_poor | is_short
    solve = functools.partial(dual_weights, num_stragglers=dual_size)

    def improve():
        own, factors = (weights, received), dual_factors(matrix, dual_size)
        shared = (matrix, target, *factors)
        return compute_where(is_poor, solve, weights, own, shared, _CHUNK)

    return jax.lax.cond(in_any_lane(is_poor.any()), improve, lambda: weights), is_short
