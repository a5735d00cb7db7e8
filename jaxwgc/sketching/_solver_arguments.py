"""Arguments that several solvers and scores share: checks, conversions, defaults."""

from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.conversions import concrete
from jaxwgc.sketching._conversions import finite_array, scalar


class HasDtype(Protocol):
    """An array, or a pytree of arrays that are one matrix."""

    @property
    def dtype(self) -> np.dtype: ...


T = TypeVar("T", bound=HasDtype)


def right_hand_side(target: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Checks and converts the right-hand side y for a matrix of the given shape."""
    array = finite_array("target", target)
    if array.ndim not in (1, 2) or len(array) != shape[0] or array.size == 0:
        raise ValueError(
            f"target must have shape (N,) or (N, c); got {array.shape} with a matrix "
            f"of shape {shape}"
        )
    return array


def sketch_size(value: int, shape: tuple[int, ...], more: int = 0) -> int:
    """Checks that a sketch size is at least min(N, p) + `more`."""
    value = validation.check_int("sketch_size", value, minimum=1)
    smallest = min(shape) + more
    if value < smallest:
        formula = f"min(N, p) + {more}" if more else "min(N, p)"
        raise ValueError(
            f"sketch_size must be at least {formula} = {smallest}; got {value}"
        )
    return value


def regulariser(ridge: ArrayLike, dtype: np.dtype) -> Array | None:
    """Converts a ridge to a non-negative, finite number, or None if it is zero.

    Subnormal numbers count as zero. A negative traced ridge becomes NaN.
    """
    array_validation.check_number("ridge", ridge, minimum=0)
    value = concrete(ridge, dtype)
    if value is None:
        ridge = jnp.asarray(ridge)
        return jnp.where(ridge >= 0, scalar(ridge, dtype), jnp.nan)
    if not np.isfinite(value):
        raise ValueError(f"ridge must be finite in {dtype}; got {ridge}")
    if value < jnp.finfo(dtype).tiny:
        return None
    return scalar(value, dtype)


def stopping_tolerance(
    value: ArrayLike | None, default: float, dtype: np.dtype
) -> Array:
    """Converts a tolerance to a non-negative number, or returns the default."""
    if value is None:
        return scalar(default, dtype)
    array_validation.check_number("tolerance", value, minimum=0)
    return scalar(value, dtype)


def with_cutoff(array: T, rcond: ArrayLike | None, default: float) -> tuple[T, Array]:
    """Returns an array or matrix, and the cutoff `rcond` or its default in its dtype.

    If a traced `rcond` is not in [0, 1), the array becomes NaN, and so does the result.
    """
    dtype = array.dtype
    if rcond is None:
        return array, scalar(default, dtype)
    array_validation.check_number("rcond", rcond, minimum=0)
    if not array_validation.is_traced(rcond):
        if np.asarray(rcond) >= 1:
            raise ValueError(f"rcond must be less than 1; got {rcond}")
        return array, scalar(rcond, dtype)
    if not jax.tree.leaves(array):
        array_validation.check_concrete("rcond", rcond, "Blocks are read on the host")
    rcond = jnp.asarray(rcond)
    is_valid = (rcond >= 0) & (rcond < 1)

    def nan_if_invalid(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(is_valid, leaf, jnp.nan)

    return jax.tree.map(nan_if_invalid, array), scalar(rcond, dtype)
