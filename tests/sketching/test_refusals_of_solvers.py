"""Solvers refuse arguments that do not fit together, with their rule in the message.

Refusals of one argument alone are tested for each row of `tests/catalogue`.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from jaxwgc import sketching
from jaxwgc.sketching import (
    choose_ridge,
    iterative_hessian_sketch,
    logistic_newton_sketch,
    newton_sketch,
    preconditioned,
    sketch_and_solve,
)
from tests.catalogue.problems import MATRIX, TARGET
from tests.catalogue.rows import SKETCHING
from tests.sketching.refusals import check_refusal

SPARSE = sparse.BCOO.fromdense(MATRIX)
BLOCKS = sketching.Blocks([MATRIX])


def padded(vector):
    return jnp.pad(vector, (0, 16))


def first_four(vector):
    return vector[:4]


def operator(matvec=padded, rmatvec=first_four, shape=(20, 4), sketch=None):
    """The first four columns of the identity of 20 rows, as two functions."""
    return sketching.LinearOperator(
        matvec=matvec, rmatvec=rmatvec, shape=shape, sketch=sketch
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sketch_size": 3}, r"sketch_size must be at least min\(N, p\) = 4; got 3"),
        ({"matrix": operator()}, "needs operator.sketch, a function"),
    ],
)
def test_sketch_and_solve(changes, message):
    check_refusal(sketch_and_solve, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "columns"}, "must be 'gram' or 'sketch' or 'factor' for an array"),
        (
            {"method": "gram", "matrix": SPARSE, "sketch_size": None},
            "must be 'columns' or 'sketch' for a sparse matrix",
        ),
        (
            {"method": "gram", "matrix": BLOCKS, "sketch_size": None},
            "must be 'factor' or 'sketch' for Blocks",
        ),
        (
            {"method": "sketch", "matrix": operator()},
            "must be 'columns' for a LinearOp",
        ),
        ({"sketch_size": 3}, r"sketch_size must be at least min\(N, p\) = 4; got 3"),
    ],
)
def test_preconditioned(changes, message):
    check_refusal(preconditioned, changes, ValueError, message)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (operator(rmatvec=lambda u: 1.01 * u[:4]), "and adjoint"),
        (operator(rmatvec=lambda u: u), r"rmatvec must .* \(4,\)"),
        (operator(matvec=lambda v: v / 0), r"matvec must .* \(20,"),
        (operator(matvec=lambda v: padded(v) / 0), "be finite and"),
        (
            operator(sketch=lambda embedding: jnp.ones((5, 5))),
            r"operator.sketch must have shape \(m, p\) = \(8, 4\); got \(5, 5\)",
        ),
    ],
)
def test_operators_that_are_no_matrix(matrix, message):
    changes = {"matrix": matrix, "method": "auto"}
    check_refusal(preconditioned, changes, ValueError, message)


def test_shape_of_an_operator_is_missing():
    message = r"shape must be .* got \(0, 0\). Pass .*shape=\(N, p\)"
    with pytest.raises(ValueError, match=message):
        sketching.LinearOperator(padded)


def test_shape_of_an_operator_has_a_zero():
    with pytest.raises(ValueError, match=r"of positive ints; got \(20, 0"):
        operator(shape=(20, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Arguments in the order of other libraries: the error says which is wrong.
        ((padded, (20, 4)), r"rmatvec must be a fun.* got \(20, 4\).*by name: L"),
        (((20, 4), padded), r"matvec must be a fun.* got \(20, 4\).*by name: L"),
        ((None, None, (20, 4)), "matvec must be a function .*; got None"),
        ((padded, None, 20), r"shape must be a tuple \(N, p\) .*; got 20\. .*by name"),
        ((padded, None, [20, 4]), r"shape must be a tuple .* got \[20, 4\]"),
        ((padded, None, (20, 4.0)), r"shape\[1\] must be a Python int.* got 4.0"),
        ((padded, 1, (20, 4)), "rmatvec must be a function"),
        ((padded, None, (20, 4), complex), "dtype must be float32 or .* got complex"),
        ((padded, None, (20, 4), "no"), "dtype must be float32 or .* got 'no'"),
        ((padded, None, (20, 4), padded), "dtype must be .* got <function padded"),
        ((padded, None, (20, 4), jnp.float16), "dtype must be .*; got float16"),
        (
            (padded, None, (20, 4), None, (20, 4)),
            r"sketch must be a function .* got \(20, 4\)",
        ),
    ],
)
def test_operators_of_arguments_of_another_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        sketching.LinearOperator(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"matrix": sketching.Blocks([MATRIX[:8]]), "target": TARGET[:8]},
            "at least four rows per column, .* got Blocks of shape",
        ),
        ({"ridges": [1.0, -1.0]}, r"not negative; got ridges\[1\] = -1"),
        ({"ridges": 1.0}, r"ridges must have shape \(num_ridges,\)"),
    ],
)
def test_choose_ridge(changes, message):
    check_refusal(choose_ridge, changes, ValueError, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sketch_size": 7},
            ValueError,
            r"must be at least min\(N, p\) \+ 4 = 8; got 7",
        ),
        ({"refresh": False}, ValueError, "needs refresh=True"),
        ({"projection": lambda x: x[:2]}, TypeError, "dot_general requires|incompat"),
    ],
)
def test_iterative_hessian_sketch(changes, error, message):
    check_refusal(iterative_hessian_sketch, changes, error, message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"sketch_size": 3, "ridge": 0.0},
            ValueError,
            r"sketch_size must be at least .* = 4; got 3",
        ),
        (
            {"square_root_hessian": lambda params, target: jnp.ones((9, 3))},
            ValueError,
            "square_root_hessian must return",
        ),
        ({"params": {}}, ValueError, "params must have at least one number"),
        ({"loss": lambda params, target: params}, TypeError, "scalar-output functions"),
    ],
)
def test_newton_sketch(changes, error, message):
    check_refusal(newton_sketch, changes, error, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.ones(19)}, "labels must have shape"),
        ({"labels": np.full(20, 2.0)}, r"between 0 and 1; got labels\[0\] ="),
        ({"initial": np.ones(3)}, "initial must have shape"),
        ({"initial": np.full(4, np.inf)}, "initial must be finite"),
    ],
)
def test_logistic_newton_sketch(changes, message):
    check_refusal(logistic_newton_sketch, changes, ValueError, message)


# Functions of a matrix that read its rows, or that need it as one array.
OF_MATRICES = [
    (row.make, argument)
    for row in SKETCHING
    for argument, kind in row.kinds.items()
    if kind == "matrix"
]
TAKE_OPERATORS = (
    sketch_and_solve,
    preconditioned,
    sketching.approximate_leverage_scores,
)
TAKE_NO_BLOCKS = (
    sketching.lewis_weights,
    iterative_hessian_sketch,
    logistic_newton_sketch,
)


@pytest.mark.parametrize(
    ("function", "argument"),
    [case for case in OF_MATRICES if case[0] not in TAKE_OPERATORS],
)
def test_functions_that_take_no_operator(function, argument):
    message = "function reads its rows|real numbers; got LinearOperator of object"
    check_refusal(function, {argument: operator()}, TypeError, message)


@pytest.mark.parametrize(
    ("function", "argument"),
    [case for case in OF_MATRICES if case[0] in TAKE_NO_BLOCKS],
)
def test_functions_that_take_no_blocks(function, argument):
    message = "real numbers; got Blocks"
    check_refusal(function, {argument: BLOCKS}, TypeError, message)
