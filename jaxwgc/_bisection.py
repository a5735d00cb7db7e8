"""Bisection of whole numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def first_true(is_true: Callable[[jax.Array], Any], count: jax.Array) -> jax.Array:
    """Returns the least of 0 ... count - 1 for which it is true, and count if none.

    By bisection: what is true for a number has to be true for those above. The largest
    is tried first, since rounds that are under way are mostly not over.
    """
    # A zero that varies over the same axes of a mesh as the numbers.
    none = 0 * count

    def halve(carry):
        low, high, middle = carry
        is_above = is_true(middle)
        low, high = jnp.where(is_above, low, middle), jnp.where(is_above, middle, high)
        return low, high, low + (high - low) // 2

    start = none - 1, count, count - 1
    return jax.lax.while_loop(lambda carry: carry[0] + 1 < carry[1], halve, start)[1]


def first_time(is_true: Callable[[jax.Array], Any], last: jax.Array) -> jax.Array:
    """Returns the least time of at least 0 for which it is true, and infinity if none.

    Args:
      is_true: See `first_true`, of a time.
      last: A time; its dtype is that of the result, which is NaN if it is.
    """
    # Floats of at least 0 have the order of their bits.
    kind = jnp.int32 if last.dtype == np.float32 else jnp.int64
    never = jnp.where(jnp.isnan(last), last, jnp.inf)
    bits = first_true(
        lambda bits: is_true(jax.lax.bitcast_convert_type(bits, last.dtype)),
        jax.lax.bitcast_convert_type(never, kind),
    )
    return jax.lax.bitcast_convert_type(bits, last.dtype)
