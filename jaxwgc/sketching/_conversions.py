"""Conversions of arguments to arrays and sparse matrices of the computation."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_sparse_of_scipy
from jaxwgc._common.conversions import check_real, concrete, float_array

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO

# End of the error message of functions that do not support sparse matrices.
_TAKERS = (
    ", or use another score, sketch_and_solve, preconditioned or choose_ridge, which "
    "take sparse matrices"
)

# Numbers and dense arrays.


def finite_array(name: str, value: Any) -> Array:
    """Converts `value` to a float array, and checks that a concrete one is finite."""
    array = float_array(name, value)
    _check_finite(name, value, array.dtype)
    return array


def finite_matrix(name: str, value: Any) -> Array:
    """Converts `value` to a real matrix, and checks that a concrete one is finite."""
    array_validation.check_dense(name, value, _TAKERS)
    matrix = float_array(name, value)
    validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
    _check_finite(name, value, matrix.dtype)
    return matrix


def scalar(value: ArrayLike, dtype: DTypeLike) -> Array:
    """Converts a number to a scalar array, without compilation unless traced."""
    if isinstance(value, Array):
        return value.astype(dtype)
    return jax.device_put(np.asarray(value, dtype))


def _check_finite(name: str, value: Any, dtype: np.dtype) -> None:
    """Checks that there are no NaN or infinite entries, unless traced.

    The check is in the dtype of the computation, in which a value may overflow.
    """
    if array_validation.is_traced(value):
        return
    if isinstance(value, np.ndarray):
        is_finite = np.isfinite(concrete(value, dtype)).all()
    else:
        # The check runs on the device of the array. It runs at once even inside a
        # traced function, in which other computations would be traced.
        with jax.ensure_compile_time_eval():
            array = jnp.asarray(value, dtype)
            is_finite = array.size == 0 or bool(_is_finite(array))
    if not is_finite:
        num_wrong = np.sum(~np.isfinite(np.asarray(value).astype(dtype)))
        raise ValueError(
            f"{name} must be finite; got {num_wrong} NaN or infinite entries"
        )


@jax.jit
def _is_finite(array: Array) -> Array:
    # This sum is several times faster than a count. Unlike a maximum on CPUs, it never
    # loses a NaN.
    return jnp.isfinite(jnp.sum(0 * array))


# Sparse matrices.


def sparse_matrix(name: str, value: Any) -> "BCOO":
    """Converts a sparse matrix of JAX or SciPy to a BCOO of real, finite entries."""
    from jax.experimental import sparse

    matrix = from_scipy(name, value)
    if not isinstance(matrix, sparse.BCOO):
        raise TypeError(
            f"{name} must be an array, a SciPy matrix or a BCOO, as "
            f"BCOO.from_scipy_sparse makes; got {type(matrix).__name__}"
        )
    if matrix.n_batch != 0 or matrix.n_sparse != 2 or matrix.n_dense != 0:
        raise ValueError(
            f"{name} must have two axes, both sparse; got n_batch = {matrix.n_batch}, "
            f"n_dense = {matrix.n_dense} and shape {matrix.shape}"
        )
    return sparse.BCOO(
        (finite_array(name, matrix.data), matrix.indices),
        shape=matrix.shape,
        indices_sorted=matrix.indices_sorted,
        unique_indices=matrix.unique_indices,
    )


def from_scipy(name: str, value: Any) -> Any:
    """Converts a sparse matrix of SciPy to a BCOO, and returns other values unchanged.

    Unlike `BCOO.from_scipy_sparse`, this compiles nothing and sums duplicates.
    """
    if not is_sparse_of_scipy(value):
        return value
    from jax.experimental import sparse

    rows = _compressed_rows(name, value)
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    indices = np.stack([row, rows.indices], axis=1).astype(np.int32)
    return sparse.BCOO(
        (finite_array(name, rows.data), jax.device_put(indices)),
        shape=rows.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def host_rows(name: str, value: Any) -> Any:
    """Converts rows to a NumPy array, or sparse rows to a CSR matrix of SciPy."""
    if is_sparse_of_scipy(value):
        return _compressed_rows(name, value)
    array_validation.check_dense(name, value)
    return np.asarray(value)


def _compressed_rows(name: str, matrix: Any) -> Any:
    """Converts a real SciPy matrix to CSR format, sorted and without duplicates."""
    check_real(name, matrix, matrix)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have shape (N, p); got {matrix.shape}")
    rows = matrix.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows
