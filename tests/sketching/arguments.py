"""Arguments that public functions of sketching accept."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import sketching

KEY = jax.random.key(0)
MATRIX = np.eye(20)[:, :4]
TARGET = np.ones(20)
SYSTEM = {"key": KEY, "matrix": MATRIX, "target": TARGET}
EMBEDDING = {"key": KEY, "sketch_size": 3, "num_rows": 5}
SAMPLE = sketching.PartitionSample(
    indices=np.array([0, 1]),
    counts=np.array([1, 1]),
    probabilities=np.array([0.5, 0.5]),
    num_draws=np.array(2),
)


def kernel_of(value):
    return lambda x, y: jnp.full((len(x), len(y)), value)


# Arguments by the names of functions. Tests replace one or two of them by wrong ones.
GOOD = {
    "leverage_scores": {"matrix": MATRIX},
    "numerical_rank": {"matrix": MATRIX},
    "approximate_leverage_scores": {"key": KEY, "matrix": MATRIX},
    "rank_k_leverage_scores": {"key": KEY, "matrix": MATRIX, "rank": 2},
    "ridge_leverage_scores": {"matrix": MATRIX, "ridge": 1.0},
    "lewis_weights": {"matrix": MATRIX, "p": 1.0},
    "bless": {"key": KEY, "kernel": kernel_of(1.0), "data": MATRIX, "ridge": 1.0},
    "effective_resistances": {"edges": [[0, 1]]},
    "partition": {"data": np.ones(4), "num_parts": 2},
    "partition_probabilities": {"scores": np.ones(4), "num_parts": 2},
    "row_probabilities": {"scores": np.ones(2)},
    "sample_rows": {"key": KEY, "probabilities": np.ones(3), "sample_size": 1},
    "sample_partitions": {"key": KEY, "probabilities": np.ones(3), "num_draws": 1},
    "drop_last_distinct": {"sample": SAMPLE},
    "rescaling_factors": {"sample": SAMPLE},
    "scale_rows": {"rows": {"x": np.eye(2)}, "factors": np.ones(2)},
    "weighted_parts": {
        "sample": SAMPLE,
        "parts": {"x": np.ones((3, 2, 4))},
        "row_weights": np.ones((3, 2)),
    },
    "gaussian": EMBEDDING,
    "srht": EMBEDDING,
    "sparse_sign": EMBEDDING,
    "row_sampling": {**EMBEDDING, "probabilities": np.ones(5)},
    "embedding_distortion": {
        "basis": np.eye(5),
        "embedding": sketching.gaussian(**EMBEDDING),
    },
    "recommended_sketch_size": {
        "embedding": sketching.gaussian,
        "num_columns": 3,
        "epsilon": 0.5,
    },
    "choose_ridge": {"matrix": MATRIX, "target": TARGET, "ridges": [1.0]},
    "sketch_and_solve": {**SYSTEM, "sketch_size": 8},
    "preconditioned": SYSTEM,
    "iterative_hessian_sketch": {**SYSTEM, "sketch_size": 16, "num_iterations": 2},
    "newton_sketch": {
        "key": KEY,
        "loss": lambda params: jnp.sum(params**2),
        "square_root_hessian": lambda params: jnp.ones((9, 2)),
        "params": jnp.ones(2),
        "sketch_size": 4,
    },
    "logistic_newton_sketch": {
        "key": KEY,
        "features": MATRIX,
        "labels": TARGET,
        "sketch_size": 8,
    },
}
