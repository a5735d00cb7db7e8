"""Checks that the least-squares solvers share."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._matrix_checks import (
    check_finite,
    finite_matrix,
    relative_cutoff,
)

T = TypeVar("T")


def finite_array(name: str, value: Any) -> jax.Array:
    """A float array, whose entries are finite where they are known."""
    array = _checks.float_array(name, value)
    if not _validation.is_traced(value):
        check_finite(name, value, array.dtype)
    return array


def system(matrix: Any, target: Any) -> tuple[jax.Array, jax.Array]:
    """X (N, p) and y (N,) or (N, c), in one dtype."""
    matrix, target = finite_matrix("matrix", matrix), finite_array("target", target)
    if target.ndim not in (1, 2):
        raise ValueError(f"target must have shape (N,) or (N, c); got {target.shape}")
    if target.shape[0] != matrix.shape[0]:
        raise ValueError(
            "target must have as many rows as matrix; got target of shape "
            f"{target.shape} and matrix of shape {matrix.shape}"
        )
    if target.size == 0:
        raise ValueError(f"target must not be empty; got shape {target.shape}")
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    return matrix.astype(dtype), target.astype(dtype)


def sketch_size(value: Any, num_rows: int, num_columns: int) -> int:
    """A number of sketched rows that can keep the rank of the matrix."""
    value = _validation.check_int("sketch_size", value, minimum=1)
    rank = min(num_rows, num_columns)
    if value < rank:
        raise ValueError(
            "sketch_size must be at least the rank that the matrix may have, "
            f"min(N, p) = {rank}; got {value}"
        )
    return value


def cutoff(
    rcond: jax.typing.ArrayLike | None, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """`rcond`, or by default what keeps all but rounding.

    In rank-deficient matrices of up to half a million rows, the factorisations of
    X and of its sketches gave singular values of up to 5 units in the place of 0. A
    larger cut-off would cost residual where X is not deficient.
    """
    if rcond is None:
        rcond = (4 + min(shape) ** 0.5) * float(jnp.finfo(dtype).eps)
    return relative_cutoff(rcond, shape, dtype)


def regulariser(ridge: Any, dtype: jnp.dtype) -> jax.Array | None:
    """A non-negative, finite number; None where it is known to be zero.

    A traced one that is negative is NaN.
    """
    _validation.check_number("ridge", ridge, minimum=0)
    if not _validation.is_traced(ridge):
        if ridge == 0:
            return None
        if not np.isfinite(ridge):
            raise ValueError(f"ridge must be finite; got {ridge}")
    ridge = jnp.asarray(ridge, dtype)
    return jnp.where(ridge >= 0, ridge, jnp.nan)


def stopping_tolerance(value: Any, default: float, dtype: jnp.dtype) -> jax.Array:
    """A non-negative number, or the default where it is None."""
    if value is None:
        return jnp.asarray(default, dtype)
    _validation.check_number("tolerance", value, minimum=0)
    return jnp.asarray(value, dtype)


def every_target(solve: Callable[[jax.Array], T], target: jax.Array) -> T:
    """`solve` of y, or of every column of y, with the columns as the last axis."""
    if target.ndim == 1:
        return solve(target)
    return jax.vmap(solve, in_axes=1, out_axes=-1)(target)
