"""Scores refuse arguments that do not fit together, with their rule in the message.

Refusals of one argument alone are tested for each row of `tests/catalogue`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from jax.experimental import sparse

from jaxwgc import sketching
from jaxwgc.sketching import bless, effective_resistances, leverage_scores
from tests.catalogue.problems import MATRIX
from tests.sketching.refusals import ROWS, check_refusal

SPARSE = sparse.BCOO.fromdense(MATRIX)
BLOCKS = sketching.Blocks([MATRIX])


def no_matrix(x, y):
    return x @ y.sum(0)


def negative(x, y):
    return jnp.full((len(x), len(y)), -1.0)


def infinite(x, y):
    return jnp.full((len(x), len(y)), jnp.inf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"matrix": SPARSE, "method": "qr"},
            "method must be 'auto' or 'gram' for a sp",
        ),
        (
            {"matrix": BLOCKS, "method": "qr"},
            "method must be 'auto' or 'gram' .* got '",
        ),
    ],
)
def test_leverage_scores_of_a_kind_without_the_method(changes, message):
    check_refusal(leverage_scores, changes, ValueError, message)


def test_rank_above_that_of_the_matrix():
    message = r"got rank = 5 and min\(N, p\) = 4"
    changes = {"rank": 5}
    check_refusal(sketching.rank_k_leverage_scores, changes, ValueError, message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"city": ["a", "b"]},
            "object; drop column 'city', or encode it as numbers",
        ),
        (
            {"city": ["a", "b"], 7: ["c", "d"]},
            "drop columns 'city', 7, or encode them as numbers",
        ),
        (
            {f"x{i}": ["a", "b"] for i in range(8)},
            "drop columns 'x0', 'x1', 'x2', 'x3', 'x4' and 3 more, or encode them",
        ),
        ({"flag": [True, False]}, r"have different dtypes: use frame.astype\(float\)"),
    ],
)
def test_data_frames_of_mixed_dtypes(columns, message):
    frame = pandas.DataFrame({"size": [1.0, 2.0], **columns})
    message = f"matrix must be real numbers; got DataFrame .*{message}"
    check_refusal(leverage_scores, {"matrix": frame}, TypeError, message)


def test_lewis_weights_of_an_infinite_norm():
    check_refusal(
        sketching.lewis_weights, {"p": np.inf}, ValueError, "p must be finite"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridge": np.inf}, "ridge must be finite"),
        ({"ridge": 1e-30}, "ridge must be .* 8 machine epsilons"),
        ({"step": 1.0}, "step must be more than 1"),
        ({"data": np.zeros((0, 2))}, "data must have a leading axis of n"),
        ({"kernel": no_matrix}, "kernel must take"),
        ({"kernel": negative}, r"kernel must be .* kernel\[0\] = -1"),
        ({"kernel": infinite}, "kernel must be finite"),
    ],
)
def test_bless(changes, message):
    check_refusal(bless, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.ones((2, 3), int)}, r"edges must have shape \(m, 2"),
        ({"edges": [[0, -1]], "weights": None}, "got -1 to 0"),
        ({"edges": [[0, 4]], "weights": None}, "got 0 to 4 with num_vertices = 4"),
        ({"weights": [1.0, 2.0]}, r"weights must have shape \(m,\) = \(4,\)"),
    ],
)
def test_edges_and_weights_of_no_graph(changes, message):
    check_refusal(effective_resistances, changes, ValueError, message)


def test_edges_of_floats():
    edges = np.ones((2, 2))
    message = "edges must be integers"
    check_refusal(effective_resistances, {"edges": edges}, TypeError, message)


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (sketching.approximate_leverage_scores, "epsilon", "epsilon must be concrete"),
        (bless, "ridge", "ridge must be concrete"),
    ],
)
def test_traced_numbers_that_set_shapes(function, argument, message):
    arguments = ROWS[function.__name__].arguments
    with pytest.raises(TypeError, match=message):
        jax.make_jaxpr(lambda number: function(**{**arguments, argument: number}))(0.5)


def test_traced_edges_without_the_number_of_vertices():
    edges = jnp.array([[0, 1]])
    with pytest.raises(TypeError, match="num_vertices must be given"):
        jax.make_jaxpr(effective_resistances)(edges)


def test_constants_of_a_traced_function_are_checked():
    matrix = jnp.full((4, 2), jnp.nan)
    with pytest.raises(ValueError, match="matrix must be finite; got 8 NaN"):
        jax.jit(lambda x: x * leverage_scores(matrix))(1.0)
