"""Lagrange interpolation: a closed form for codes evaluated at roots of unity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc._some_masks import masked_map
from jaxwgc._targets import rounding
from jaxwgc.decoders._accuracy import System, squared_norm, systems_of
from jaxwgc.decoders._decomposition import decompose
from jaxwgc.decoders._dual import DualCode, dual_weights

# Moduli are split into a multiple of 1 / 2**10 (in log2), whose sums are exact in
# float32, and a remainder so small that the rounding of its sum does not matter.
_FRACTION_BITS = 10
# Tables are split into entries of so many bits, whose products are exact in float32,
# and what is left.
_TABLE_BITS = 11
# Rounding weights and entries of B makes weights miss by at most about so many eps of
# their norm: by a fifth to a half, over random masks of n from 50 to 200.
_EPS_OF_NORM = 0.5


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


@functools.partial(jax.jit, static_argnames=("num_stragglers", "is_uniform"))
def lagrange_weights(
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    positions: jax.Array,
    num_stragglers: int,
    is_uniform: bool,
) -> jax.Array:
    """Computes Lagrange weights, and better ones for the masks where those fall short.

    Interpolation does not apply to masks with fewer messages than decoding needs, which
    are left to a decomposition. Other masks amplify rounding: their stragglers are
    neighbours on the circle, by and large, and the weights grow until they miss the
    target. If the residual is above rounding, weights are computed with the dual code,
    which trades the residual against their norm; if that is above rounding, too, or if
    there are many stragglers, by a decomposition. The best weights are returned.

    Args:
      mask: bool (..., num_workers).
      matrix: (num_workers, num_parts).
      target: (1, num_parts).
      positions: As for `interpolate`.
      num_stragglers: Number of stragglers that the code tolerates.
      is_uniform: Whether all parts are known to have the same weight.

    Returns:
      (..., 1, num_workers), zero at stragglers.
    """
    systems = systems_of(matrix, target, is_uniform)
    plain, dtype = systems.at(0), systems.matrix.dtype
    is_short = (~mask).sum(-1) > num_stragglers
    weights = interpolate(mask, positions)
    weights = jnp.where(is_short[..., None, None], 0, weights).astype(dtype)
    limit = rounding(dtype)
    dual = ()
    if 0 < 4 * num_stragglers <= len(matrix):
        dual = dual_of_polynomials(positions, num_stragglers, dtype)

    def improve(weights, mask, *arrays):
        systems, dual = System(*arrays[:3]), arrays[3:]
        plain = systems.at(0)
        solvers = [lambda weights: decompose(weights, mask, *systems)]
        if dual:
            code = DualCode(*dual)
            solvers.insert(
                0,
                lambda weights: dual_weights(
                    weights, mask, plain, code, num_stragglers
                ),
            )
        for solve in solvers:
            is_good = plain.miss(weights) <= limit
            weights = jax.lax.cond(is_good, lambda weights: weights, solve, weights)
        return weights

    # An estimate of the residual first: to compute it for all would take as long as the
    # weights took.
    size = jnp.sqrt(
        squared_norm(weights[..., 0, :] * plain.norms) / squared_norm(plain.target[0])
    )
    may_miss = is_short | ~(_EPS_OF_NORM * jnp.finfo(dtype).eps * size <= limit)
    return masked_map(may_miss, improve, weights, (weights, mask), (*systems, *dual))


def dual_of_polynomials(
    positions: jax.Array, num_stragglers: int, dtype: jax.typing.DTypeLike
) -> DualCode:
    """Returns the dual code, with s columns.

    Of polynomials of degree n - s - 1 at the n-th roots of unity: weights 1 / n, and at
    αᵢ those αᵢ / √n, ..., αᵢˢ / √n.
    """
    number = len(positions)
    powers = np.arange(number)[:, None] * np.arange(1, num_stragglers + 1) % number
    roots = np.exp(2j * np.pi * powers / number) / np.sqrt(number)
    null = jnp.asarray(roots, dtype)[positions]
    return DualCode(jnp.full(number, 1 / number, dtype), null)
