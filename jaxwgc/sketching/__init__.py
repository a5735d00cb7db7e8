"""Randomised linear algebra: scores, samples, embeddings and solvers.

- **Scores** measure the importance of each row of a matrix: `leverage_scores` and its
  variants for large, sparse, sharded and kernel matrices.
- **Samplers** draw rows (`sample_rows`) by their scores, with the scale that makes the
  small matrix represent the large one. `jaxwgc.parts` draws parts of a data set.
- **Embeddings** are random matrices S with E[SᵀS] = I, which preserve a subspace up to
  a distortion. `embedding_distortion` measures it, and `recommended_sketch_size` bounds
  it.
- **Solvers** use them for least squares and for convex losses.
"""

from jaxwgc.sketching._embeddings._dense_matrices import gaussian, rademacher
from jaxwgc.sketching._embeddings._distortion import (
    embedding_distortion,
    recommended_sketch_size,
)
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._embeddings._hadamard_transform import srht
from jaxwgc.sketching._embeddings._sparse_matrices import (
    count_sketch,
    sparse_sign,
    sparse_stack,
)
from jaxwgc.sketching._linalg.blocks import Blocks
from jaxwgc.sketching._linalg.linear_operator import LinearOperator
from jaxwgc.sketching._samplers._row_sampling import row_sampling
from jaxwgc.sketching._samplers._sample_rows import row_probabilities, sample_rows
from jaxwgc.sketching._samplers._spatial_order import spatial_order
from jaxwgc.sketching._scores._approximate_scores import approximate_leverage_scores
from jaxwgc.sketching._scores._bless import bless
from jaxwgc.sketching._scores._effective_resistances import effective_resistances
from jaxwgc.sketching._scores._exact_scores import (
    leverage_scores,
    numerical_rank,
    ridge_leverage_scores,
)
from jaxwgc.sketching._scores._lewis_weights import lewis_weights
from jaxwgc.sketching._scores._rank_k_scores import rank_k_leverage_scores
from jaxwgc.sketching._solvers._choose_ridge import choose_ridge
from jaxwgc.sketching._solvers._influence import influence
from jaxwgc.sketching._solvers._iterative_hessian_sketch import iterative_hessian_sketch
from jaxwgc.sketching._solvers._logistic_newton_sketch import logistic_newton_sketch
from jaxwgc.sketching._solvers._newton_sketch import newton_sketch
from jaxwgc.sketching._solvers._preconditioned import preconditioned
from jaxwgc.sketching._solvers._sketch_and_solve import sketch_and_solve
from jaxwgc.sketching._solvers._solution import Solution

# Sorted as in the documentation, not alphabetically.
__all__ = [
    # Kinds of matrices.
    "Blocks",
    "LinearOperator",
    # Scores.
    "leverage_scores",
    "numerical_rank",
    "approximate_leverage_scores",
    "rank_k_leverage_scores",
    "ridge_leverage_scores",
    "bless",
    "effective_resistances",
    "lewis_weights",
    # Samplers of rows.
    "row_probabilities",
    "sample_rows",
    "spatial_order",
    # Embeddings.
    "Embedding",
    "gaussian",
    "rademacher",
    "srht",
    "count_sketch",
    "sparse_sign",
    "sparse_stack",
    "row_sampling",
    "embedding_distortion",
    "recommended_sketch_size",
    # Solvers.
    "sketch_and_solve",
    "preconditioned",
    "iterative_hessian_sketch",
    "newton_sketch",
    "logistic_newton_sketch",
    "choose_ridge",
    "influence",
    "Solution",
]
