"""Checks of arguments, with uniform error messages.

Each check names the argument, the rule and the given value. `ValueError` is for a wrong
value, `TypeError` for a wrong type.
"""

import numbers
import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays, _tables


def is_traced(*values: Any) -> bool:
    """Returns whether a leaf of `values` is a tracer, so that its value is unknown."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def require(is_right: Any, name: str, rule: str, given: Any) -> None:
    """Raises ValueError "`name` must `rule`; got `given`" unless `is_right`."""
    if not is_right:
        raise ValueError(f"{name} must {rule}; got {given}")


def in_short(value: Any) -> str:
    """Returns the `repr` of a value, or the type if the `repr` is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"a {type(value).__name__}"


def check_concrete(name: str, value: Any, reason: str) -> None:
    """Raises TypeError, with a reason, if `value` is traced."""
    if is_traced(value):
        raise TypeError(f"{name} must be concrete, since {reason}; got a traced value")


def check_instance(name: str, value: Any, kind: type, hint: str = "") -> None:
    """Raises TypeError unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        rule = f"be {article} {kind.__name__}{hint}"
        raise TypeError(f"{name} must {rule}; got {in_short(value)}")


def check_shape(
    name: str, array: Any, axes: str, sizes: tuple[int | str, ...], hint: str = ""
) -> None:
    """Raises ValueError unless an array has the named axes with the given sizes.

    "any" allows every size except zero. A leading "..." allows batch axes.
    """
    shape = np.shape(array)
    expected = sizes[sizes[0] == "..." :]
    given = shape[-len(expected) :] if len(expected) < len(sizes) else shape
    if len(given) != len(expected) or not all(
        length == size or (size == "any" and length)
        for length, size in zip(given, expected)
    ):
        named = "" if set(sizes) == {"any"} else f" = {sizes}".replace("'", "")
        ending = " and not be empty" if "any" in sizes else ""
        rule = f"have shape {axes}{named}{hint}{ending}"
        raise ValueError(f"{name} must {rule}; got {shape}")


def check_callable(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is callable."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {value!r}")


def check_bool(name: str, value: Any) -> bool:
    """Checks that `value` is True or False, and returns it as a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_int(name: str, value: Any, minimum: int | None = None) -> int:
    """Converts an integer of Python or NumPy to int; rejects bools and floats."""
    is_bool = isinstance(value, bool | np.bool_)
    try:
        size = None if is_bool else operator.index(value)
    except TypeError:
        size = None
    if size is None:
        rule = "an int" if is_bool else "a Python int, since it sets shapes"
        raise TypeError(f"{name} must be {rule}; got {value!r}")
    require(minimum is None or size >= minimum, name, f"be at least {minimum}", size)
    return size


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Checks that `value` is one of the strings in `choices`, and returns it."""
    is_right = isinstance(value, str) and value in choices
    require(is_right, name, f"be one of {', '.join(map(repr, choices))}", repr(value))
    return value


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
    """Checks a real scalar and its bounds; if the value is traced, only its type."""
    if np.ndim(value) or not _arrays.is_kind(value, "real numbers"):
        raise TypeError(f"{name} must be a real scalar; got {value!r}")
    if not traceable:
        check_concrete(name, value, "it is used on the host")
    if is_traced(value):
        return
    value = np.asarray(value)
    require(not np.isnan(value), name, "be a number", value)
    require(not positive or value > 0, name, "be positive", value)
    require(minimum is None or value >= minimum, name, f"be at least {minimum}", value)
    require(maximum is None or value <= maximum, name, f"be at most {maximum}", value)
    require(not finite or np.isfinite(value), name, "be finite", value)


def check_fields(model: Any, **rules: Any) -> None:
    """Checks the number fields of a dataclass, which may be traced.

    Concrete numbers become floats, so that equal models are equal and share programs.
    """
    for name, rule in rules.items():
        value = getattr(model, name)
        check_number(name, value, **rule)
        if not is_traced(value):
            object.__setattr__(model, name, float(value))


def check_share(name: str, value: Any) -> None:
    """Checks that a concrete number is strictly between 0 and 1."""
    check_number(name, value, traceable=False)
    require(0 < value < 1, name, "be between 0 and 1", value)


def check_key(key: Any, name: str = "key") -> jax.Array:
    """Checks that `key` is one PRNG key, typed or raw, and returns it."""
    is_typed = _arrays.is_kind(key, "keys")
    if not is_typed and getattr(key, "dtype", None) != np.uint32:
        rule = "a PRNG key from jax.random.key or jax.random.PRNGKey"
        raise TypeError(f"{name} must be {rule}; got {in_short(key)}")
    # A raw key has two or four words, depending on the default implementation.
    one = () if is_typed else jax.eval_shape(jax.random.PRNGKey, 0).shape
    require(key.shape == one, name, f"be one key, of shape {one}", key.shape)
    return key


def check_leading_axis(
    name: str, tree: Any, size: int, axis_name: str, hint: str = ""
) -> None:
    """Checks that every leaf of `tree` has a leading axis of `size`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_arrays.is_sparse)
    require(leaves, name, "have at least one array", tree)
    rule = f"have a leading axis of {axis_name} = {size}"
    for path, leaf in leaves:
        shown = name + jax.tree_util.keystr(path)
        # BCOO matrices with a batch axis pass, because JAX can map functions over that
        # axis.
        if not getattr(leaf, "n_batch", 0):
            check_dense(shown, leaf)
        shape = np.shape(leaf)
        require(shape[:1] == (size,), shown, rule, f"shape {shape}{hint}")


