"""Helpers for arrays: dtypes, products, powers of two, shardings."""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

Array: TypeAlias = jax.Array | np.ndarray
A = TypeVar("A", bound=jax.Array | np.ndarray)
F = TypeVar("F", bound=Callable[..., Any])

# Kinds of dtypes that checks allow. Error messages show the name of the kind.
KINDS = {
    "numbers or bools": (jnp.number, jnp.bool_),
    "real numbers or bools": (jnp.floating, jnp.integer, jnp.bool_),
    "real numbers": (jnp.floating, jnp.integer),
    "real or complex floats": (jnp.inexact,),
    "real floats": (jnp.floating,),
    "integers": (jnp.integer,),
    "bools": (jnp.bool_,),
    "keys": (jax.dtypes.prng_key,),
    "numbers, bools or keys": (jnp.number, jnp.bool_, jax.dtypes.prng_key),
}


def is_sparse(value: object) -> bool:
    """Returns whether `value` is a sparse matrix of JAX or SciPy."""
    # Importing this module doubles the import time of the library. A process that has
    # not imported it has no sparse matrix of JAX.
    sparse = sys.modules.get("jax.experimental.sparse")
    if sparse is not None and isinstance(value, sparse.JAXSparse):
        return True
    return is_sparse_of_scipy(value)


def is_sparse_of_scipy(value: object) -> bool:
    """Returns whether `value` is a sparse matrix of SciPy, of any format."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(value)


def is_kind(value: object, kind: str) -> bool:
    """Returns whether the dtype of a value is of the given kind in `KINDS`."""
    dtype = dtype_of(value)
    return any(jnp.issubdtype(dtype, parent) for parent in KINDS[kind])


def dtype_of(value: object) -> np.dtype:
    """Returns the dtype of an array, number or list."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return np.asarray(value).dtype
    return dtype


def promoted(leaf: Any) -> Any:
    """Converts an array to real or complex floats of at least 32 bits.

    Integers and bools become default floats. NumPy arrays are converted by NumPy,
    because JAX would compile a program for each conversion.
    """
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    dtype = array.dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        array = array.astype(jnp.result_type(float))
    elif jnp.finfo(dtype).bits < 32:
        array = array.astype(jnp.float32)
    return working(array)


def working(array: A) -> A:
    """Converts an array of 64 bits to 32 bits if x64 is disabled in JAX.

    JAX arrays of 64 bits keep their dtype if x64 is disabled later, but computations
    use 32 bits. Arrays that are passed to nested compiled functions must be converted
    here: JAX 0.12 lowers a NumPy array in the mode, 32 or 64 bits, of its first use.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    xp = jnp if isinstance(array, jax.Array) else np
    return xp.asarray(array, dtype)


def working_constant(array: Any) -> Any:
    """Converts an array by `working`, as a constant without gradient.

    NumPy arrays stay in NumPy, so that their values can be inspected.
    """
    if isinstance(array, jax.Array):
        return working(stop_gradient(array))
    return working(np.asarray(array))


def array_module(array: object) -> ModuleType:
    """Returns jax.numpy for JAX arrays, and NumPy for arrays on the host."""
    return jnp if isinstance(array, jax.Array) else np


def on_host_or_compiled(function: F) -> F:
    """Wraps a function in `jax.jit`, for calls with at least one JAX array.

    Without a JAX array the function runs on the host, without compilation. It takes its
    operations from `array_module`.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def run(*arguments: ArrayLike) -> Any:
        is_on_device = any(isinstance(array, jax.Array) for array in arguments)
        return compiled(*arguments) if is_on_device else function(*arguments)

    return cast("F", run)


def with_entries(array: Any, places: Any, entries: Any) -> Any:
    """Returns a copy of an array with new entries at indices of the last axis."""
    if isinstance(array, jax.Array):
        return array.at[..., places].set(entries)
    changed = array.copy()
    changed[..., places] = entries
    return changed


