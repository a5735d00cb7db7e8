"""Checks of plain arguments, without JAX.

Each check names the argument, the rule and the given value. `ValueError` is for a wrong
value, `TypeError` for a wrong type.
"""

import operator
from typing import Any

import numpy as np


def in_short(value: object) -> str:
    """Returns the repr of a value, or only its type if the repr is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"a {type(value).__name__}"


def check_instance(name: str, value: object, kind: type, hint: str = "") -> None:
    """Raises TypeError unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise TypeError(
            f"{name} must be {article} {kind.__name__}{hint}; got {in_short(value)}"
        )


def check_shape(name: str, array: Any, axes: str, sizes: tuple[int | str, ...]) -> None:
    """Raises ValueError unless the axes of an array have the given sizes.

    "any" allows every size except zero. A leading "..." allows batch axes.
    """
    shape = np.shape(array)
    if sizes[0] == "...":
        expected = sizes[1:]
        last_axes = shape[-len(expected) :]
    else:
        expected = sizes
        last_axes = shape
    is_allowed = len(last_axes) == len(expected)
    for length, size in zip(last_axes, expected):
        is_allowed &= length > 0 if size == "any" else length == size
    if not is_allowed:
        values = "" if set(sizes) == {"any"} else f" = {sizes}".replace("'", "")
        ending = " and not be empty" if "any" in sizes else ""
        raise ValueError(f"{name} must have shape {axes}{values}{ending}; got {shape}")


def check_callable(name: str, value: object) -> None:
    """Raises TypeError unless `value` is callable."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {value!r}")


def check_bool(name: str, value: object) -> bool:
    """Converts True or False of Python or NumPy to bool; rejects other values."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_int(name: str, value: Any, minimum: int | None = None) -> int:
    """Converts an integer to int; rejects bools, floats and values below `minimum`."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an int; got {value!r}")
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a Python int, since it sets shapes; got {value!r}"
        ) from None
    if minimum is not None and size < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {size}")
    return size


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Returns `value`; raises ValueError unless it is one of the strings `choices`."""
    if not isinstance(value, str) or value not in choices:
        quoted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {quoted}; got {value!r}")
    return value


def check_entries(
    name: str, values: np.ndarray, is_valid: np.ndarray, rule: str
) -> None:
    """Raises ValueError with the first invalid entry, unless all are valid."""
    if not np.all(is_valid):
        index = int(np.argmin(is_valid))
        value = np.ravel(values)[index]
        raise ValueError(f"{name} must be {rule}; got {name}[{index}] = {value}")


def check_stragglers(
    num_stragglers: Any, num_workers: int, name: str = "num_stragglers"
) -> int:
    """Returns a number of stragglers; raises an error unless below `num_workers`."""
    num_workers = check_int("num_workers", num_workers, minimum=1)
    num_stragglers = check_int(name, num_stragglers, minimum=0)
    if num_stragglers >= num_workers:
        raise ValueError(
            f"{name} must be less than num_workers; got {name} = {num_stragglers} and "
            f"num_workers = {num_workers}"
        )
    return num_stragglers


def check_up_to(name: str, value: Any, **limit: int) -> int:
    """Returns an int; raises an error unless it is from 1 to a limit.

    The keyword gives the name and the value of the limit.
    """
    [(limit_name, maximum)] = limit.items()
    maximum = check_int(limit_name, maximum, minimum=1)
    value = check_int(name, value, minimum=1)
    if value > maximum:
        raise ValueError(
            f"{name} must be at most {limit_name}; got {name} = {value} and "
            f"{limit_name} = {maximum}"
        )
    return value
