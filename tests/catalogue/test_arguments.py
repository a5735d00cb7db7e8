"""Wrong arguments raise errors that name the argument, the rule and the value."""

import math
import re

import jax
import numpy as np
import pytest

from jaxwgc import codes, decoders, stragglers
from tests.catalogue import functions
from tests.catalogue.rows import ROWS as ROWS_OF_PROTOCOLS

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY)
CODES = jax.vmap(lambda key: codes.cyclic_repetition(key, 4, 1))(KEYS)
ROWS = [*ROWS_OF_PROTOCOLS, *functions.ROWS]


def wrong_ints(rule):
    """Values and errors for an int of a rule, e.g. "at least 2"."""
    minimum = re.match(r"at least (\d+)", rule)
    too_small = int(minimum[1]) - 1 if minimum else 0
    return [
        (True, TypeError, "int.*; got "),
        (2.5, TypeError, "int.*; got "),
        ("2", TypeError, "int.*; got "),
        (too_small, ValueError, rf"{rule}\b.*; got .*{too_small}"),
    ]


def wrong_floats(rule):
    """Values and errors for a float of a rule, e.g. "positive"; empty for any float."""
    wrong = [
        ("a", TypeError, "real"),
        (True, TypeError, "real"),
        (math.nan, ValueError, rf"(a number; got |{rule}\b.*; got .*)nan"),
    ]
    if rule:
        wrong.append((-1.0, ValueError, rf"{rule}\b.*; got .*-1.0"))
    if rule.startswith("positive"):
        wrong.append((0.0, ValueError, rf"{rule}\b.*; got .*"))
    return wrong


def wrong_arrays(array):
    """Values and errors for an array, by its kind."""
    kinds = {"b": "bool", "i": "integers", "f": "(numbers|floats)"}
    wrong = [(np.full(array.shape, "a"), TypeError, kinds[array.dtype.kind])]
    if array.dtype == bool:
        wrong.append((np.ones(array.shape), TypeError, "bool"))
    return wrong


def wrong_values(row, name):
    """Values that an argument must not have, the class of the error, and its words."""
    match row.arguments[name]:
        case bool():
            return [(1, TypeError, "True or False"), ("no", TypeError, "True or False")]
        case int():
            return wrong_ints(row.rules[name])
        case float():
            return wrong_floats(row.rules[name])
        case str() as text:
            return [("other", ValueError, f"'{text}'.*; got 'other'")]
        case codes.GradientCode():
            one = r"one code .use jax.vmap for more.; got .* \(2, 4, 4\)"
            return [
                ("code", TypeError, "a GradientCode; got 'code'"),
                (CODES, ValueError, one),
            ]
        case decoders.Decoder():
            return [(wrong, TypeError, "a Decoder") for wrong in ("guess", dict)]
        case stragglers.DelayModel():
            return [(3.0, TypeError, "a DelayModel; got 3.0")]
        case stragglers.WaitingRule():
            return [(3.0, TypeError, "a WaitingRule; got 3.0")]
        case stragglers.StragglerModel():
            return [(3.0, TypeError, "a StragglerModel; got 3.0")]
        case jax.Array() if row.checks_keys:
            one_key = r"one key.*; got \(2,\)"
            return [
                (0, TypeError, "a PRNG key from jax"),
                (KEYS, ValueError, one_key),
            ]
        case np.ndarray() as array:
            return wrong_arrays(array)
    return []


@pytest.mark.parametrize(
    ("row", "name"), [(row, name) for row in ROWS for name in row.arguments], ids=str
)
def test_wrong_arguments(row, name):
    """One argument is wrong, the others are right."""
    for value, error, rule in wrong_values(row, name):
        with pytest.raises(error, match=rf"\b{name} must be .*{rule}"):
            row.call({**row.arguments, name: value})
