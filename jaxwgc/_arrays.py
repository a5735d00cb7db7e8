"""Dtypes, products, powers of two, shardings: what is done with arrays of any kind."""

import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# What the entries of an array may be, by the words of the message.
KINDS = {
    "numbers or bools": (jnp.number, jnp.bool_),
    "real numbers or bools": (jnp.floating, jnp.integer, jnp.bool_),
    "real numbers": (jnp.floating, jnp.integer),
    "real or complex floats": (jnp.inexact,),
    "real floats": (jnp.floating,),
    "integers": (jnp.integer,),
    "bools": (jnp.bool_,),
    "a bool mask": (jnp.bool_,),
    "keys": (jax.dtypes.prng_key,),
    "numbers, bools or keys": (jnp.number, jnp.bool_, jax.dtypes.prng_key),
}


def is_sparse(value: Any) -> bool:
    """Returns whether `value` is a sparse matrix, of JAX or of SciPy."""
    # Importing the module takes as long as importing the rest of the library. If nobody
    # has imported it, there is no such matrix.
    sparse = sys.modules.get("jax.experimental.sparse")
    of_jax = sparse is not None and isinstance(value, sparse.JAXSparse)
    return of_jax or is_sparse_of_scipy(value)


def is_sparse_of_scipy(value: Any) -> bool:
    """Returns whether `value` is a sparse matrix of SciPy, of any format."""
    sparse = sys.modules.get("scipy.sparse")
    return sparse is not None and sparse.issparse(value)


def is_kind(value: Any, kind: str) -> bool:
    """Returns whether the entries of `value` are of a kind in `KINDS`."""
    dtype = dtype_of(value)
    return any(jnp.issubdtype(dtype, allowed) for allowed in KINDS[kind])


def dtype_of(value: Any) -> np.dtype:
    """The dtype of an array, or of what NumPy makes of a number or list."""
    dtype = getattr(value, "dtype", None)
    return np.asarray(value).dtype if dtype is None else dtype


def promoted(leaf: Any) -> Any:
    """`leaf` as an array of floats of at least 32 bits, real or complex.

    Integers and bools become default floats. NumPy's do so in NumPy, since JAX's may
    have fewer bits, and stay there, since JAX compiles a program to take one in.
    """
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    dtype = array.dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        array = array.astype(jnp.result_type(float))
    elif jnp.finfo(dtype).bits < 32:
        array = array.astype(jnp.float32)
    return working(array)


def working(array: Any) -> Any:
    """`array` in no more than JAX's working precision; one of NumPy stays there.

    An array of JAX made in double precision keeps it where that is switched off, but
    nothing computes with it there. What a function compiled inside of others takes has
    to come through here: JAX 0.12 lowers one and the same array of NumPy only in the
    mode, of 32 or 64 bits, that it met it in first.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return array_module(array).asarray(array, dtype)


def working_constants(tree: Any) -> Any:
    """Returns `working` of every leaf, a constant to `jax.grad`.

    What NumPy holds stays there, since what is known can be looked at.
    """
    return jax.tree.map(
        lambda leaf: working(
            stop_gradient(leaf) if isinstance(leaf, jax.Array) else np.asarray(leaf)
        ),
        tree,
    )


def array_module(array: Any) -> ModuleType:
    """Returns jax.numpy for what JAX computes, NumPy for what stays on the host."""
    return jnp if isinstance(array, jax.Array) else np


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product in full precision.

    GPUs and TPUs round float32 operands to TF32 or bfloat16 unless asked not to, and
    decoding would amplify that.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def squares(numbers: jax.Array) -> jax.Array:
    """Returns squared moduli.

    The imaginary part of a real array would be zeros that JAX computes while it traces,
    by a program of their own, and writes into the other one.
    """
    if jnp.iscomplexobj(numbers):
        return numbers.real**2 + numbers.imag**2
    return numbers**2


def power_below(numbers: jax.Array) -> jax.Array:
    """The largest power of two that is at most each of some positive, normal numbers.

    `jnp.frexp`, `jnp.log2` and `jnp.ldexp` are large programs to compile.
    """
    precision = jnp.finfo(numbers.dtype)
    bits = jax.lax.bitcast_convert_type(numbers, f"int{precision.bits}")
    bits = (bits >> precision.nmant) << precision.nmant
    return jax.lax.bitcast_convert_type(bits, numbers.dtype)


def power_of_two(exponents: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns two to the power of integers, clipped to normal numbers of the dtype."""
    precision = jnp.finfo(dtype)
    clipped = jnp.clip(exponents, precision.minexp, precision.maxexp - 1)
    bits = (clipped - precision.minexp + 1).astype(f"int{precision.bits}")
    return jax.lax.bitcast_convert_type(bits << precision.nmant, dtype)


def inverse_power_of_two(values: jax.Array) -> jax.Array:
    """Returns the power of two nearest to 1 / values; 1 for a zero."""
    # The exponent stays clear of the ends of the range, where powers are subnormal and
    # would be flushed to zero.
    bound = 2.0 ** (jnp.finfo(values.dtype).maxexp - 3)
    safe = jnp.clip(jnp.where(values > 0, values, 1), 1 / bound, bound)
    return 1 / power_below(safe * 2**0.5)


def cholesky_if(is_definite: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns the Cholesky factor of a matrix, or the identity if it is not definite.

    For a branch of `lax.cond`: under vmap both branches run, and NaNs of a failed
    factor stay in memory that BLAS kernels of old processors multiply by zero.
    """
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    return jnp.linalg.cholesky(jnp.where(is_definite, matrix, identity))


def next_power_of_two(size: int) -> int:
    """Returns the smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def sharding_by_batch(masks: jax.Array, num_axes: int) -> NamedSharding | None:
    """Returns the sharding of the batch axes of `masks`, with `num_axes` whole ones.

    None where masks have no sharding in their type.
    """
    sharding = jax.typeof(masks).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = PartitionSpec(*sharding.spec[:-1], *[None] * num_axes)
    return NamedSharding(sharding.mesh, spec)
