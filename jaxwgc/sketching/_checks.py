"""Checks and conversions of arguments for all of sketching."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxwgc import _validation
from jaxwgc._arrays import (
    inverse_power_of_two,
    is_kind,
    is_sparse,
    is_sparse_of_scipy,
    promoted,
)
from jaxwgc._validation import require


class HasDtype(Protocol):
    """An array, or a pytree of arrays that are one matrix."""

    @property
    def dtype(self) -> Any: ...


T = TypeVar("T", bound=HasDtype)

# End of the error message of functions that do not support sparse matrices.
_TAKERS = (
    ", or use another score, sketch_and_solve, preconditioned or choose_ridge, which "
    "take sparse matrices"
)


def float_array(name: str, value: Any) -> Array:
    """Converts `value` to a real array in the dtype of the computation.

    Integers and bools become the default float, half precision becomes float32.
    """
    _validation.check_dense(name, value)
    # JAX compiles a program for each shape and dtype that it converts; NumPy does not.
    is_host = not isinstance(value, Array) and not _validation.is_traced(value)
    array: Any = np.asarray(value) if is_host else jnp.asarray(value)
    _check_real(name, value, array)
    with np.errstate(over="ignore"):
        array = promoted(array)
    return jax.device_put(array) if is_host else array


def _check_real(name: str, value: Any, array: Any) -> None:
    if not is_kind(array, "real numbers or bools"):
        given = f"{type(value).__name__} of {array.dtype}"
        raise TypeError(f"{name} must be real numbers; got {given}")


def scalar(value: Any, dtype: Any) -> Array:
    """Converts a number to a scalar array, without compilation unless traced."""
    if isinstance(value, Array):
        return value.astype(dtype)
    return jax.device_put(np.asarray(value, dtype))


def concrete(value: Any, dtype: Any) -> np.ndarray | None:
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
    mesh = jax.typeof(array).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))


# Matrices.


def finite_array(name: str, value: Any) -> Array:
    """Converts `value` to a float array, and checks that a concrete one is finite."""
    array = float_array(name, value)
    check_finite(name, value, array.dtype)
    return array


def finite_matrix(name: str, value: Any) -> Array:
    """Converts `value` to a real matrix, and checks that a concrete one is finite."""
    _validation.check_dense(name, value, _TAKERS)
    matrix = float_array(name, value)
    _validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
    check_finite(name, value, matrix.dtype)
    return matrix


def sparse_matrix(name: str, value: Any) -> Any:
    """Converts a sparse matrix of JAX or SciPy to a BCOO of real, finite entries."""
    matrix = from_scipy(name, value)
    _check_axes(name, matrix)
    return with_values(lambda values: finite_array(name, values), matrix)


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
    entries = finite_array(name, rows.data), jax.device_put(indices)
    in_order = {"indices_sorted": True, "unique_indices": True}
    return sparse.BCOO(entries, shape=rows.shape, **in_order)


def _compressed_rows(name: str, matrix: Any) -> Any:
    """Converts a real SciPy matrix to CSR format, sorted and without duplicates."""
    _check_real(name, matrix, matrix)
    require(matrix.ndim == 2, name, "have shape (N, p)", matrix.shape)
    rows = matrix.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def _check_axes(name: str, matrix: Any) -> None:
    """Checks that a sparse matrix of JAX is a BCOO with two sparse axes."""
    from jax.experimental import sparse

    if not isinstance(matrix, sparse.BCOO):
        kinds = "an array, a SciPy matrix or a BCOO, as BCOO.from_scipy_sparse makes"
        raise TypeError(f"{name} must be {kinds}; got {type(matrix).__name__}")
    axes = matrix.n_batch, matrix.n_sparse, matrix.n_dense
    given = f"n_batch = {axes[0]}, n_dense = {axes[2]} and shape {matrix.shape}"
    require(axes == (0, 2, 0), name, "have two axes, both sparse", given)


def with_values(function: Callable[[Any], Array], matrix: Any) -> Any:
    """Applies `function` to an array, or to the entries of a BCOO."""
    if not is_sparse(matrix):
        return function(matrix)
    (data, indices), structure = jax.tree.flatten(matrix)
    return jax.tree.unflatten(structure, [function(data), indices])


def host_rows(name: str, value: Any) -> Any:
    """Converts rows to a NumPy array, or sparse rows to a CSR matrix of SciPy."""
    if is_sparse_of_scipy(value):
        return _compressed_rows(name, value)
    _validation.check_dense(name, value)
    return np.asarray(value)


def check_finite(name: str, value: Any, dtype: jnp.dtype) -> None:
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
        given = f"{num_wrong} NaN or infinite entries"
        raise ValueError(f"{name} must be finite; got {given}")


@jax.jit
def _is_finite(array: Array) -> Array:
    # This sum is several times faster than a count. Unlike a maximum on CPUs, it never
    # loses a NaN.
    return jnp.isfinite(jnp.sum(0 * array))


def check_all_dense(name: str, tree: Any) -> None:
    """Checks that no leaf of a pytree is a sparse matrix."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_sparse)
    for path, leaf in leaves:
        _validation.check_dense(f"{name}{jax.tree_util.keystr(path)}", leaf)


