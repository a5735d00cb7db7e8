"""Checks and conversions of arguments, with one wording for all of sketching."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two


def float_array(name: str, value: Any) -> jax.Array:
    """Returns `value` as a real array in the dtype that it is computed in.

    Integers and bools become the default float, half precision becomes float32.
    """
    try:
        # JAX compiles a program for each shape that jnp.asarray takes from NumPy.
        is_host = isinstance(value, np.ndarray)
        array = jax.device_put(value) if is_host else jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of real numbers; got {type(value).__name__}"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(jnp.promote_types(array.dtype, jnp.float32))
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        return array.astype(float)
    raise TypeError(f"{name} must be real; got an array of {array.dtype}")


def concrete(value: Any, dtype: Any) -> np.ndarray | None:
    """Returns `value` as a NumPy array of that dtype, or None where it is traced.

    To be asked of the argument itself: under `jax.jit` all that is computed from an
    array is traced, even where the array is a constant.
    """
    if _validation.is_traced(value):
        return None
    # A value that overflows in the dtype that is computed in is to be found, too.
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def is_sparse(value: Any) -> bool:
    """Returns whether it is a sparse matrix of JAX, of any kind."""
    # Importing the module takes as long as importing the rest of the library; where
    # nobody has imported it, there is no such matrix.
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(value, sparse.JAXSparse)


# Matrices.


def finite_array(name: str, value: Any) -> jax.Array:
    """Returns a float array, whose entries are finite where they are known."""
    array = float_array(name, value)
    check_finite(name, value, array.dtype)
    return array


def finite_matrix(name: str, value: Any) -> jax.Array:
    """Returns `value` as a real, non-empty matrix; where not traced, a finite one."""
    matrix = float_array(name, value)
    _validation.check_shape(name, matrix, "(N, p)", ("any", "any"))
    check_finite(name, value, matrix.dtype)
    return matrix


def sparse_entries(name: str, matrix: Any) -> jax.Array:
    """Returns the values of a BCOO matrix with two axes, finite where not traced."""
    from jax.experimental import sparse

    if not isinstance(matrix, sparse.BCOO):
        raise TypeError(
            "a sparse matrix must be a jax.experimental.sparse.BCOO; got "
            f"{type(matrix).__name__}"
        )
    if matrix.n_batch or matrix.n_dense or matrix.ndim != 2:
        raise ValueError(
            "a sparse matrix must have two axes, both sparse; got shape "
            f"{matrix.shape} with n_batch = {matrix.n_batch} and "
            f"n_dense = {matrix.n_dense}"
        )
    check_not_empty(name, matrix.shape)
    return finite_array(name, matrix.data)


def check_not_empty(name: str, shape: tuple[int, ...]) -> None:
    """Checks that there is at least one row and one column."""
    if min(shape) < 1:
        raise ValueError(
            f"{name} must have at least one row and one column; got {shape}"
        )


def check_finite(name: str, value: Any, dtype: jnp.dtype) -> None:
    """Checks that there are no NaN or infinite entries, where they are known.

    In the dtype that is computed in, where a value may overflow.
    """
    if _validation.is_traced(value):
        return
    if isinstance(value, np.ndarray):
        num_wrong = np.count_nonzero(~np.isfinite(concrete(value, dtype)))
    else:
        # On the device, where the array is; also inside a traced function, where all
        # that is computed in any other way is traced.
        with jax.ensure_compile_time_eval():
            array = jnp.asarray(value, dtype)
            if array.size == 0 or bool(_is_finite(array)):
                return
            num_wrong = int(_count_non_finite(array))
    if num_wrong:
        raise ValueError(
            f"{name} must be finite; got {num_wrong} NaN or infinite entries"
        )


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    # Several times faster than a count. A maximum would lose a NaN on CPUs.
    return jnp.isfinite(jnp.sum(0 * array))


@jax.jit
def _count_non_finite(array: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(array))


# Cut-offs of the numerical rank.


def rank_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cut-off of scores."""
    return 10 * min(shape) ** 0.5 * float(jnp.finfo(dtype).eps)


def solver_cutoff(shape: tuple[int, ...], dtype: jnp.dtype) -> float:
    """Returns the default cut-off of solvers, which keeps all but rounding.

    In rank-deficient matrices of up to half a million rows, the factorisations of
    X and of its sketches gave singular values of up to 5 units in the place of 0. A
    larger cut-off would cost residual where X is not deficient.
    """
    return (4 + min(shape) ** 0.5) * float(jnp.finfo(dtype).eps)


