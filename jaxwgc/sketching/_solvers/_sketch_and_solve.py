"""Least squares by one sketch."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._linalg.factors import factors_of_small, root_of, solver_cutoff
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    OperatorLike,
    compiled,
    system_of,
    warn_of_precision,
)
from jaxwgc.sketching._linalg.linear_operator import Operator
from jaxwgc.sketching._linalg.matrix import Dense, Matrix
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._solvers._solution import (
    Solution,
    implicit_solution,
    in_units,
    to_unit_size,
)


def sketch_and_solve(
    key: Array,
    matrix: "MatrixLike | OperatorLike",
    target: ArrayLike,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    ridge: ArrayLike = 0.0,
    rcond: ArrayLike | None = None,
) -> Solution:
    """Solves least squares roughly, by one sketch of the data.

    The solution minimises ‖S(Xθ - y)‖² + ridge ‖θ‖². It takes one sketch and one
    factorisation, without iterations. With an embedding of distortion ε, the
    residual ‖Xθ - y‖ is within a factor (1 + ε) / (1 - ε) of its minimum. The
    required sketch size grows with 1 / ε. See `preconditioned` for an exact
    solution in similar time.

    Args:
      key: A PRNG key.
      matrix: X, real, of shape (N, p), of any rank. It is an array, a sparse matrix (a
        BCOO or one of SciPy), `Blocks`, or a `LinearOperator` that has a `sketch`.
        Sketching a sparse matrix takes time proportional to its entries. `Blocks` are
        read twice.
      target: y, of shape (N,), or (N, c) for c systems, which share the matrix.
      sketch_size: m, the number of rows of S, at least min(N, p). A useful solution
        needs several times p.
      embedding: The distribution of S. Either a constructor, which is called with key,
        m and N: `gaussian`, `rademacher`, `srht`, `count_sketch`, `sparse_sign`,
        `sparse_stack` or `row_sampling` (uniform). Or an `Embedding` of shape (m, N),
        which has its own key. Sparse matrices support the last four constructors only,
        which are sparse themselves; `Blocks` and sharded rows support the first three
        of these.
      ridge: A non-negative number, may be traced.
      rcond: Singular values of SX below `rcond` times the largest are truncated, after
        its columns have been scaled to norms near 1. By default 4 + √min(N, p) machine
        epsilons of the dtype.

    Returns:
      A `Solution`. If SX is rank-deficient, θ is the minimum-norm solution. The history
      holds the norms of y and of y - Xθ; with a ridge, the roots of the unsketched
      objective. `num_iterations` is 1. `converged` says that the sketch has the rank of
      X, and that the result is finite: a NaN in a traced matrix or target gives NaN and
      False. It does not bound the error of θ. Derivatives of `solution` are as in
      `preconditioned`, of the sketched system.

    Raises:
      ValueError: If shapes do not match, entries are not finite (unless traced), or
        sketch_size is smaller than min(N, p); if the embedding has the wrong shape,
        ridge is negative, or rcond is outside [0, 1); if an operator has no `sketch`,
        or is invalid as in `preconditioned`.
      TypeError: If an array is complex or not numeric, or the embedding is neither a
        constructor nor an `Embedding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> target = matrix @ jnp.array([1.0, -2.0])
      >>> result = sketching.sketch_and_solve(jax.random.key(1), matrix, target, 20)
      >>> print(result.solution.round(3))
      [ 1. -2.]

    References:
      Sarlós, "Improved approximation algorithms for large matrices via random
      projections", FOCS 2006; Woodruff, "Sketching as a tool for numerical linear
      algebra", Foundations and Trends in Theoretical Computer Science 10 (2014),
      section 2.
    """
    array_validation.check_key(key)
    checked, target = system_of(key, matrix, target)
    if isinstance(checked, Operator) and checked.functions.sketch is None:
        raise ValueError(
            "sketch_and_solve needs operator.sketch, a function that multiplies by "
            "an embedding; got None. Use preconditioned, which needs products alone"
        )
    sketch_size = _arguments.sketch_size(sketch_size, checked.shape)
    default_rcond = solver_cutoff(checked.shape, checked.dtype)
    target, rcond = _arguments.with_cutoff(target, rcond, default_rcond)
    regulariser = _arguments.regulariser(ridge, checked.dtype)
    embedding = embed(embedding, key, sketch_size, checked.shape[0])
    solution = _solve_once(checked, target, embedding, regulariser, rcond)
    if regulariser is None and solution.rank is not None:
        warn_of_precision(matrix, checked, solution.rank.rank)
    return solution


@compiled()
def _solve_once(
    matrix: Matrix,
    target: Array,
    embedding: Embedding,
    ridge: Array | None,
    rcond: Array,
) -> Solution:
    to_unit = to_unit_size(target)
    small, small_target = matrix.sketch(embedding, target * to_unit)
    # Derivatives come from `implicit_solution` instead of the factorisation.
    fixed_sketch = lax.stop_gradient(small)
    fixed_small_target = lax.stop_gradient(small_target)
    fixed_ridge = lax.stop_gradient(ridge)
    fixed_target = lax.stop_gradient(target) * to_unit
    factors = factors_of_small(fixed_sketch, rcond, root_ridge=root_of(ridge))
    # U = S X diag(scale) P. Without a ridge, its columns are orthonormal.
    left = product(fixed_sketch * factors.scale, factors.inverse)
    coordinates = product(left.T, fixed_small_target)
    step = factors.direction(coordinates, factors.row_space())
    solution = implicit_solution(
        scaled(factors.scale, step), Dense(small), small_target, ridge, factors
    )
    # A vector in the null space of SX. If X does not map it to zero, the sketch has
    # missed a direction of X.
    probe = factors.null_vector()
    fixed_solution = lax.stop_gradient(solution)
    products = lax.stop_gradient(matrix).line_products(
        fixed_target, fixed_solution, factors.scale * probe
    )
    squared = products.squared
    if fixed_ridge is not None:
        squared += fixed_ridge * jnp.sum(fixed_solution**2, axis=0)
    squares = jnp.sum(fixed_target**2, axis=0)
    has_all_directions = factors.has_all_directions(
        probe, jnp.sqrt(products.curvature), rcond
    )
    result = Solution(
        solution=solution,
        num_iterations=jnp.full(to_unit.shape, 1, jnp.int32),
        converged=has_all_directions & jnp.isfinite(squared),
        residual_history=jnp.sqrt(jnp.stack([squares, squared])),
        rank=factors.rank,
    )
    return in_units(result, to_unit, factors.scale)