def check_drawn_from(name: str, indices: Any, number: int, kind: str) -> None:
    """Checks that all sampled rows or parts exist, unless indices are traced."""
    largest = -1 if _validation.is_traced(indices) else int(np.max(indices))
    given = f"{number} {kind} and a sample with index {largest}"
    require(largest < number, name, "be what the sample was drawn from", given)


def with_cutoff(array: T, rcond: Any, default: float) -> tuple[T, Array]:
    """Returns an array or matrix, and the cutoff `rcond` or its default in its dtype.

    If a traced `rcond` is not in [0, 1), the array becomes NaN, and so does the result.
    """
    dtype = array.dtype
    if rcond is None:
        return array, scalar(default, dtype)
    _validation.check_number("rcond", rcond, minimum=0)
    if not _validation.is_traced(rcond):
        require(rcond < 1, "rcond", "be less than 1", rcond)
        return array, scalar(rcond, dtype)
    if not jax.tree.leaves(array):
        _validation.check_concrete("rcond", rcond, "Blocks are read on the host")
    is_right = (rcond >= 0) & (rcond < 1)

    def poisoned(leaf: Array) -> Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.where(is_right, leaf, jnp.nan) if is_float else leaf

    return jax.tree.map(poisoned, array), scalar(rcond, dtype)


# Probabilities.


def nonnegative_vector(name: str, value: Any) -> Array:
    """Converts numbers proportional to probabilities to a float array (size,).

    Values of a traced array are not checked here. See `normalised`.
    """
    array = gathered(float_array(name, value))
    _validation.check_shape(name, array, "(size,)", ("any",))
    values = concrete(value, array.dtype)
    if values is None:
        return array
    is_right = np.isfinite(values) & (values >= 0)
    _validation.check_entries(name, values, is_right, "finite and not negative")
    # Subnormal numbers count as zero, since many JAX operations flush them to zero.
    has_positive = (values >= np.finfo(values.dtype).tiny).any()
    require(
        has_positive,
        name,
        f"not all be zero (as {values.dtype})",
        f"{values.size} zeros",
    )
    return array


def distribution(name: str, value: Any) -> tuple[Array, Array]:
    """Normalises a non-negative vector, and tests whether a traced one is valid."""
    return normalised(nonnegative_vector(name, value))


@jax.jit
def normalised(values: Array) -> tuple[Array, Array]:
    """Divides values by their sum, and tests whether they can be probabilities.

    They are valid if they are finite, not negative and not all zero.
    """
    valid = jnp.all(jnp.isfinite(values) & (values >= 0))
    valid &= jnp.any(values >= jnp.finfo(values.dtype).tiny)
    # Values are scaled first, so that the sum of huge values does not overflow.
    scaled = values * inverse_power_of_two(jnp.max(values))
    return scaled / jnp.sum(scaled), valid


# Arguments of solvers.


def right_hand_side(target: Any, shape: tuple[int, ...]) -> Array:
    """Checks and converts the right-hand side y for a matrix of the given shape."""
    target = finite_array("target", target)
    is_right = target.ndim in (1, 2) and len(target) == shape[0] and target.size
    given = f"{target.shape} with a matrix of shape {shape}"
    require(is_right, "target", "have shape (N,) or (N, c)", given)
    return target


def sketch_size(value: Any, shape: tuple[int, ...], more: int = 0) -> int:
    """Checks that a sketch size is at least min(N, p) + `more`."""
    value = _validation.check_int("sketch_size", value, minimum=1)
    least = min(shape) + more
    rule = f"min(N, p) + {more}" if more else "min(N, p)"
    require(value >= least, "sketch_size", f"be at least {rule} = {least}", value)
    return value


def regulariser(ridge: Any, dtype: jnp.dtype) -> Array | None:
    """Converts a ridge to a non-negative, finite number, or None if it is zero.

    Subnormal numbers count as zero. A negative traced ridge becomes NaN.
    """
    _validation.check_number("ridge", ridge, minimum=0)
    value = concrete(ridge, dtype)
    if value is None:
        return jnp.where(ridge >= 0, scalar(ridge, dtype), jnp.nan)
    require(np.isfinite(value), "ridge", f"be finite in {dtype}", ridge)
    return scalar(value, dtype) if value >= jnp.finfo(dtype).tiny else None


def stopping_tolerance(value: Any, default: float, dtype: jnp.dtype) -> Array:
    """Converts a tolerance to a non-negative number, or returns the default."""
    value = default if value is None else value
    _validation.check_number("tolerance", value, minimum=0)
    return scalar(value, dtype)