def with_cutoff(
    array: jax.Array,
    rcond: Any,
    default: Callable[..., float] = rank_cutoff,
    shape: tuple[int, ...] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the entries of a matrix and `rcond`, or its default, in their dtype.

    NaN, and so is what follows, where a traced `rcond` is not in [0, 1).
    """
    dtype = array.dtype
    if rcond is None:
        rcond = default(array.shape if shape is None else shape, dtype)
        return array, jnp.asarray(rcond, dtype)
    _validation.check_number("rcond", rcond, minimum=0)
    if _validation.is_traced(rcond):
        array = jnp.where((rcond >= 0) & (rcond < 1), array, jnp.nan)
    elif not rcond < 1:
        raise ValueError(f"rcond must be less than 1; got {rcond}")
    return array, jnp.asarray(rcond, dtype)


# Probabilities.


def nonnegative_vector(name: str, value: Any) -> jax.Array:
    """Returns a float array (size,) that is proportional to probabilities.

    The values of a traced array are not checked here: see `is_distribution`.
    """
    array = float_array(name, value)
    _validation.check_shape(name, array, "(size,)", ("any",))
    values = concrete(value, array.dtype)
    if values is None:
        return array
    is_right = np.isfinite(values) & (values >= 0)
    _validation.check_entries(name, values, is_right, "finite and not negative")
    # Subnormal numbers count as zero in much of JAX.
    if not (values >= np.finfo(values.dtype).tiny).any():
        raise ValueError(
            f"{name} must not all be zero (as {values.dtype}); got {values.size} zeros"
        )
    return array


def is_distribution(values: jax.Array) -> jax.Array:
    """Returns whether all are finite, none is negative and not all are zero."""
    return jnp.all(jnp.isfinite(values) & (values >= 0)) & jnp.any(
        values >= jnp.finfo(values.dtype).tiny
    )


def distribution(name: str, value: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a non-negative vector over its sum, and whether a traced one is valid."""
    return _normalised(nonnegative_vector(name, value))


@jax.jit
def _normalised(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Scaled first, so that the sum of huge values does not overflow.
    scaled = values * inverse_power_of_two(jnp.max(values))
    return scaled / jnp.sum(scaled), is_distribution(values)


def check_at_most_positive(name: str, count: int, value: Any, dtype: Any) -> None:
    """Checks that so many different rows can be drawn."""
    values = concrete(value, dtype)
    if values is None:
        return
    shares = values.astype(float) / values.max()
    # Subnormal numbers count as zero once they are normalised, too.
    num_positive = np.sum(shares / shares.sum() >= np.finfo(values.dtype).tiny)
    if count > num_positive:
        raise ValueError(
            f"{name} must be at most the number of positive probabilities; got "
            f"{name} = {count} and {num_positive} positive probabilities"
        )


# Arguments of solvers.


def system(matrix: Any, target: Any) -> tuple[jax.Array, jax.Array]:
    """Returns X (N, p) and y (N,) or (N, c), in one dtype."""
    matrix = finite_matrix("matrix", matrix)
    target = right_hand_side(target, matrix.shape)
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    return matrix.astype(dtype), target.astype(dtype)


def right_hand_side(target: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns y (N,) or (N, c) of a matrix of that shape."""
    target = finite_array("target", target)
    if target.ndim not in (1, 2):
        raise ValueError(f"target must have shape (N,) or (N, c); got {target.shape}")
    if target.shape[0] != shape[0]:
        raise ValueError(
            "target must have as many rows as matrix; got target of shape "
            f"{target.shape} and matrix of shape {shape}"
        )
    if target.size == 0:
        raise ValueError(f"target must not be empty; got shape {target.shape}")
    return target


def sketch_size(value: Any, shape: tuple[int, ...], more: int = 0) -> int:
    """Returns a number of sketched rows that is `more` than the rank may be."""
    value = _validation.check_int("sketch_size", value, minimum=1)
    least = min(shape) + more
    if value < least:
        rule = f"min(N, p) + {more}" if more else "min(N, p)"
        raise ValueError(f"sketch_size must be at least {rule} = {least}; got {value}")
    return value


def regulariser(ridge: Any, dtype: jnp.dtype) -> jax.Array | None:
    """Returns a non-negative, finite number; None where it is known to be zero.

    A traced one that is negative is NaN.
    """
    _validation.check_number("ridge", ridge, minimum=0)
    value = concrete(ridge, dtype)
    if value is not None:
        if ridge == 0:
            return None
        if not np.isfinite(value):
            raise ValueError(f"ridge must be finite in {dtype}; got {ridge}")
        if value < jnp.finfo(dtype).tiny:
            raise ValueError(f"ridge must not vanish in {dtype}; got {ridge}")
    ridge = jnp.asarray(ridge, dtype)
    return jnp.where(ridge >= 0, ridge, jnp.nan)


def stopping_tolerance(value: Any, default: float, dtype: jnp.dtype) -> jax.Array:
    """Returns a non-negative number, or the default where it is None."""
    if value is None:
        return jnp.asarray(default, dtype)
    _validation.check_number("tolerance", value, minimum=0)
    return jnp.asarray(value, dtype)
