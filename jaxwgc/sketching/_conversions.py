"""Conversions of arguments to arrays and sparse matrices of the computation."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxwgc import _validation
from jaxwgc._arrays import is_kind, is_sparse_of_scipy, promoted

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO

# End of the error message of functions that do not support sparse matrices.
_TAKERS = (
    ", or use another score, sketch_and_solve, preconditioned or choose_ridge, which "
    "take sparse matrices"
)

# Numbers and dense arrays.


def float_array(name: str, value: Any) -> Array:
    """Converts `value` to a real array in the dtype of the computation.

    Integers and bools become the default float, half precision becomes float32.
    """
    _validation.check_dense(name, value)
    if isinstance(value, Array) or _validation.is_traced(value):
        array = jnp.asarray(value)
        _check_real(name, value, array)
        return promoted(array)
    # JAX compiles a program for each shape and dtype that it converts; NumPy does not.
    host_array = np.asarray(value)
    _check_real(name, value, host_array)
    with np.errstate(over="ignore"):
        return jax.device_put(promoted(host_array))


def _check_real(name: str, value: Any, array: Any) -> None:
    if not is_kind(array, "real numbers or bools"):
        raise TypeError(
            f"{name} must be real numbers; got {type(value).__name__} of {array.dtype}"
            f"{_advice_for_frame(value)}"
        )


def _advice_for_frame(value: Any) -> str:
    """Returns what to do with a data frame that is no matrix, as the end of an error.

    For other values, the text is empty.
    """
    if not (hasattr(value, "columns") and hasattr(value, "dtypes")):
        return ""
    names = []
    for name in value.columns:
        if not is_kind(np.asarray(value[name]), "real numbers or bools"):
            names.append(repr(name))
    if not names:
        return "; its columns have different dtypes: use frame.astype(float)"
    if len(names) == 1:
        return f"; drop column {names[0]}, or encode it as numbers"
    shown = ", ".join(names[:5])
    if len(names) > 5:
        shown += f" and {len(names) - 5} more"
    return f"; drop columns {shown}, or encode them as numbers"


def finite_array(name: str, value: Any) -> Array:
    """Converts `value` to a float array, and checks that a concrete one is finite."""
    array = float_array(name, value)
    _check_finite(name, value, array.dtype)
    return array


def finite_matrix(name: str, value: Any) -> Array:
    """Converts `value` to a real matrix, and checks that a concrete one is finite."""
    _validation.check_dense(name, value, _TAKERS)
    matrix = float_array(name, value)
    _validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
    _check_finite(name, value, matrix.dtype)
    return matrix


def scalar(value: ArrayLike, dtype: DTypeLike) -> Array:
    """Converts a number to a scalar array, without compilation unless traced."""
    if isinstance(value, Array):
        return value.astype(dtype)
    return jax.device_put(np.asarray(value, dtype))


def concrete(value: ArrayLike, dtype: DTypeLike) -> np.ndarray | None:
    """Converts `value` to a NumPy array of `dtype`, or returns None if it is traced.

    Call it with the argument itself: under `jax.jit` all values computed from an array
    are traced, even if the array is a constant.
    """
    if _validation.is_traced(value):
        return None
    # Values that overflow in this dtype become infinite, which checks then find.
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def gathered(array: Array) -> Array:
    """Replicates an array if it is sharded over a mesh with explicit axes."""
    return on_mesh_of(array, array)


def on_mesh_of(other: Array, array: Array) -> Array:
    """Replicates an array over the mesh of another one if that has explicit axes."""
    mesh = jax.typeof(other).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))


def _check_finite(name: str, value: Any, dtype: np.dtype) -> None:
    """Checks that there are no NaN or infinite entries, unless traced.

    The check is in the dtype of the computation, in which a value may overflow.
    """
    if _validation.is_traced(value):
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
    _validation.check_dense(name, value)
    return np.asarray(value)


def _compressed_rows(name: str, matrix: Any) -> Any:
    """Converts a real SciPy matrix to CSR format, sorted and without duplicates."""
    _check_real(name, matrix, matrix)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must have shape (N, p); got {matrix.shape}")
    rows = matrix.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows
