"""Checks of arguments, with one wording for the whole library.

Each check names the argument, the value it got and the rule that was broken:
`ValueError` for a wrong value, `TypeError` for a wrong type.
"""

import numbers
import operator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxwgc import _arrays


def is_traced(*values: Any) -> bool:
    """True where a leaf of `values` is a tracer, whose value is not known yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def check_concrete(name: str, value: Any, reason: str) -> None:
    """Raises TypeError for what is traced, with the reason why it must not be."""
    if is_traced(value):
        raise TypeError(
            f"{name} must be concrete, since {reason}; got a traced one, inside of "
            "jit, vmap or grad"
        )


def check_instance(name: str, value: Any, kind: type, hint: str = "") -> None:
    """Raises TypeError for what is of another class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(
            f"{name} must be {article} {kind.__name__}{hint}; got {value!r}"
        )


def check_shape(
    name: str, array: Any, axes: str, sizes: tuple[int | str, ...], hint: str = ""
) -> None:
    """Raises ValueError unless an array has these axes, named and of these sizes.

    "any" is any size but zero, and "..." in front any batch axes.
    """
    given = shape = np.shape(array)
    expected = sizes
    if sizes[0] == "...":
        expected = sizes[1:]
        given = shape[-len(expected) :]
    if len(given) != len(expected) or not all(
        length == size or (size == "any" and length)
        for length, size in zip(given, expected)
    ):
        if set(sizes) != {"any"}:
            axes += " = " + str(sizes).replace("'", "")
        ending = " and not be empty" if "any" in sizes else ""
        raise ValueError(f"{name} must have shape {axes}{hint}{ending}; got {shape}")


def check_callable(name: str, value: Any) -> None:
    """A function, or what can be called like one."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {value!r}")


def check_hashable(name: str, value: Any) -> None:
    """Raises TypeError where a rule or model cannot be told from another one."""
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{name} must be hashable, since equal ones share what is compiled: floats "
            f"and tuples in the place of arrays and lists; got {value!r}"
        ) from None


def check_bool(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_int(name: str, value: Any, minimum: int | None = None) -> int:
    """`value` as a Python int; numpy integers pass, bools and floats do not."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an int; got {value!r}")
    try:
        value = operator.index(value)
    except (TypeError, jax.errors.TracerIntegerConversionError):
        raise TypeError(
            f"{name} must be a Python int, since it sets shapes; got {value!r}"
        ) from None
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of the strings in `choices`."""
    if not (isinstance(value, str) and value in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")
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
    """A real scalar within its bounds; bounds of a traced value are not checked."""
    is_number = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    if (
        not is_number
        or np.ndim(value) != 0
        or not _arrays.is_kind(value, "real numbers")
    ):
        raise TypeError(f"{name} must be a real scalar; got {value!r}")
    if is_traced(value):
        if not traceable:
            raise TypeError(f"{name} must be concrete, not traced; got {value!r}")
        return
    if np.isnan(value):
        raise ValueError(f"{name} must be a number; got {value}")
    if positive and not value > 0:
        raise ValueError(f"{name} must be positive; got {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}; got {value}")
    if finite and np.isinf(value):
        raise ValueError(f"{name} must be finite; got {value}")


def check_share(name: str, value: Any) -> None:
    """A number between 0 and 1 whose value is known."""
    check_number(name, value, traceable=False)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1; got {value}")


def check_key(key: Any, name: str = "key") -> jax.Array:
    """One PRNG key of either kind, from `jax.random.key` or `jax.random.PRNGKey`."""
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        raise TypeError(
            f"{name} must be a PRNG key from jax.random.key or jax.random.PRNGKey; "
            f"got {key!r}"
        )
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.ndim != 0:
            raise ValueError(f"{name} must be one key; got an array of {key.shape}")
    elif dtype == np.uint32:
        # Two words, or four, by the implementation that is set as the default.
        one_key = jax.eval_shape(jax.random.PRNGKey, 0).shape
        if key.shape != one_key:
            raise ValueError(
                f"{name} must be one key, so uint32 of shape {one_key}; got {key.shape}"
            )
    else:
        raise TypeError(
            f"{name} must be a PRNG key from jax.random.key or jax.random.PRNGKey; "
            f"got an array of {dtype}"
        )
    return key


def check_leading_axis(
    name: str, tree: Any, size: int, axis_name: str, hint: str = ""
) -> None:
    """Every leaf of `tree` has a leading axis of `size`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_arrays.is_sparse)
    if not leaves:
        raise ValueError(f"{name} must have at least one array; got {tree!r}")
    for path, leaf in leaves:
        # A BCOO with a batch axis is one that JAX maps functions over.
        if not getattr(leaf, "n_batch", 0):
            check_dense(f"{name}{jax.tree_util.keystr(path)}", leaf)
        shape = np.shape(leaf)
        if not shape or shape[0] != size:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have a leading axis of "
                f"{axis_name} = {size}; got shape {shape}{hint}"
            )


def check_dense(name: str, value: Any, hint: str = "") -> None:
    """Raises TypeError for a sparse matrix, which JAX would convert entry by entry."""
    if _arrays.is_sparse(value):
        raise TypeError(
            f"{name} must be a dense array; got {type(value).__name__}; convert it "
            f"with `.todense()`{hint}"
        )


