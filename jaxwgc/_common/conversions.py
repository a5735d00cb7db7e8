"""Conversions of arguments to arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import is_kind, promoted


def float_array(name: str, value: Any) -> Array:
    """Converts `value` to a JAX array of real floats with at least 32 bits.

    Integers and bools become the default float, half precision becomes float32.
    """
    array_validation.check_dense(name, value)
    if isinstance(value, Array) or array_validation.is_traced(value):
        array = jnp.asarray(value)
        check_real(name, value, array)
        return promoted(array)
    # JAX compiles a program for each shape and dtype that it converts; NumPy does not.
    host_array = np.asarray(value)
    check_real(name, value, host_array)
    with np.errstate(over="ignore"):
        return jax.device_put(promoted(host_array))


def check_real(name: str, value: Any, array: Any) -> None:
    if not is_kind(array, "real numbers or bools"):
        raise TypeError(
            f"{name} must be real numbers; got {type(value).__name__} of {array.dtype}"
            f"{_advice_for_frame(value)}"
        )


def _advice_for_frame(value: Any) -> str:
    """Returns advice on a data frame that NumPy converts to no real array, as text.

    The text is empty for other values.
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


def concrete(value: ArrayLike, dtype: DTypeLike) -> np.ndarray | None:
    """Converts a value to NumPy, or returns None if it is traced.

    Call it with the argument itself: under `jax.jit` all values computed from an array
    are traced, even if the array is a constant.
    """
    if array_validation.is_traced(value):
        return None
    # Values that overflow in this dtype become infinite, which checks then find.
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def gathered(array: Array) -> Array:
    """Replicates an array if it is sharded over a mesh with explicit axes."""
    return on_mesh_of(array, array)


def on_mesh_of(other: Array, array: Array) -> Array:
    """Replicates an array over the mesh of `other`, if the mesh has explicit axes."""
    mesh = jax.typeof(other).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))
