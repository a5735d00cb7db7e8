"""Bisection of whole numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
