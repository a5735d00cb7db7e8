"""Checks and conversions of arguments that the sketching modules share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation


def float_array(name: str, value: Any) -> jax.Array:
    """`value` as a real array in the dtype that it is computed in.

    Integers and bools become the default float, half precision becomes float32.
    """
    try:
        array = jnp.asarray(value)
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
    """`value` as a NumPy array of that dtype, or None where it is traced.

    To be asked of the argument itself: under `jax.jit` all that is computed from an
    array is traced, even where the array is a constant.
    """
    if _validation.is_traced(value):
        return None
    # A value that overflows in the dtype that is computed in is to be found, too.
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def nonnegative_vector(name: str, value: Any) -> jax.Array:
    """A float array (size,) that is proportional to probabilities.

    The values of a traced array are not checked here: see `is_distribution`.
    """
    array = float_array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis; got shape {array.shape}")
    if array.shape[0] < 1:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    values = concrete(value, array.dtype)
    if values is None:
        return array
    is_wrong = ~(np.isfinite(values) & (values >= 0))
    if is_wrong.any():
        first = int(is_wrong.argmax())
        raise ValueError(
            f"{name} must be finite and not negative; got {name}[{first}] = "
            f"{values[first]}"
        )
    # Subnormal numbers count as zero in much of JAX.
    if not (values >= np.finfo(values.dtype).tiny).any():
        raise ValueError(
            f"{name} must not all be zero (as {values.dtype}); got {values.size} zeros"
        )
    return array


def num_positive(values: np.ndarray) -> int:
    """How many are not zero once they are normalised in their dtype."""
    shares = values.astype(float) / values.max()
    # Subnormal numbers count as zero here as well.
    return int(np.sum(shares / shares.sum() >= np.finfo(values.dtype).tiny))


def is_distribution(values: jax.Array) -> jax.Array:
    """True where all values are finite, none is negative and not all are zero."""
    return jnp.all(jnp.isfinite(values) & (values >= 0)) & jnp.any(
        values >= jnp.finfo(values.dtype).tiny
    )
