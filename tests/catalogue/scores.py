"""Scores of rows: one row for each function.

A new score needs a row in `ROWS`.
"""

import numpy as np

from jaxwgc import sketching
from tests.catalogue.problems import KEY, MATRIX, gaussian_kernel
from tests.catalogue.row import Row

EDGES = np.array([[0, 1], [1, 2], [2, 0], [2, 3]])

ROWS = (
    Row(
        make=sketching.leverage_scores,
        arguments={"matrix": MATRIX, "method": "auto", "rcond": 1e-3},
        kinds={"matrix": "matrix", "rcond": "cutoff"},
        traceable=("matrix", "rcond"),
    ),
    Row(
        make=sketching.numerical_rank,
        arguments={"matrix": MATRIX, "rcond": 1e-3},
        kinds={"matrix": "matrix", "rcond": "cutoff"},
        traceable=("matrix", "rcond"),
    ),
    Row(
        make=sketching.approximate_leverage_scores,
        arguments={"key": KEY, "matrix": MATRIX, "epsilon": 0.9, "rcond": 1e-3},
        rules={"epsilon": "between 0 and 1"},
        kinds={"matrix": "matrix", "rcond": "cutoff"},
        traceable=("key", "matrix", "rcond"),
    ),
    Row(
        make=sketching.rank_k_leverage_scores,
        arguments={
            "key": KEY,
            "matrix": MATRIX,
            "rank": 2,
            "num_passes": 3,
            "oversampling": 1,
            "rcond": 1e-3,
        },
        rules={
            "rank": "at least 1",
            "num_passes": "at least 3",
            "oversampling": "at least 0",
        },
        kinds={"matrix": "matrix", "rcond": "cutoff"},
        traceable=("key", "matrix", "rcond"),
    ),
    Row(
        make=sketching.ridge_leverage_scores,
        arguments={"matrix": MATRIX, "ridge": 0.5, "rcond": 1e-3},
        kinds={"matrix": "matrix", "rcond": "cutoff", "ridge": "ridge"},
        traceable=("matrix", "ridge", "rcond"),
    ),
    Row(
        make=sketching.bless,
        arguments={
            "key": KEY,
            "kernel": gaussian_kernel,
            "data": MATRIX,
            "ridge": 0.5,
            "oversampling": 8.0,
            "step": 2.0,
        },
        rules={
            "ridge": "positive",
            "oversampling": "positive",
            "step": "more than 1",
        },
        kinds={"kernel": "function", "data": "numbers"},
    ),
    Row(
        make=sketching.effective_resistances,
        arguments={"edges": EDGES, "weights": np.ones(4), "num_vertices": 4},
        rules={"num_vertices": "at least 1"},
        kinds={"weights": "positive numbers"},
        traceable=("edges", "weights"),
    ),
    Row(
        make=sketching.lewis_weights,
        arguments={
            "matrix": MATRIX,
            "p": 1.5,
            "tolerance": 1e-6,
            "max_iterations": 20,
            "rcond": 1e-3,
        },
        rules={
            "p": "positive",
            "tolerance": "at least 0",
            "max_iterations": "at least 1",
        },
        kinds={"matrix": "matrix", "rcond": "cutoff"},
        traceable=("matrix", "p", "tolerance", "rcond"),
    ),
)