def check_parts(name: str, tree: Any, axis_name: str) -> int:
    """Returns the size of the leading axis, at least 1, that all leaves share."""
    leaves = jax.tree.leaves(tree)
    size = np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else 0
    rule = f"have a leading axis of {axis_name}, at least 1"
    require(size, name, rule, tree)
    check_leading_axis(name, tree, size, axis_name)
    return size


def check_dense(name: str, value: Any, hint: str = "") -> None:
    """Raises TypeError for a sparse matrix, which JAX would convert entry by entry."""
    if _arrays.is_sparse(value):
        given = f"{type(value).__name__}; convert it with `.todense()`{hint}"
        raise TypeError(f"{name} must be a dense array; got {given}")


def as_array(
    name: str, value: Any, kind: str, *batch: str, or_number: Any = False, **sizes: Any
) -> Any:
    """Checks the dtype and shape of an array and returns it.

    Numbers and lists become NumPy arrays. Keywords name the axes and give their sizes,
    as in `check_shape`.
    """
    check_dense(name, value)
    array = value if hasattr(value, "dtype") else np.asarray(value)
    check_dtypes(name, array, kind)
    if sizes and not (or_number and array.ndim == 0):
        axes = ", ".join([*batch, *sizes]) + "," * (len(sizes) == 1 and not batch)
        check_shape(name, array, f"({axes})", (*batch, *sizes.values()))
    return array


