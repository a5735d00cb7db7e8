"""Checks of arrays, keys and pytrees, whose values may be traced."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import arrays
from jaxwgc._common.validation import check_entries, check_shape, in_short


def is_traced(*values: object) -> bool:
    """Returns whether any leaf of the given values is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_concrete(name: str, value: object, reason: str) -> None:
    """Raises TypeError with the given reason if `value` is traced."""
    if is_traced(value):
        raise TypeError(f"{name} must be concrete, since {reason}; got a traced value")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    positive: bool = False,
    finite: bool = False,
    traceable: bool = True,
) -> None:
    """Raises an error unless `value` is a real scalar within the given bounds.

    The bounds of a traced scalar are not checked. If `traceable` is False, a traced
    scalar raises TypeError.
    """
    if np.ndim(value) or not arrays.is_kind(value, "real numbers"):
        raise TypeError(f"{name} must be a real scalar; got {value!r}")
    if not traceable:
        check_concrete(name, value, "it is used on the host")
    if is_traced(value):
        return
    number = np.asarray(value)
    if np.isnan(number):
        raise ValueError(f"{name} must be a number; got {number}")
    if positive and number <= 0:
        raise ValueError(f"{name} must be positive; got {number}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {number}")
    if finite and not np.isfinite(number):
        raise ValueError(f"{name} must be finite; got {number}")


def check_fields(model: Any, **bounds: Mapping[str, Any]) -> None:
    """Checks the numbers in fields of a dataclass, and converts them to floats.

    Each number is checked by `check_number`. As floats, equal models are equal and
    share programs. Traced numbers are not converted.
    """
    for name, bounds_of_field in bounds.items():
        value = getattr(model, name)
        check_number(name, value, **bounds_of_field)
        if not is_traced(value):
            object.__setattr__(model, name, float(value))


def check_share(name: str, value: Any) -> None:
    """Raises an error unless a number is concrete and strictly between 0 and 1."""
    check_number(name, value, traceable=False)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1; got {value}")


def check_key(key: Any, name: str = "key") -> jax.Array:
    """Returns `key`; raises an error unless it is one PRNG key, typed or raw."""
    is_typed = arrays.is_kind(key, "keys")
    if not is_typed and getattr(key, "dtype", None) != np.uint32:
        raise TypeError(
            f"{name} must be a PRNG key from jax.random.key or jax.random.PRNGKey; got "
            f"{in_short(key)}"
        )
    # A raw key has two or four words, depending on the default PRNG implementation.
    shape = () if is_typed else jax.eval_shape(jax.random.PRNGKey, 0).shape
    if key.shape != shape:
        raise ValueError(f"{name} must be one key, of shape {shape}; got {key.shape}")
    return key


def check_leading_axis(
    name: str, tree: Any, size: int, axis_name: str, hint: str = ""
) -> None:
    """Raises ValueError unless the first axis of every leaf has the given size.

    A sparse leaf without a batch axis raises TypeError.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=arrays.is_sparse)
    if not leaves:
        raise ValueError(f"{name} must have at least one array; got {in_short(tree)}")
    for path, leaf in leaves:
        leaf_name = name + jax.tree_util.keystr(path)
        # Sparse BCOO matrices with a batch axis are accepted, because JAX can map
        # functions over that axis.
        if not getattr(leaf, "n_batch", 0):
            check_dense(leaf_name, leaf)
        shape = np.shape(leaf)
        if shape[:1] != (size,):
            raise ValueError(
                f"{leaf_name} must have a leading axis of {axis_name} = {size}; got "
                f"shape {shape}{hint}"
            )


def check_parts(name: str, tree: Any, axis_name: str) -> int:
    """Returns the size of the first axis, which must be equal for all leaves.

    Raises ValueError if sizes differ, or if the size is 0.
    """
    leaves = jax.tree.leaves(tree)
    shape = np.shape(leaves[0]) if leaves else ()
    if not shape or shape[0] == 0:
        advice = ""
        if isinstance(tree, list | tuple) and leaves:
            advice = " (a list is a pytree of its entries: convert it with np.array)"
        raise ValueError(
            f"{name} must have a leading axis of {axis_name} >= 1; got "
            f"{in_short(tree)}{advice}"
        )
    check_leading_axis(name, tree, shape[0], axis_name)
    return shape[0]


def check_dense(name: str, value: object, hint: str = "") -> None:
    """Raises TypeError if `value` is a sparse matrix."""
    if arrays.is_sparse(value):
        raise TypeError(
            f"{name} must be a dense array; got {type(value).__name__}; convert it "
            f"with `.todense()`{hint}"
        )


def check_all_dense(name: str, tree: Any) -> None:
    """Raises TypeError if a leaf of a pytree is a sparse matrix."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=arrays.is_sparse)
    for path, leaf in leaves:
        check_dense(name + jax.tree_util.keystr(path), leaf)


