"""Solvers by sketches: one row for each function.

A new solver needs a row in `ROWS`.
"""

import lineax
import numpy as np

from jaxwgc import sketching
from jaxwgc.sketching.lineax import SketchPreconditioned
from tests.catalogue.problems import (
    KEY,
    LABELS,
    MATRIX,
    TARGET,
    positive_part,
    root_of_squared_distance,
    squared_distance,
)
from tests.catalogue.row import Row

ROWS = (
    Row(
        make=sketching.sketch_and_solve,
        arguments={
            "key": KEY,
            "matrix": MATRIX,
            "target": TARGET,
            "sketch_size": 8,
            "embedding": sketching.gaussian,
            "ridge": 0.5,
            "rcond": 1e-3,
        },
        rules={
            "sketch_size": "at least 1",
        },
        kinds={
            "matrix": "matrix",
            "target": "right-hand side",
            "embedding": "constructor",
            "rcond": "cutoff",
            "ridge": "ridge",
        },
        traceable=("key", "matrix", "target", "ridge", "rcond"),
    ),
    Row(
        make=sketching.preconditioned,
        arguments={
            "key": KEY,
            "matrix": MATRIX,
            "target": TARGET,
            "sketch_size": 8,
            "embedding": sketching.gaussian,
            "method": "sketch",
            "ridge": 0.5,
            "tolerance": 1e-6,
            "max_iterations": 50,
            "rcond": 1e-3,
        },
        rules={
            "sketch_size": "at least 1",
            "tolerance": "at least 0",
            "max_iterations": "at least 0",
        },
        kinds={
            "matrix": "matrix",
            "target": "right-hand side",
            "embedding": "constructor",
            "rcond": "cutoff",
            "ridge": "ridge",
        },
        traceable=("key", "matrix", "target", "ridge", "tolerance", "rcond"),
    ),
    Row(
        make=sketching.iterative_hessian_sketch,
        arguments={
            "key": KEY,
            "matrix": MATRIX,
            "target": TARGET,
            "sketch_size": 16,
            "num_iterations": 3,
            "projection": positive_part,
            "embedding": sketching.gaussian,
            "ridge": 0.5,
            "refresh": True,
            "step_size": 0.5,
            "num_inner_steps": 20,
            "tolerance": 1e-6,
        },
        rules={
            "sketch_size": "at least 1",
            "num_iterations": "at least 1",
            "step_size": "positive",
            "num_inner_steps": "at least 1",
            "tolerance": "at least 0",
        },
        kinds={
            "matrix": "matrix",
            "target": "right-hand side",
            "projection": "function",
            "embedding": "constructor",
            "ridge": "ridge",
        },
        traceable=("key", "matrix", "target", "ridge", "step_size", "tolerance"),
    ),
    Row(
        make=sketching.newton_sketch,
        arguments={
            "key": KEY,
            "loss": squared_distance,
            "square_root_hessian": root_of_squared_distance,
            "params": np.zeros(4),
            "sketch_size": 6,
            "embedding": sketching.gaussian,
            "args": (np.ones(4),),
            "ridge": 0.5,
            "num_refinements": 1,
            "tolerance": 1e-6,
            "max_iterations": 10,
        },
        rules={
            "sketch_size": "at least 1",
            "num_refinements": "at least 0",
            "tolerance": "at least 0",
            "max_iterations": "at least 1",
        },
        kinds={
            "loss": "function",
            "square_root_hessian": "function",
            "params": "numbers",
            "embedding": "constructor",
            "args": "tuple",
            "ridge": "ridge",
        },
        traceable=("key", "params", "args", "ridge", "tolerance"),
    ),
    Row(
        make=sketching.logistic_newton_sketch,
        arguments={
            "key": KEY,
            "features": MATRIX,
            "labels": LABELS,
            "sketch_size": 8,
            "embedding": sketching.gaussian,
            "ridge": 0.5,
            "initial": np.zeros(4),
            "num_refinements": 1,
            "tolerance": 1e-6,
            "max_iterations": 10,
        },
        rules={
            "sketch_size": "at least 1",
            "num_refinements": "at least 0",
            "tolerance": "at least 0",
            "max_iterations": "at least 1",
        },
        kinds={"features": "matrix", "embedding": "constructor", "ridge": "ridge"},
        traceable=("key", "features", "labels", "ridge", "initial", "tolerance"),
    ),
    Row(
        make=sketching.choose_ridge,
        arguments={
            "matrix": MATRIX,
            "target": TARGET,
            "ridges": np.array([0.1, 1.0]),
        },
        kinds={"matrix": "matrix", "target": "right-hand side"},
        traceable=("matrix", "target", "ridges"),
    ),
    Row(
        make=sketching.influence,
        arguments={
            "matrix": MATRIX,
            "target": TARGET,
            "weights": np.linspace(0.5, 2.0, 20),
            "ridge": 0.5,
            "leverage": np.linspace(0.1, 0.5, 20),
            "rcond": 1e-3,
        },
        kinds={
            "matrix": "matrix",
            "target": "right-hand side",
            "weights": "row weights",
            "ridge": "ridge",
            "leverage": "scores of rows",
            "rcond": "cutoff",
        },
        traceable=("matrix", "target", "weights", "ridge", "leverage", "rcond"),
    ),
)


class LineaxRow(Row):
    """A solver of lineax, which checks some arguments when it is given an operator."""

    def call(self, arguments):
        return self.make(**arguments).init(lineax.MatrixLinearOperator(MATRIX), {})


LINEAX_ROWS = (
    LineaxRow(
        make=SketchPreconditioned,
        arguments={
            "key": KEY,
            "sketch_size": 8,
            "embedding": sketching.gaussian,
            "method": "sketch",
            "tolerance": 1e-6,
            "max_iterations": 50,
            "rcond": 1e-3,
        },
        rules={
            "sketch_size": "at least 1",
            "tolerance": "at least 0",
            "max_iterations": "at least 0",
        },
        kinds={"embedding": "constructor", "rcond": "cutoff"},
    ),
)
