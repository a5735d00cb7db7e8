"""Checks of matrices and cut-offs, with one wording for all scores."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._scores._gram_scores import default_rcond


def finite_matrix(name: str, value: Any) -> jax.Array:
    """`value` as a real, non-empty matrix; where not traced, a finite one."""
    matrix = _checks.float_array(name, value)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have shape (N, p); got {matrix.shape}")
    check_not_empty(name, matrix.shape)
    if not _validation.is_traced(value):
        check_finite(name, value, matrix.dtype)
    return matrix


def check_not_empty(name: str, shape: tuple[int, ...]) -> None:
    """At least one row and one column."""
    if min(shape) < 1:
        raise ValueError(
            f"{name} must have at least one row and one column; got {shape}"
        )


def check_finite(name: str, value: Any, dtype: jnp.dtype) -> None:
    """A concrete array without NaN or infinite entries.

    In the dtype that is computed in, where a value may overflow.
    """
    # On the device, where the array is; also inside a traced function, where all that
    # is computed in any other way is traced.
    with jax.ensure_compile_time_eval():
        array = jnp.asarray(value, dtype)
        if array.size == 0 or bool(_is_finite(array)):
            return
        num_wrong = int(_count_non_finite(array))
    raise ValueError(f"{name} must be finite; got {num_wrong} NaN or infinite entries")


def relative_cutoff(
    rcond: jax.typing.ArrayLike | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """`rcond`, or what stands for None, as a scalar of that dtype."""
    if rcond is None:
        num_rows, num_columns = shape
        return jnp.asarray(default_rcond(num_rows, num_columns, dtype), dtype)
    _validation.check_number("rcond", rcond, minimum=0)
    if not _validation.is_traced(rcond) and not np.asarray(rcond) < 1:
        raise ValueError(f"rcond must be less than 1; got {rcond}")
    return jnp.asarray(rcond, dtype)


def nan_for_wrong_cutoff(
    array: jax.Array, rcond: jax.typing.ArrayLike | None
) -> jax.Array:
    """`array`, but NaN where a traced `rcond` is not in [0, 1); so is what follows."""
    if not _validation.is_traced(rcond):
        return array
    cutoff = jnp.asarray(rcond)
    return jnp.where((cutoff >= 0) & (cutoff < 1), array, jnp.nan)


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    # Several times faster than a count. A maximum would lose a NaN on CPUs.
    return jnp.isfinite(jnp.sum(0 * array))


@jax.jit
def _count_non_finite(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))
