"""Poisson, systematic and pivotal row samples with exact inclusion probabilities."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import next_power_of_two

# Number of units in a probability of 1. Probabilities are integer multiples of a unit,
# 2**-32, so that their sums are exact.
_UNIT = 2.0**32
# Largest change of a probability in units: the largest float32 below 2**31, the limit
# of int32.
_MAX_SHIFT = 2.0**31 - 128
_LARGEST = np.uint32(2**32 - 1)


def poisson_rows(
    key: Array, probabilities: Array, sample_size: int
) -> tuple[Array, Array]:
    """Draws a Poisson sample of rows; returns its mask and inclusion probabilities."""
    is_certain, units = _in_units(sample_size * probabilities)
    bits = jax.random.bits(key, probabilities.shape, jnp.uint32)
    inclusion = _from_units(units, is_certain, probabilities.dtype)
    return is_certain | (bits < units), inclusion


def systematic_rows(
    key: Array, probabilities: Array, sample_size: int
) -> tuple[Array, Array]:
    """Draws a systematic row sample; returns its mask and inclusion probabilities.

    The inclusion probabilities are intervals, laid end to end in random order from a
    random start in [0, 1). A row is selected if its interval contains an integer. Ends
    of intervals are computed modulo 1, as integers modulo 2**32. An interval contains
    an integer if its end overflows. So probabilities are exact, unlike with sums of 1e5
    floats.
    """
    order_key, start_key = jax.random.split(key)
    num_rows = probabilities.shape[0]
    order = jnp.arange(num_rows, dtype=jnp.int32)
    order = jax.random.permutation(order_key, order)
    units, is_certain, inclusion = inclusion_of_fixed_size(
        probabilities[order], sample_size
    )
    start = jax.random.bits(start_key, (), jnp.uint32)
    ends = start + jnp.cumsum(units, dtype=jnp.uint32)
    contains_integer = ends < units
    is_selected = is_certain | contains_integer
    selected_rows = jnp.zeros(num_rows, bool).at[order].set(is_selected)
    inclusion_of_rows = jnp.zeros_like(probabilities).at[order].set(inclusion)
    return selected_rows, inclusion_of_rows


def inclusion_of_fixed_size(
    probabilities: Array, sample_size: int
) -> tuple[Array, Array, Array]:
    """Computes inclusion probabilities that sum exactly to the sample size.

    Returns:
      Three arrays (N,): the probabilities below 1 in units of 2**-32, uint32, with 0
      for the others; whether a probability is 1; and all probabilities as floats.
    """
    chances, num_certain = _inclusion_chances(probabilities, sample_size)
    is_certain, units = _in_units(chances)
    units = _fit_total(units, sample_size - num_certain)
    inclusion = _from_units(units, is_certain, probabilities.dtype)
    return units, is_certain, inclusion


def _in_units(chances: Array) -> tuple[Array, Array]:
    """Returns which probabilities are at least 1, and the others in units of 2**-32.

    A positive probability stays positive.
    """
    is_certain = chances >= 1
    units = jnp.round(chances * _UNIT)
    # The conversion of 2**32 to uint32 is undefined.
    units = jnp.where(units >= _UNIT, _LARGEST, units.astype(jnp.uint32))
    units = jnp.where(chances > 0, jnp.maximum(units, 1), 0).astype(jnp.uint32)
    return is_certain, jnp.where(is_certain, 0, units)


def _from_units(units: Array, is_certain: Array, dtype: np.dtype) -> Array:
    chances = units.astype(dtype) / _UNIT
    return jnp.where(is_certain, 1, chances).astype(dtype)


def _inclusion_chances(probabilities: Array, sample_size: int) -> tuple[Array, Array]:
    """Computes inclusion probabilities of at most 1; also counts those that are 1."""
    descending = -jnp.sort(-probabilities)
    num_rows = descending.shape[0]
    tails = jnp.cumsum(descending[::-1])[::-1]
    remaining = sample_size - jnp.arange(num_rows)
    # Without the tolerance, rounding may leave a probability just below 1 instead of 1.
    tolerance = 1 - 8 * jnp.finfo(descending.dtype).eps
    is_certain = (descending > 0) & (remaining > 0)
    is_certain &= remaining * descending >= tolerance * tails
    num_certain = jnp.sum(jnp.cumprod(is_certain), dtype=jnp.int32)
    last = jnp.maximum(num_certain - 1, 0)
    smallest_certain = jnp.where(num_certain > 0, descending[last], jnp.inf)
    # Rows with inclusion probability 1 are counted again, by a threshold: rounding of
    # `tails` may have treated equal probabilities differently.
    num_certain = jnp.sum(descending >= smallest_certain, dtype=jnp.int32)
    last = jnp.minimum(num_certain, num_rows - 1)
    tail = jnp.where(num_certain < num_rows, tails[last], 0)
    factor = (sample_size - num_certain) / jnp.where(tail > 0, tail, 1)
    below_one = 1 - jnp.finfo(descending.dtype).epsneg
    chances = jnp.minimum(factor.astype(descending.dtype) * probabilities, below_one)
    return jnp.where(probabilities >= smallest_certain, 1, chances), num_certain


def _fit_total(units: Array, total: Array) -> Array:
    """Adjusts rounded probabilities so that they sum to the integer `total`."""

    def excess(units: Array) -> tuple[Array, Array]:
        """Returns the sum minus `total`: an integer, and a rest in units of 2**-32."""
        ends = jnp.cumsum(units, dtype=jnp.uint32)
        num_overflows = jnp.sum(ends < units, dtype=jnp.int32)
        fraction = lax.bitcast_convert_type(ends[-1], jnp.int32)
        return num_overflows + (fraction < 0) - total, fraction

    def shift(units: Array, by: Array) -> Array:
        room_below = jnp.minimum(units, 2**31 - 1).astype(jnp.int32) - 1
        room_above = jnp.minimum(_LARGEST - units, 2**31 - 1).astype(jnp.int32)
        by = jnp.where(units > 0, jnp.clip(by, -room_below, room_above), 0)
        return units + lax.bitcast_convert_type(by, jnp.uint32)

    # First, all probabilities are changed in proportion and rounded to units. A few
    # units remain: each of the first rows then gains or loses one unit.
    for _ in range(2):
        whole, fraction = excess(units)
        share = (whole + fraction / _UNIT) / jnp.maximum(total, 1)
        by = -units.astype(jnp.float32) * share.astype(jnp.float32)
        by = jnp.round(jnp.clip(by, -_MAX_SHIFT, _MAX_SHIFT))
        units = shift(units, by.astype(jnp.int32))
    _, fraction = excess(units)
    is_free = (units > 1) & (units < _LARGEST)
    is_moved = is_free & (jnp.cumsum(is_free) <= jnp.abs(fraction))
    return shift(units, jnp.where(is_moved, -jnp.sign(fraction), 0))


# State of a pivotal sample: the rows that still compete, their probabilities in units
# of 2**-32, and the mask of selected rows.
_State: TypeAlias = tuple[Array, Array, Array]


def permutation_of_rows(order: ArrayLike, num_rows: int) -> Array:
    """Converts an order of rows to int32; raises ValueError unless a permutation.

    A traced order is checked by `is_permutation`.
    """
    order = array_validation.as_array("order", order, "integers", N=num_rows)
    if not array_validation.is_traced(order):
        if not np.array_equal(np.sort(order), np.arange(num_rows)):
            raise ValueError(
                f"order must have each of the {num_rows} rows once, numbered from 0; "
                f"got {validation.in_short(order)}"
            )
    return jnp.asarray(order, jnp.int32)


def is_permutation(order: Array) -> Array:
    """Returns whether an order contains each row exactly once."""
    return jnp.all(jnp.sort(order) == jnp.arange(len(order)))


def pivotal_rows(
    key: Array, probabilities: Array, sample_size: int, order: Array
) -> tuple[Array, Array]:
    """Draws a pivotal sample of rows; returns its mask and inclusion probabilities.

    Rows are the leaves of a complete binary tree, in the given order. At each node, the
    undecided rows of its two subtrees compete. One of them is decided: it is selected
    or rejected. The other goes on to the parent, with the rest of both probabilities.
    """
    units, is_certain, inclusion = inclusion_of_fixed_size(probabilities, sample_size)
    num_rows = len(probabilities)
    num_leaves = max(next_power_of_two(num_rows), 2)
    num_levels = num_leaves.bit_length() - 1
    num_matches = num_leaves // 2
    padding = (0, num_leaves - num_rows)

    def compete(level: Array, state: _State) -> _State:
        rows, units, is_selected = state
        level_key = jax.random.fold_in(key, level)
        bits = jax.random.bits(level_key, (num_matches,), jnp.uint32)
        first = units[0::2]
        # Sums are integers modulo 2**32, without rounding. So the sample size is exact.
        total = first + units[1::2]
        is_above_one = total < first
        # If the sum of both probabilities is below 1, one row goes on with the sum, and
        # the other is rejected. A row goes on with a probability in proportion to its
        # own. If the sum is at least 1, one row goes on with the sum minus 1, and the
        # other is selected. A row goes on with a probability in proportion to 1 minus
        # its own.
        weight = jnp.where(is_above_one, -first, first)
        total_weight = jnp.where(is_above_one, -total, total)
        first_goes_on = _below(bits, total_weight) < weight
        goes_on = jnp.where(first_goes_on, rows[0::2], rows[1::2])
        decided = jnp.where(first_goes_on, rows[1::2], rows[0::2])
        selected = jnp.where(is_above_one, decided, num_rows)
        is_selected = is_selected.at[selected].set(True, mode="drop")
        # The next level has half as many nodes. Padding keeps shapes constant.
        rows = jnp.pad(goes_on, (0, num_matches))
        units = jnp.pad(total, (0, num_matches))
        return rows, units, is_selected

    leaves = (jnp.pad(order, padding), jnp.pad(units[order], padding), is_certain)
    *_, is_selected = lax.fori_loop(np.int32(0), np.int32(num_levels), compete, leaves)
    return is_selected, inclusion


def _below(bits: Array, size: Array) -> Array:
    """Converts random bits to a uniform integer below a bound."""
    # Computes bits * size // 2**32 by halves of 16 bits, since the product has 64 bits.
    half = jnp.uint32(2**16)
    high, low = jnp.divmod(bits, half)
    size_high, size_low = jnp.divmod(size, half)
    middle = high * size_low + low * size_low // half
    carry = (low * size_high + middle % half) // half
    return jnp.where(size == 0, bits, high * size_high + middle // half + carry)
