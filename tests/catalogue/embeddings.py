"""Embeddings, and functions of them: one row for each.

A new embedding needs a row in `ROWS`.
"""

import numpy as np

from jaxwgc import sketching
from tests.catalogue.problems import KEY, PROBABILITIES
from tests.catalogue.row import Row

SIZES = {"sketch_size": "at least 1", "num_rows": "at least 1"}

ROWS = (
    Row(
        make=sketching.gaussian,
        arguments={"key": KEY, "sketch_size": 3, "num_rows": 4},
        rules=SIZES,
        traceable=("key",),
    ),
    Row(
        make=sketching.rademacher,
        arguments={"key": KEY, "sketch_size": 3, "num_rows": 4},
        rules=SIZES,
        traceable=("key",),
    ),
    Row(
        make=sketching.srht,
        arguments={"key": KEY, "sketch_size": 3, "num_rows": 4},
        rules=SIZES,
        traceable=("key",),
    ),
    Row(
        make=sketching.count_sketch,
        arguments={"key": KEY, "sketch_size": 3, "num_rows": 4},
        rules=SIZES,
        traceable=("key",),
    ),
    Row(
        make=sketching.sparse_sign,
        arguments={"key": KEY, "sketch_size": 3, "num_rows": 4, "num_nonzeros": 2},
        rules={**SIZES, "num_nonzeros": "at least 1"},
        traceable=("key",),
    ),
    Row(
        make=sketching.sparse_stack,
        arguments={
            "key": KEY,
            "sketch_size": 3,
            "num_rows": 4,
            "num_nonzeros": 2,
            "first_block": 1,
            "first_row": 5,
        },
        rules={
            **SIZES,
            "num_nonzeros": "at least 1",
            "first_block": "at least 0",
            "first_row": "at least 0",
        },
        traceable=("key", "first_block", "first_row"),
    ),
    Row(
        make=sketching.row_sampling,
        arguments={
            "key": KEY,
            "sketch_size": 3,
            "num_rows": 4,
            "probabilities": PROBABILITIES,
        },
        rules=SIZES,
        kinds={"probabilities": "proportional to probabilities"},
        traceable=("key", "probabilities"),
    ),
    # Functions of embeddings.
    Row(
        make=sketching.embedding_distortion,
        arguments={
            "basis": np.eye(4, 2),
            "embedding": sketching.gaussian(KEY, sketch_size=3, num_rows=4),
        },
        kinds={"embedding": "embedding"},
        traceable=("basis", "embedding"),
    ),
    Row(
        make=sketching.recommended_sketch_size,
        arguments={
            "embedding": sketching.row_sampling,
            "num_columns": 3,
            "epsilon": 0.5,
            "delta": 0.1,
            "num_rows": 100,
            "num_nonzeros": 8,
            "coherence": 4.0,
        },
        rules={
            "num_columns": "at least 1",
            "epsilon": "between 0 and 1",
            "delta": "between 0 and 1",
            "num_rows": "at least 1",
            "num_nonzeros": "at least 1",
            "coherence": "at least 3",
        },
        kinds={"embedding": "known embedding"},
    ),
)