def with_minima(array: Any, places: Any, entries: Any) -> Any:
    """Returns a copy of an array with minima of old and new entries at some indices.

    `places` are indices of the last axis. An index may occur more than once.
    """
    if isinstance(array, jax.Array):
        return array.at[..., places].min(entries)
    changed = array.copy()
    index: Any = (..., places)
    np.minimum.at(changed, index, entries)
    return changed


def product(left: Any, right: Any) -> Any:
    """Computes a matrix product in full precision.

    By default GPUs and TPUs round float32 operands to TF32 or bfloat16. Decoding would
    amplify that error.
    """
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return np.matmul(left, right)
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def scale_of(numbers: Any) -> Any:
    """Returns the largest absolute entry, or 1 if all entries are zero.

    Arrays are divided by this scale before they are squared, because squares of tiny
    entries would underflow.
    """
    xp = array_module(numbers)
    largest = xp.max(xp.abs(numbers))
    return xp.where(largest > 0, largest, 1)


def varying_with(condition: jax.Array, value: ArrayLike) -> jax.Array:
    """Returns `value`, marked as varying over the mesh axes of `condition`.

    This is for loops under `jax.shard_map`. A loop must start from arrays that vary
    over the same mesh axes as the results of its steps, and constants do not vary. JAX
    has no public name for the axes of an array in all versions that we support, so the
    value is selected by an array.

    Args:
      condition: bool, of a shape that broadcasts with that of the value.
      value: The constant.
    """
    return jnp.where(condition, value, value)


def squares(numbers: Any) -> Any:
    """Computes the squared absolute value of each number.

    The imaginary part of a real array is skipped: JAX would compute zeros in a separate
    program while it traces, and store them as a constant.
    """
    if jnp.iscomplexobj(numbers):
        return numbers.real**2 + numbers.imag**2
    return numbers**2


def norms_along(numbers: jax.Array, axis: int) -> jax.Array:
    """Returns Euclidean norms along an axis."""
    return jnp.sqrt(jnp.sum(squares(numbers), axis))


def one_norm(numbers: jax.Array) -> jax.Array:
    """Computes |x| of real numbers, and |Re x| + |Im x| of complex numbers."""
    if jnp.iscomplexobj(numbers):
        return jnp.abs(numbers.real) + jnp.abs(numbers.imag)
    return jnp.abs(numbers)


def power_below(numbers: jax.Array) -> jax.Array:
    """Rounds each number down to a power of two.

    Numbers must be positive and not subnormal. The bits are changed directly, because
    `jnp.frexp`, `jnp.log2` and `jnp.ldexp` compile to large programs.
    """
    precision = jnp.finfo(numbers.dtype)
    bits = jax.lax.bitcast_convert_type(numbers, f"int{precision.bits}")
    bits = (bits >> precision.nmant) << precision.nmant
    return jax.lax.bitcast_convert_type(bits, numbers.dtype)


def inverse_power_of_two(values: jax.Array) -> jax.Array:
    """Computes, for each value, a power of two whose product with it is about 1.

    The power is 1 for values that are not positive.
    """
    # Values are clipped, because a subnormal power of two would be flushed to zero.
    bound = 2.0 ** (jnp.finfo(values.dtype).maxexp - 3)
    safe = jnp.clip(jnp.where(values > 0, values, 1), 1 / bound, bound)
    return 1 / power_below(safe * 2**0.5)


def next_power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def sharding_by_batch(masks: jax.Array, num_axes: int) -> NamedSharding | None:
    """Returns the sharding of arrays with the batch axes of masks and further axes.

    Batch axes are sharded like those of `masks`, and `num_axes` further axes are
    replicated. None if the mesh of `masks` has no explicit axes.
    """
    sharding = jax.typeof(masks).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    batch_axes = sharding.spec[:-1]
    spec = PartitionSpec(*batch_axes, *[None] * num_axes)
    return NamedSharding(sharding.mesh, spec)
