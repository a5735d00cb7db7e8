"""Decoding by polynomial interpolation at roots of unity."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import product, squares, working
from jaxwgc._common.pytrees import Static
from jaxwgc._common.tolerances import ROUNDING
from jaxwgc.decoders._decoder import Array, Decoder, Interpolation
from jaxwgc.decoders._dual import DualCode, dual_weights
from jaxwgc.decoders._systems import System, column_weights, solve_poor, squared_norm

# Base-2 logarithms of moduli are split into a multiple of 2**-10 and a small remainder.
# Sums of multiples are exact in float32. Sums of remainders have negligible rounding.
_FRACTION_BITS = 10
# Number of leading bits of table entries. Their products are exact in float32. Products
# with the remaining bits are added.
_TABLE_BITS = 11
# Residual due to rounding of weights and of B, in machine epsilons of the norm of the
# weights. Measured for random and neighbouring stragglers of 50 to 200 workers: 0.2 to
# 0.45 in float32, and 1.4 to 105 in float64. Residuals in float64 may therefore exceed
# the bound.
_EPS_OF_NORM = {32: 0.5, 64: 1}


def interpolate(received: jax.Array, positions: jax.typing.ArrayLike) -> jax.Array:
    """Computes weights that interpolate a polynomial at 0 from its values.

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
    is_other = difference != 0
    modulus = 2 * np.sin(np.pi * difference / num_workers)
    log_modulus = -np.log2(modulus, where=is_other, out=np.zeros_like(modulus))
    coarse = np.round(log_modulus * 2**_FRACTION_BITS)
    remainder = log_modulus - coarse / 2**_FRACTION_BITS
    phase = np.where(is_other, 2 * difference - num_workers, 0)
    tables = jnp.asarray(np.concatenate([coarse, phase, remainder], 1), dtype)
    sums = product(in_order.astype(dtype), tables)
    coarse_sum, phase_sum, remainder_sum = jnp.split(sums, 3, axis=-1)

    # Exponents and angles are exact integers from here on. Tables give sines, cosines
    # and powers, because arguments in radians would be rounded.
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
    parts = parts * _power_of_two(exponent, dtype)[..., None]
    weights = jax.lax.complex(parts[..., 0], parts[..., 1])
    weights = weights[..., positions]
    return jnp.where(received, weights, 0)[..., None, :]


def _table_entries(
    table: np.ndarray, index: jax.Array, dtype: jax.typing.DTypeLike
) -> list[jax.Array]:
    """Looks up table rows in two parts: a few leading bits, and the rest."""
    mantissa, exponent = np.frexp(table)
    leading_bits = np.round(np.ldexp(mantissa, _TABLE_BITS))
    leading = np.ldexp(leading_bits, exponent - _TABLE_BITS)
    split_table = np.concatenate([leading, table - leading], -1)
    return jnp.split(jnp.asarray(split_table, dtype)[index], 2, axis=-1)