def as_array(
    name: str,
    value: Any,
    kind: str,
    *batch: str,
    or_number: Any = False,
    **sizes: int | str,
) -> Any:
    """Returns `value` as an array; raises an error if dtype or shape is wrong.

    Numbers and lists become NumPy arrays. Keywords name the axes and give their sizes,
    as in `check_shape`.
    """
    check_dense(name, value)
    array = value if hasattr(value, "dtype") else np.asarray(value)
    check_dtypes(name, array, kind)
    is_allowed_number = or_number and array.ndim == 0
    if sizes and not is_allowed_number:
        axes = [*batch, *sizes]
        shown = f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"
        check_shape(name, array, shown, (*batch, *sizes.values()))
    return array


def check_dtypes(name: str, tree: Any, kind: str, abstract: bool = False) -> None:
    """Raises TypeError unless every leaf has a dtype of the given kind.

    Kinds are the keys of `arrays.KINDS`. With `abstract`, leaves may be
    `jax.ShapeDtypeStruct`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        has_entries = abstract or not isinstance(leaf, jax.ShapeDtypeStruct)
        if has_entries and arrays.is_kind(leaf, kind):
            continue
        is_array = hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)
        # The NumPy dtype of a function or a string is meaningless, so the error shows
        # the leaf.
        shown = arrays.dtype_of(leaf) if has_entries and is_array else repr(leaf)
        raise TypeError(
            f"{name}{jax.tree_util.keystr(path)} must be {kind}; got {shown}"
            f"{_ADVICE.get(kind, '')}"
        )


def check_integers_are_kept(name: str, tree: Any) -> None:
    """Raises ValueError if JAX would drop bits of an integer, since x64 is off."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not arrays.is_kind(leaf, "integers"):
            continue
        dtype = arrays.dtype_of(leaf)
        kept = jax.dtypes.canonicalize_dtype(dtype)
        if dtype == kept:
            continue
        values = np.ravel(leaf)
        limits = np.iinfo(kept)
        is_beyond = (values < limits.min) | (values > limits.max)
        if is_beyond.any():
            value = values[is_beyond][0]
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must fit {kept}, because JAX "
                f"truncates {dtype} unless x64 is enabled; got {value}. Use smaller "
                "integers, or enable x64 by jax.config.update('jax_enable_x64', True)"
            )


# Advice in errors of `check_dtypes`, by kind in `arrays.KINDS`. The kind below is
# required of parameters and their gradients.
_ADVICE = {
    "real or complex floats": " (split off integers, keys and static fields by "
    "eqx.partition(params, eqx.is_inexact_array) or nnx.split(module, nnx.Param, ...); "
    "freeze floats by optax.masked, after the aggregator)"
}


def probabilities(name: str, value: Any) -> np.ndarray:
    """Converts one probability per worker to float64.

    Raises ValueError unless all are strictly between 0 and 1.
    """
    array = host_array(name, value, "real numbers", num_workers="any")
    check_entries(name, array, (array > 0) & (array < 1), "between 0 and 1")
    return array.astype(np.float64)


def check_message_dtype(dtype: Any) -> str | None:
    """Returns the name of the dtype of messages; None for None.

    Raises an error unless the dtype is bfloat16, float16 or float32.
    """
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"message_dtype must be a dtype; got {dtype!r}") from error
    if not jnp.issubdtype(known, jnp.floating) or known.itemsize not in (2, 4):
        raise ValueError(
            f"message_dtype must be bfloat16, float16 or float32; got {dtype!r}"
        )
    return known.name


def check_drawn_from(name: str, indices: jax.Array, size: int, kind: str) -> None:
    """Raises ValueError if a sampled index is not below the number of rows or parts.

    Traced indices are not checked.
    """
    if is_traced(indices):
        return
    largest = int(np.asarray(indices).max())
    if largest >= size:
        raise ValueError(
            f"{name} must be the data from which the sample was drawn; got {size} "
            f"{kind}, but the sample has index {largest}"
        )


def concrete_array(name: str, value: Any, kind: str, **sizes: Any) -> np.ndarray:
    """Converts an array to NumPy; raises TypeError if it is traced.

    Dtype and shape are checked by `as_array`.
    """
    check_concrete(name, value, "its entries are checked")
    return np.asarray(as_array(name, value, kind, **sizes))


def host_array(name: str, value: Any, kind: str, **sizes: Any) -> np.ndarray:
    """Converts an array to NumPy; raises an error if it is traced or not finite."""
    array = concrete_array(name, value, kind, **sizes)
    if not np.isfinite(array).all():
        shown = in_short(array.tolist())
        raise ValueError(f"{name} must be finite; got {shown}")
    return array
