"""Bisection over integers and times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common.arrays import varying_with


def first_true(
    is_true: Callable[[jax.Array], jax.Array], count: jax.Array
) -> jax.Array:
    """Finds the smallest integer for which a monotone condition is true.

    Integers are from 0 to count - 1. Returns count if the condition is true for none.
    The condition must be false first, then true. The largest integer is tried first,
    because rounds that do not decode yet are the usual case.
    """
    none = varying_with(count > 0, jnp.zeros_like(count))

    def halve(carry):
        low, high, middle = carry
        is_above = is_true(middle)
        low = jnp.where(is_above, low, middle)
        high = jnp.where(is_above, middle, high)
        return low, high, low + (high - low) // 2

    def is_wide(carry):
        low, high, _ = carry
        return low + 1 < high

    _, first, _ = jax.lax.while_loop(is_wide, halve, (none - 1, count, count - 1))
    return first


def first_time(is_true: Callable[[jax.Array], ArrayLike], last: jax.Array) -> jax.Array:
    """Finds the smallest time for which a monotone condition is true.

    It is at least 0, or infinity if there is none.

    Args:
      is_true: Monotone predicate of a time.
      last: Largest time. Sets the dtype of the result, and makes it NaN if it is NaN.
    """
    # Nonnegative floats have the same order as their bit patterns, which are integers.
    int_dtype = jnp.int32 if last.dtype == np.float32 else jnp.int64
    never = jnp.where(jnp.isnan(last), last, jnp.inf)

    def is_true_at(bits):
        return jnp.asarray(is_true(jax.lax.bitcast_convert_type(bits, last.dtype)))

    bits_of_never = jax.lax.bitcast_convert_type(never, int_dtype)
    bits = first_true(is_true_at, bits_of_never)
    return jax.lax.bitcast_convert_type(bits, last.dtype)
