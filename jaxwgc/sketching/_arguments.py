"""Checks of arguments, and conversions to arrays and sparse matrices."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_sparse_of_scipy
from jaxwgc._common.conversions import check_real, concrete, float_array, gathered

if TYPE_CHECKING:
    from jax.experimental.sparse import BCOO

# End of the error message of functions that do not support sparse matrices.
_TAKERS = (
    ", or use another score, sketch_and_solve, preconditioned or choose_ridge, which "
    "take sparse matrices"
)

# Numbers and dense arrays.


def finite_array(name: str, value: Any) -> Array:
    """Converts a value to a float array; rejects NaN and infinity unless traced."""
    array = float_array(name, value)
    _check_finite(name, value, array.dtype)
    return array


def finite_matrix(name: str, value: Any) -> Array:
    """Converts `value` to a real matrix on one device; rejects NaN and infinity."""
    array_validation.check_dense(name, value, _TAKERS)
    matrix = float_array(name, value)
    validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
    _check_finite(name, value, matrix.dtype)
    return gathered(matrix)


def nonnegative_array(
    name: str, value: Any, dtype: DTypeLike, largest: float = np.inf
) -> Array:
    """Converts numbers to an array; raises ValueError if negative or too large.

    Invalid traced numbers become NaN instead.
    """
    array = finite_array(name, value).astype(dtype)
    values = concrete(value, dtype)
    if values is None:
        return jnp.where((array >= 0) & (array <= largest), array, jnp.nan)
    is_valid = (values >= 0) & (values <= largest)
    rule = "not negative" if largest == np.inf else f"between 0 and {largest}"
    validation.check_entries(name, values, is_valid, rule)
    return array


def scalar(value: ArrayLike, dtype: DTypeLike) -> Array:
    """Converts a number to a scalar array; compiles nothing for Python numbers."""
    if isinstance(value, Array):
        return value.astype(dtype)
    return jax.device_put(np.asarray(value, dtype))


def _check_finite(name: str, value: Any, dtype: np.dtype) -> None:
    """Raises ValueError if a value that is not traced has NaN or infinite entries.

    The check is in the dtype of the computation, in which a value may overflow.
    """
    if array_validation.is_traced(value):
        return
    if isinstance(value, np.ndarray):
        is_finite = np.isfinite(concrete(value, dtype)).all()
    else:
        # The check runs on the device of the array. `eval_context` runs it immediately,
        # even while a function is traced.
        with jax.core.eval_context():
            array = jnp.asarray(value, dtype)
            is_finite = array.size == 0 or bool(_is_finite(array))
    if not is_finite:
        num_wrong = np.sum(~np.isfinite(np.asarray(value).astype(dtype)))
        raise ValueError(
            f"{name} must be finite; got {num_wrong} NaN or infinite entries"
        )


@jax.jit
def _is_finite(array: Array) -> Array:
    # 0 * array is NaN for NaN and infinite entries. A sum is several times faster than
    # a count. Unlike a maximum on CPUs, it never loses a NaN.
    return jnp.isfinite(jnp.sum(0 * array))


# Sparse matrices.


def sparse_matrix(name: str, value: Any) -> "BCOO":
    """Converts a sparse matrix of JAX or SciPy to a BCOO of real, finite entries."""
    from jax.experimental import sparse

    matrix = from_scipy(name, value)
    if not isinstance(matrix, sparse.BCOO):
        raise TypeError(
            f"{name} must be an array, a SciPy matrix or a BCOO (see "
            f"BCOO.from_scipy_sparse); got {type(matrix).__name__}"
        )
    if matrix.n_batch != 0 or matrix.n_sparse != 2 or matrix.n_dense != 0:
        raise ValueError(
            f"{name} must be a BCOO with two sparse axes; got n_batch = "
            f"{matrix.n_batch}, n_dense = {matrix.n_dense} and shape {matrix.shape}"
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


class HasDtype(Protocol):
    """Protocol of values with a dtype: arrays, and pytrees that represent a matrix."""

    @property
    def dtype(self) -> np.dtype: ...


T = TypeVar("T", bound=HasDtype)


def right_hand_side(target: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Converts targets to an array; raises ValueError if they do not fit the matrix."""
    array = finite_array("target", target)
    if array.ndim not in (1, 2) or len(array) != shape[0] or array.size == 0:
        raise ValueError(
            f"target must have shape (N,) or (N, c); got {array.shape} with a matrix "
            f"of shape {shape}"
        )
    return array


def sketch_size(value: int, shape: tuple[int, ...], more: int = 0) -> int:
    """Returns a sketch size; raises ValueError if it is below min(N, p) + `more`."""
    value = validation.check_int("sketch_size", value, minimum=1)
    smallest = min(shape) + more
    if value < smallest:
        formula = f"min(N, p) + {more}" if more else "min(N, p)"
        raise ValueError(
            f"sketch_size must be at least {formula} = {smallest}; got {value}"
        )
    return value


def regulariser(ridge: ArrayLike, dtype: np.dtype) -> Array | None:
    """Converts a ridge to a scalar array; returns None if the ridge is zero.

    Subnormal numbers count as zero. A negative traced ridge becomes NaN.

    Raises:
      ValueError: If the ridge is negative or not finite.
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
    """Returns the tolerance as a scalar array, or the default if it is None."""
    if value is None:
        return scalar(default, dtype)
    array_validation.check_number("tolerance", value, minimum=0)
    return scalar(value, dtype)


def with_cutoff(array: T, rcond: ArrayLike | None, default: float) -> tuple[T, Array]:
    """Returns the matrix, and `rcond` or its default; rejects values outside [0, 1).

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
    valid_array = map_floats(lambda leaf: jnp.where(is_valid, leaf, jnp.nan), array)
    return valid_array, scalar(rcond, dtype)


def map_floats(function: Callable[[Array], Array], tree: T) -> T:
    """Applies a function to the float arrays of a matrix."""

    def mapped(leaf: Array) -> Array:
        return function(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(mapped, tree)
