"""Pivotal sampling of rows, which spreads a sample over the order of the rows."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import next_power_of_two
from jaxwgc.sketching._samplers._exact_inclusion import inclusion_of_fixed_size

# Rows that compete, their probabilities in units of 2**-32, and the selected rows.
_State: TypeAlias = tuple[Array, Array, Array]


def permutation_of_rows(order: ArrayLike, num_rows: int) -> Array:
    """Checks an order of rows, and converts it to int32 (num_rows,).

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
    """Returns whether an order has each row once."""
    return jnp.all(jnp.sort(order) == jnp.arange(len(order)))


def pivotal_rows(
    key: Array, probabilities: Array, sample_size: int, order: Array
) -> tuple[Array, Array]:
    """Draws a pivotal sample: a mask of its rows, and all inclusion probabilities.

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
        # Sums are integers modulo 2**32. They are exact, and so is the sample size.
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
        # The parents are half as many as the nodes. The rest of the arrays is padding.
        rows = jnp.pad(goes_on, (0, num_matches))
        units = jnp.pad(total, (0, num_matches))
        return rows, units, is_selected

    leaves = (jnp.pad(order, padding), jnp.pad(units[order], padding), is_certain)
    *_, is_selected = lax.fori_loop(np.int32(0), np.int32(num_levels), compete, leaves)
    return is_selected, inclusion


def _below(bits: Array, size: Array) -> Array:
    """Returns ⌊bits · size / 2³²⌋, a random number below `size`; 0 stands for 2³²."""
    # Products of halves fit into 32 bits.
    half = jnp.uint32(2**16)
    high, low = jnp.divmod(bits, half)
    size_high, size_low = jnp.divmod(size, half)
    middle = high * size_low + low * size_low // half
    carry = (low * size_high + middle % half) // half
    return jnp.where(size == 0, bits, high * size_high + middle // half + carry)