def as_array(name: str, value: Any) -> Any:
    """`value`, or a NumPy array of it where it is a number or rows of numbers."""
    check_dense(name, value)
    if hasattr(value, "dtype"):
        return value
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name} must be an array, or rows of one length; got {value!r}"
        ) from error


def check_dtypes(name: str, tree: Any, kind: str, abstract: bool = False) -> None:
    """Every leaf of `tree` has entries of a kind in `_arrays.KINDS`.

    With `abstract` it need not have any, and may be a `jax.ShapeDtypeStruct`.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        has_entries = abstract or not isinstance(leaf, jax.ShapeDtypeStruct)
        if not (has_entries and _arrays.is_kind(leaf, kind)):
            # Of a function, a string and the like NumPy's dtype would say nothing.
            is_array = hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)
            shown = _arrays.dtype_of(leaf) if has_entries and is_array else repr(leaf)
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be {kind}; got {shown}"
                f"{_ADVICE.get(kind, '')}"
            )


# By the kind in `_arrays.KINDS` that parameters and their gradients are of.
_ADVICE = {
    "real or complex floats": (
        " (an optimizer moves floats alone: split off what is static, integers and "
        "keys, as eqx.partition(params, eqx.is_inexact_array) and nnx.split(module, "
        "nnx.Param, ...) do, and put them back inside of the loss; floats that are to "
        "stay as they are go through optax.masked, after the aggregator)"
    )
}


def check_entries(
    name: str, values: np.ndarray, is_right: np.ndarray, rule: str
) -> None:
    """Checks that all entries of a concrete vector keep a rule."""
    if not is_right.all():
        first = int(is_right.argmin())
        raise ValueError(
            f"{name} must be {rule}; got {name}[{first}] = {values[first]}"
        )


def probabilities(name: str, value: Any) -> np.ndarray:
    """`value` in float64, (num_workers,), all entries between 0 and 1."""
    array = host_array(name, value, "real numbers", 1).astype(np.float64)
    check_shape(name, array, "(num_workers,)", ("any",))
    check_entries(name, array, (array > 0) & (array < 1), "between 0 and 1")
    return array


def check_message_dtype(dtype: Any) -> str | None:
    """The name of a dtype of real floats that messages are sent in, or None."""
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


def check_stragglers(
    num_stragglers: Any, num_workers: int, name: str = "num_stragglers"
) -> int:
    """A number of stragglers that leaves at least one worker to answer."""
    num_stragglers = check_int(name, num_stragglers, minimum=0)
    if num_stragglers >= num_workers:
        raise ValueError(
            f"{name} must be less than num_workers; got {name} = {num_stragglers} and "
            f"num_workers = {num_workers}"
        )
    return num_stragglers


def check_up_to(name: str, value: Any, **limit: int) -> int:
    """An int from 1 to another number, which is given by its name."""
    [(limit_name, most)] = limit.items()
    value = check_int(name, value, minimum=1)
    if value > most:
        raise ValueError(
            f"{name} must be at most {limit_name}; got {name} = {value} and "
            f"{limit_name} = {most}"
        )
    return value


def check_one_round(num_workers: int, **given: Any) -> None:
    """Arrivals, by the name of their argument, without batch axes."""
    for name, value in given.items():
        if value is not None and not isinstance(value, tuple) and np.ndim(value) > 1:
            raise ValueError(
                f"{name} must have shape (num_workers,) = ({num_workers},); got "
                f"{np.shape(value)}"
            )


def concrete_array(name: str, value: Any, kind: str) -> np.ndarray:
    """`value` in NumPy, all of whose entries are of that kind."""
    check_concrete(name, value, "its entries are checked")
    array = np.asarray(as_array(name, value))
    check_dtypes(name, array, kind)
    return array


def host_array(name: str, value: Any, kind: str, num_axes: int) -> np.ndarray:
    """`value` in NumPy, all of whose entries are finite and of that kind."""
    array = concrete_array(name, value, kind)
    if array.ndim != num_axes:
        raise ValueError(
            f"{name} must have {num_axes} ax{'es' if num_axes > 1 else 'is'}; got "
            f"shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got {array}")
    return array


def measured_times(times: Any, least_rounds: int = 1) -> np.ndarray:
    """Measured times in float64, checked; infinity for missing responses.

    Not a copy if nothing has to be changed.
    """
    table = concrete_array("times", times, "real numbers")
    if table.ndim not in (2, 3) or len(table) < least_rounds or not table.size:
        raise ValueError(
            "times must have shape (rounds, workers) or (rounds, workers, parts), with "
            f"at least {least_rounds} rounds; got {table.shape}"
        )
    table = table.astype(np.float64, copy=False)
    if np.isnan(table).any():
        table = np.where(np.isnan(table), np.inf, table)
    if np.any(table <= 0):
        place = np.unravel_index(np.argmax(table <= 0), table.shape)
        raise ValueError(
            "times must be positive, and NaN or infinity if there was no response; got "
            f"{table[place]} at {[*map(int, place)]}"
        )
    return table
