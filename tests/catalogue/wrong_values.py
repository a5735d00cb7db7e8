"""Wrong values of an argument, and the errors that they raise."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

import jaxwgc
from jaxwgc import codes, decoders, sketching, stragglers

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY)
CODES = jax.vmap(lambda key: codes.cyclic_repetition(key, 4, 1))(KEYS)

# By kind, as rows name it: wrong values, the class of the error, and its words after
# the name of the argument. The sizes are those of `problems.py`.
WRONG = {
    "matrix": [
        (np.ones(3), ValueError, r"must have shape \(N, p\) and .*; got \(3,\)"),
        (np.ones((0, 3)), ValueError, r"must .* not be empty; got \(0, 3\)"),
        (np.ones((3, 0)), ValueError, r"must .* not be empty; got \(3, 0\)"),
        (np.full((20, 4), np.nan), ValueError, "must be finite; got 80 NaN"),
        (np.ones((20, 4), complex), TypeError, "must be real"),
        ("no", TypeError, "must be real numbers; got str of <U2"),
    ],
    "right-hand side": [
        (np.full(20, np.inf), ValueError, "must be finite; got 20 NaN"),
        (np.ones(19), ValueError, r"must have .*; got \(19,\) with a matrix of"),
        (np.ones((20, 0)), ValueError, r"must have shape .*; got \(20, 0\)"),
        (np.ones((20, 1, 1)), ValueError, r"must have shape .*; got \(20, 1, 1\)"),
        ("abc", TypeError, "must be real numbers; got str of <U3"),
    ],
    "proportional to probabilities": [
        (
            np.array([1.0, -0.5]),
            ValueError,
            r"must be .* not negative; got .*\[1\] = -",
        ),
        (np.array([np.nan, 0.5]), ValueError, r"must be .*\[0\] = nan"),
        (np.array([np.inf, 0.5]), ValueError, r"must be .*\[0\] = inf"),
        (np.zeros(2), ValueError, "must not all be zero"),
        (np.ones((2, 1)), ValueError, r"must have shape \(size,\)"),
        (np.ones(0), ValueError, "must .* and not be empty"),
        (np.ones(2, complex), TypeError, "must be real"),
    ],
    "cutoff": [
        (-1.0, ValueError, "must be at least 0; got -1.0"),
        (1.0, ValueError, "must be less than 1; got 1.0"),
        (math.nan, ValueError, "must be a number; got nan"),
        (np.ones(2), TypeError, "must be a real scalar"),
        ("a", TypeError, "must be a real scalar"),
    ],
    "ridge": [
        (-1.0, ValueError, "must be at least 0; got -1.0"),
        (math.nan, ValueError, "must be a number; got nan"),
        (1e60, ValueError, "must be finite in float32"),
        ("1", TypeError, "must be a real scalar"),
    ],
    "positive numbers": [
        (np.array([1.0, 0.0, 1.0, 1.0]), ValueError, "must be positive and finite"),
        (np.array([1.0, np.inf, 1.0, 1.0]), ValueError, "must be positive and finite"),
        (np.ones(4, complex), TypeError, "must be real"),
    ],
    "row weights": [
        (np.full(20, np.nan), ValueError, "must be finite; got 20 NaN"),
        (np.full(20, -2.0), ValueError, r"must be not negative; got .*\[0\] = -2.0"),
        (np.ones(19), ValueError, r"must have shape \(N,\) .*\(20,\); got \(19,\)"),
        (np.ones((20, 1)), ValueError, r"must have shape .*; got \(20, 1\)"),
        (np.ones(20, complex), TypeError, "must be real"),
    ],
    "scores of rows": [
        (np.full(20, 1.5), ValueError, r"must be between 0 and 1; got .*\[0\] = 1.5"),
        (np.full(20, -0.5), ValueError, r"must be between 0 and 1; got .*\[0\] = -"),
        (np.ones(19), ValueError, r"must have shape \(N,\) .*\(20,\); got \(19,\)"),
        ("no", TypeError, "must be real numbers; got str"),
    ],
    "numbers": [
        (np.full((20, 4), np.nan), ValueError, "must be finite"),
        (np.ones((20, 4), complex), TypeError, "must be real"),
        ("no", TypeError, "must be real"),
    ],
    "constructor": [
        ("gaussian", TypeError, r"must .* such as sketching.srht \(not its name\)"),
        (lambda *sizes: np.eye(3), TypeError, "must be a constructor"),
        (lambda *_: sketching.gaussian(KEY, 1, 2), ValueError, r"must .* \(1, 2\)"),
        (sketching.gaussian(KEY, 1, 2), ValueError, r"must .* got \(1, 2\)"),
    ],
    "embedding": [(np.eye(5), TypeError, "must be an Embedding")],
    "known embedding": [(jaxwgc.parts.partition, ValueError, "must be one of")],
    "function": [
        (1.0, TypeError, "must be a function; got 1.0"),
        ("no", TypeError, "must be a function; got 'no'"),
    ],
    "tuple": [(np.ones(2), TypeError, "must be a tuple")],
}


def wrong_ints(rule):
    """Wrong values and errors for an int of a rule, e.g. "at least 2"."""
    minimum = re.match(r"at least (\d+)", rule)
    too_small = int(minimum[1]) - 1 if minimum else 0
    return [
        (True, TypeError, "must be .*int.*; got "),
        (2.5, TypeError, "must be .*int.*; got "),
        ("2", TypeError, "must be .*int.*; got "),
        (too_small, ValueError, rf"must be .*{rule}\b.*; got .*{too_small}"),
    ]


def wrong_floats(rule):
    """Wrong values and errors for a float of a rule; an empty rule allows any float."""
    wrong = [
        ("a", TypeError, "must be .*real"),
        (True, TypeError, "must be .*real"),
        (math.nan, ValueError, rf"must be .*(a number; got |{rule}\b.*; got .*)nan"),
    ]
    if rule:
        wrong.append((-1.0, ValueError, rf"must be .*{rule}\b.*; got .*-1.0"))
    if rule == "between 0 and 1":
        wrong.append((0.0, ValueError, rf"must be .*{rule}\b.*; got 0.0"))
    if rule.startswith("positive"):
        wrong.append((0.0, ValueError, rf"must be .*{rule}\b.*; got .*"))
    return wrong


def wrong_arrays(array):
    """Wrong values and errors for an array, by its dtype."""
    kinds = {"b": "bool", "i": "integers", "f": "(numbers|floats)"}
    rule = f"must be .*{kinds[array.dtype.kind]}"
    wrong = [(np.full(array.shape, "a"), TypeError, rule)]
    if array.dtype == bool:
        wrong.append((np.ones(array.shape), TypeError, rule))
    return wrong


def wrong_values(row, name):
    """Values that an argument must not have, the class of the error, and its words."""
    if name in row.kinds:
        return WRONG[row.kinds[name]]
    match row.arguments[name]:
        case bool():
            return [
                (1, TypeError, "must be True or False"),
                ("no", TypeError, "must be True or False"),
            ]
        case int():
            return wrong_ints(row.rules[name])
        case float():
            return wrong_floats(row.rules[name])
        case str() as text:
            return [("other", ValueError, f"must be .*'{text}'.*; got 'other'")]
        case codes.GradientCode():
            one = r"must be one code .use jax.vmap for more.; got .* \(2, 4, 4\)"
            return [
                ("code", TypeError, "must be a GradientCode; got 'code'"),
                (CODES, ValueError, one),
            ]
        case decoders.Decoder():
            return [
                ("guess", TypeError, "must be a Decoder"),
                (dict, TypeError, "must be a Decoder"),
            ]
        case stragglers.DelayModel():
            return [(3.0, TypeError, "must be a DelayModel; got 3.0")]
        case stragglers.WaitingRule():
            return [(3.0, TypeError, "must be a WaitingRule; got 3.0")]
        case stragglers.StragglerModel():
            return [(3.0, TypeError, "must be a StragglerModel; got 3.0")]
        case jax.Array() if row.checks_keys and jnp.issubdtype(
            row.arguments[name].dtype, jax.dtypes.prng_key
        ):
            return [
                (0, TypeError, "must be a PRNG key from jax"),
                (KEYS, ValueError, r"must be one key.*; got \(2,\)"),
            ]
        case np.ndarray() as array:
            return wrong_arrays(array)
    return []