def check_dtypes(name: str, tree: Any, kind: str, abstract: bool = False) -> None:
    """Checks that the dtype of every leaf belongs to `kind`, a key of `_arrays.KINDS`.

    With `abstract`, leaves may be `jax.ShapeDtypeStruct`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        has_entries = abstract or not isinstance(leaf, jax.ShapeDtypeStruct)
        if not (has_entries and _arrays.is_kind(leaf, kind)):
            # NumPy's dtype of a function or a string says nothing, so the error shows
            # the leaf.
            is_array = hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)
            shown = _arrays.dtype_of(leaf) if has_entries and is_array else repr(leaf)
            shown = f"{shown}{_ADVICE.get(kind, '')}"
            path = jax.tree_util.keystr(path)
            raise TypeError(f"{name}{path} must be {kind}; got {shown}")


# Advice that errors add, by kind in `_arrays.KINDS`. This kind is for parameters and
# their gradients.
_ADVICE = {
    "real or complex floats": " (split off integers, keys and static fields by "
    "eqx.partition(params, eqx.is_inexact_array) or nnx.split(module, nnx.Param, ...); "
    "freeze floats by optax.masked, after the aggregator)"
}


def check_entries(
    name: str, values: np.ndarray, is_right: np.ndarray, rule: str
) -> None:
    """Checks that all entries of a concrete vector obey a rule."""
    if not np.all(is_right):
        index = int(np.argmin(is_right))
        given = f"{name}[{index}] = {np.ravel(values)[index]}"
        raise ValueError(f"{name} must be {rule}; got {given}")


def probabilities(name: str, value: Any) -> np.ndarray:
    """Checks probabilities (num_workers,) in (0, 1), and converts them to float64."""
    array = host_array(name, value, "real numbers", num_workers="any")
    check_entries(name, array, (array > 0) & (array < 1), "between 0 and 1")
    return array.astype(np.float64)


def check_message_dtype(dtype: Any) -> str | None:
    """Checks the dtype of messages, and returns its name, or None if there is none."""
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"message_dtype must be a dtype; got {dtype!r}") from error
    is_right = jnp.issubdtype(known, jnp.floating) and known.itemsize in (2, 4)
    require(is_right, "message_dtype", "be bfloat16, float16 or float32", repr(dtype))
    return known.name


def check_stragglers(
    num_stragglers: Any, num_workers: int, name: str = "num_stragglers"
) -> int:
    """Checks that a number of stragglers leaves at least one worker to respond."""
    num_workers = check_int("num_workers", num_workers, minimum=1)
    num_stragglers = check_int(name, num_stragglers, minimum=0)
    given = f"{name} = {num_stragglers} and num_workers = {num_workers}"
    require(num_stragglers < num_workers, name, "be less than num_workers", given)
    return num_stragglers


def check_up_to(name: str, value: Any, **limit: int) -> int:
    """Checks that `value` is an int from 1 to a limit, given as a keyword argument."""
    [(limit_name, most)] = limit.items()
    most = check_int(limit_name, most, minimum=1)
    value = check_int(name, value, minimum=1)
    given = f"{name} = {value} and {limit_name} = {most}"
    require(value <= most, name, f"be at most {limit_name}", given)
    return value


def concrete_array(name: str, value: Any, kind: str, **sizes: Any) -> np.ndarray:
    """Applies `as_array` and converts the result to NumPy."""
    check_concrete(name, value, "its entries are checked")
    return np.asarray(as_array(name, value, kind, **sizes))


def host_array(name: str, value: Any, kind: str, **sizes: Any) -> np.ndarray:
    """Applies `concrete_array` and checks that all entries are finite."""
    array = concrete_array(name, value, kind, **sizes)
    require(np.isfinite(array).all(), name, "be finite", array)
    return array


def measured_times(times: Any, least_rounds: int = 1) -> np.ndarray:
    """Checks measured times and converts them to float64; NaN becomes infinity.

    Returns a copy only if necessary. A DataFrame becomes an array (rounds, workers).
    """
    if _tables.is_frame(times):
        times = _tables.times_of_frame(times).times
    table = concrete_array("times", times, "real numbers")
    table = table.astype(np.float64, copy=False)
    is_right = table.ndim in (2, 3) and len(table) >= least_rounds and table.size
    rule = (
        "have shape (rounds, workers) or (rounds, workers, parts), not empty and with "
        f"at least {least_rounds} rounds"
    )
    require(is_right, "times", rule, table.shape)
    if np.isnan(table).any():
        table = np.where(np.isnan(table), np.inf, table)
    rule = "be positive, and NaN or infinity if there was no response"
    if np.any(table <= 0):
        place = np.argwhere(table <= 0)[0].tolist()
        raise ValueError(f"times must {rule}; got {table[*place]} at {place}")
    return table


def waiting_times(waits: Any) -> np.ndarray:
    """Checks waiting times (rounds, workers), and converts them to float64."""
    table = concrete_array("waits", waits, "real numbers").astype(np.float64)
    if table.ndim != 2 or len(table) < 2 or not table.size:
        raise ValueError(
            "waits must have shape (rounds, workers), with at least 2 rounds; got "
            f"{table.shape}"
        )
    if np.any(table < 0) or np.any(np.isinf(table)):
        place = tuple(np.argwhere((table < 0) | np.isinf(table))[0].tolist())
        raise ValueError(
            "waits must be finite and at least 0, and NaN for a worker that did not "
            f"take part; got {table[place]} at {list(place)}"
        )
    return table
