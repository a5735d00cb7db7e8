"""Samplers of rows and of parts: one row for each function.

A new sampler needs a row in `ROWS`.
"""

import numpy as np

import jaxwgc
from jaxwgc import sketching
from tests.catalogue.problems import KEY, MATRIX, PROBABILITIES, SAMPLE
from tests.catalogue.row import Row

ROWS = (
    # Rows.
    Row(
        make=sketching.row_probabilities,
        arguments={"scores": PROBABILITIES, "rule": "lev", "alpha": 0.5},
        rules={"alpha": "at least 0"},
        kinds={"scores": "proportional to probabilities"},
        traceable=("scores", "alpha"),
    ),
    Row(
        make=sketching.sample_rows,
        arguments={
            "key": KEY,
            "probabilities": PROBABILITIES,
            "sample_size": 2,
            "method": "poisson",
            "weighted": True,
            "order": None,
        },
        rules={"sample_size": "at least 1"},
        kinds={"probabilities": "proportional to probabilities"},
        traceable=("key", "probabilities"),
    ),
    Row(
        make=sketching.spatial_order,
        arguments={"points": MATRIX},
        kinds={"points": "matrix"},
        traceable=("points",),
    ),
    # Parts.
    Row(
        make=jaxwgc.parts.partition,
        arguments={"data": {"x": MATRIX}, "num_parts": 3},
        rules={"num_parts": "at least 1"},
        traceable=("data",),
    ),
    Row(
        make=jaxwgc.parts.partition_probabilities,
        arguments={"scores": PROBABILITIES, "num_parts": 2},
        rules={"num_parts": "at least 1"},
        kinds={"scores": "proportional to probabilities"},
        traceable=("scores",),
    ),
    Row(
        make=jaxwgc.parts.sample_partitions,
        arguments={
            "key": KEY,
            "probabilities": PROBABILITIES,
            "num_distinct": None,
            "num_draws": 3,
        },
        rules={"num_draws": "at least 1"},
        kinds={"probabilities": "proportional to probabilities"},
        traceable=("key", "probabilities"),
    ),
    Row(
        make=jaxwgc.parts.drop_last_distinct,
        arguments={"sample": SAMPLE},
        traceable=("sample",),
    ),
    Row(
        make=jaxwgc.parts.rescaling_factors,
        arguments={"sample": SAMPLE, "rescaling": "paper", "num_rows": 20.0},
        rules={"num_rows": "positive"},
        traceable=("sample", "num_rows"),
    ),
    Row(
        make=jaxwgc.parts.scale_rows,
        arguments={"rows": {"x": MATRIX[:4]}, "factors": PROBABILITIES},
        traceable=("rows", "factors"),
    ),
    Row(
        make=jaxwgc.parts.weighted_parts,
        arguments={
            "sample": SAMPLE,
            "parts": {"x": MATRIX[:18].reshape(3, 6, 4)},
            "row_weights": np.ones((3, 6)),
            "rescaling": "unbiased",
            "scale": "row_weights",
        },
        traceable=("sample", "parts", "row_weights"),
    ),
)
