"""Bisection over integers and times."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def first_true(is_true: Callable[[jax.Array], Any], count: jax.Array) -> jax.Array:
    """Returns the smallest i from 0 to count - 1 with `is_true(i)`, or count if none.

    The predicate must be monotone: false, then true. The largest is tried first, since
    unfinished rounds are the usual case.
    """
    # The zero is derived from `count`, so that under shard_map it varies over the mesh
    # axes of `count`.
    none = 0 * count

    def halve(carry):
        low, high, middle = carry
        is_above = is_true(middle)
        low = jnp.where(is_above, low, middle)
        high = jnp.where(is_above, middle, high)
        return low, high, low + (high - low) // 2

    start = none - 1, count, count - 1
    return jax.lax.while_loop(lambda carry: carry[0] + 1 < carry[1], halve, start)[1]


def first_time(is_true: Callable[[jax.Array], Any], last: jax.Array) -> jax.Array:
    """Returns the smallest time t of at least 0 with `is_true(t)`, or infinity if none.

    Args:
      is_true: Monotone predicate of a time.
      last: Largest time. Sets the dtype of the result, and makes it NaN if it is NaN.
    """
    # Nonnegative floats are ordered like their bit patterns.
    kind = jnp.int32 if last.dtype == np.float32 else jnp.int64
    never = jnp.where(jnp.isnan(last), last, jnp.inf)
    bits = first_true(
        lambda bits: is_true(jax.lax.bitcast_convert_type(bits, last.dtype)),
        jax.lax.bitcast_convert_type(never, kind),
    )
    return jax.lax.bitcast_convert_type(bits, last.dtype)
