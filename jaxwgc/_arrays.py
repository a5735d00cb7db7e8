"""Dtypes, products and powers of two: what is done with arrays of any kind."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What the entries of an array may be, by the words of the message.
KINDS = {
    "numbers or bools": (jnp.number, jnp.bool_),
    "real numbers or bools": (jnp.floating, jnp.integer, jnp.bool_),
    "real numbers": (jnp.floating, jnp.integer),
    "real or complex floats": (jnp.inexact,),
    "real floats": (jnp.floating,),
    "integers": (jnp.integer,),
    "bools": (jnp.bool_,),
    "numbers, bools or keys": (jnp.number, jnp.bool_, jax.dtypes.prng_key),
}


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
    xp = jnp if isinstance(array, jax.Array) else np
    return xp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product in full precision.

    GPUs and TPUs round float32 operands to TF32 or bfloat16 unless asked not to, and
    decoding would amplify that.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def power_below(numbers: jax.Array) -> jax.Array:
    """The largest power of two that is at most each of some positive, normal numbers.

    `jnp.frexp`, `jnp.log2` and `jnp.ldexp` are large programs to compile.
    """
    precision = jnp.finfo(numbers.dtype)
    bits = jax.lax.bitcast_convert_type(numbers, f"int{precision.bits}")
    bits = (bits >> precision.nmant) << precision.nmant
    return jax.lax.bitcast_convert_type(bits, numbers.dtype)