class Lagrange(Decoder):
    """Decodes Reed-Solomon codes in closed form, a batch of masks at a time.

    If stragglers are neighbours on the circle of points, weights are large, and the
    residual can exceed 1e-4 in float32 (1e-10 in float64). If s is small, weights of
    these masks are corrected by the dual code, as in `Dual`. Masks that still have such
    a residual, and masks with fewer than n - s responses, are decomposed. Weighted
    codes are decoded as in `LeastSquares`.

    Attributes:
      positions: int (num_workers,), a permutation of 0, ..., n - 1: the polynomials of
        the code are evaluated at exp(2πi positions[i] / n) by worker i.
      num_stragglers: s; the polynomials have degree at most n - s - 1.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(4, num_parts=4, copies=2)
      >>> code.decoders[0]
      Lagrange(positions=array([0, 1, 2, 3]), num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding(code, received).effective_weights.round(3)
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient descent using
      Reed-Solomon codes", ISIT 2018; Charalambides, Pilanci, Hero, "Weighted gradient
      coding with leverage score sampling", ICASSP 2020, proof of theorem 4.1.
    """

    positions: Array
    num_stragglers: Static[int]

    needs: ClassVar[str] = "evaluated at roots of unity, such as codes.reed_solomon"
    is_optimal: ClassVar[bool] = True

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        array_validation.as_array(
            "positions", self.positions, "integers", num_workers=len(matrix)
        )
        validation.check_stragglers(self.num_stragglers, len(matrix))

    def interpolation(self, mask: jax.Array) -> Interpolation:
        positions = working(self.positions)
        number = len(positions)
        points = np.exp(2j * np.pi * np.arange(number) / number)
        exponents = np.arange(self.num_stragglers + 1)[:, None]
        weights = interpolate(mask, positions)[..., 0, :]
        # Powers of the points are points.
        powers = jnp.asarray(
            points[exponents * np.arange(number) % number], weights.dtype
        )
        return Interpolation(weights=weights, powers=powers[:, positions])

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        positions = working(self.positions)
        weights, is_poor = _closed_form(
            mask, positions, self.num_stragglers, matrix, target
        )
        attempt = None
        # The system of the dual code has size s.
        if 0 < 2 * self.num_stragglers <= min(matrix.shape):
            powers = np.arange(len(positions) - self.num_stragglers, len(positions))
            attempt = Partial(_by_dual_code, positions=positions, powers=powers)
        return solve_poor(is_poor, weights, mask, matrix, target, attempt)


def _by_dual_code(
    weights: jax.Array,
    mask: jax.Array,
    system: System,
    positions: jax.Array,
    powers: jax.Array,
) -> jax.Array:
    """Corrects inaccurate weights of one mask by the dual code.

    Weights αᵢ⁻ʲ decode to zero if the power j is above the degrees of the code, n - s
    to n - 1. If all workers respond, the mean of the values of a polynomial at all
    points is its value at 0.

    Args:
      weights: From the closed form, (1, num_workers).
      mask: bool (num_workers,).
      system: System of the code.
      positions: int (num_workers,).
      powers: The powers j, int (num_stragglers,).
    """
    number = len(positions)
    dtype = system.matrix.dtype
    circle = np.exp(-2j * np.pi * np.arange(number) / number)
    turns = positions[:, None] * powers % number
    null = jnp.asarray(circle / np.sqrt(number), dtype)[turns]
    dual = DualCode(of_all=jnp.full(number, 1 / number, dtype), null=null)
    num_stragglers = len(powers)
    return jax.lax.cond(
        (~mask).sum() <= num_stragglers,
        lambda: dual_weights(weights, mask, system, dual, num_stragglers),
        lambda: weights,
    )


@functools.partial(jax.jit, static_argnames="num_stragglers")
def _closed_form(
    mask: jax.Array,
    positions: jax.Array,
    num_stragglers: int,
    matrix: jax.Array,
    target: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes weights by Lagrange's formula, and which may be inaccurate.

    Interpolation does not apply to masks with too few messages. On other masks it may
    amplify rounding: if their stragglers are neighbours on the circle, weights are so
    large that the residual grows.
    """
    dtype = jnp.promote_types(matrix.dtype, jnp.float32)
    weights = interpolate(mask, positions).astype(dtype)
    is_short = (~mask).sum(-1) > num_stragglers
    # The exact residual would take as long as the weights, so it is estimated.
    columns = column_weights(target)
    scaled = matrix.astype(dtype) * (1 / columns.astype(dtype))
    sizes = squared_norm(scaled)
    norm = product(squares(weights[..., 0, :]), sizes)
    size = jnp.sqrt(norm / squared_norm(target[0] / columns))
    precision = jnp.finfo(dtype)
    estimate = _EPS_OF_NORM[precision.bits] * precision.eps * size
    return weights, is_short | ~(estimate <= ROUNDING[precision.bits])


def _power_of_two(exponents: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Computes powers of two, clipped to normal numbers of the dtype."""
    precision = jnp.finfo(dtype)
    clipped = jnp.clip(exponents, precision.minexp, precision.maxexp - 1)
    biased = clipped - precision.minexp + 1
    bits = biased.astype(f"int{precision.bits}")
    return jax.lax.bitcast_convert_type(bits << precision.nmant, dtype)
