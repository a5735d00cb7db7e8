"""Least squares by solving a smaller system."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._linalg.implicit import implicit_solution
from jaxwgc.sketching._linalg.kinds import MatrixLike, compute, sketched, system_of
from jaxwgc.sketching._linalg.operator import LinearOperator
from jaxwgc.sketching._linalg.orthonormalise import factors_of_small, scaled
from jaxwgc.sketching._linalg.rank import solver_cutoff
from jaxwgc.sketching._linalg.rows import DenseRows, constant
from jaxwgc.sketching._solvers._solution import Solution, in_units


def sketch_and_solve(
    key: Array,
    matrix: "MatrixLike | LinearOperator",
    target: ArrayLike,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    ridge: ArrayLike = 0.0,
    rcond: ArrayLike | None = None,
) -> Solution:
    """Solves least squares on a sketch: θ that minimises ‖S(Xθ - y)‖² + ridge ‖θ‖².

    One sketch, one factorisation, no iterations. With an embedding of distortion ε, the
    residual ‖Xθ - y‖ is within a factor (1 + ε) / (1 - ε) of the smallest one; more
    accuracy needs a larger sketch, of a size that grows with 1 / ε. See
    `preconditioned` for an exact solution at a similar price.

    Args:
      key: a PRNG key.
      matrix: X, real, of shape (N, p), of any rank: an array, a sparse matrix (a BCOO
        or one of SciPy), which is sketched in time of its entries, `Blocks`, which are
        read twice, or a `LinearOperator` that has a `sketch`.
      target: y, of shape (N,), or (N, c) for c systems with the same matrix.
      sketch_size: m, the number of rows of S: at least min(N, p), and some multiples of
        p for a useful answer.
      embedding: how S is drawn: a constructor, such as `gaussian`, `rademacher`,
        `srht`, `count_sketch`, `sparse_sign` or `row_sampling` (uniform), which is
        called with key, m and N; or an `Embedding` of the shape (m, N), whose own key
        is used. Of a sparse matrix the last three only, which are sparse themselves; of
        `Blocks` and sharded rows `count_sketch` and `sparse_sign`.
      ridge: a non-negative number, may be traced.
      rcond: singular values of SX below `rcond` times the largest, after its columns
        have been scaled to norms next to 1, count as zero. By default
        4 + √min(N, p) times the rounding unit of the dtype.

    Returns:
      `Solution`. Where SX is rank-deficient, the θ of the least norm. The residual
      history holds the norms of y and of y - Xθ, with a ridge the root of what would be
      minimised without the sketch. `num_iterations` is 1. `converged` says that the
      sketch kept the rank of X, and that the result is finite: a NaN in a traced matrix
      or target gives NaN and False. It does not say how good θ is.
      Derivatives of `solution` are as in `preconditioned`, of the sketched system.

    Raises:
      ValueError: for an operator without a sketch, or as in `preconditioned`; a
        negative ridge; a sketch smaller than min(N, p), shapes that do not match,
        entries that are not finite (where not traced), an embedding of the wrong shape,
        or an rcond outside [0, 1).
      TypeError: for complex arrays or anything but numbers, or an embedding that is
        neither a constructor nor an `Embedding`, such as a name.

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
    _validation.check_key(key)
    checked, target = system_of(key, matrix, target)
    if isinstance(checked, LinearOperator) and checked.sketch is None:
        raise ValueError("operator.sketch must be given here; got None")
    sketch_size = _checks.sketch_size(sketch_size, checked.shape)
    target, rcond = _checks.with_cutoff(target, rcond, solver_cutoff, checked.shape)
    regulariser = _checks.regulariser(ridge, checked.dtype)
    embedding = embed(embedding, key, sketch_size, checked.shape[0])
    solution = compute(_solve, checked, embedding, regulariser, rcond, along=(target,))
    if regulariser is None:
        _checks.warn_of_precision(matrix, checked, solution.rank.rank)
    return solution


def _solve(
    rows: Any, target: Array, embedding: Embedding, ridge: Array | None, rcond: Array
) -> Solution:
    unit = rows.maximum(jnp.max(jnp.abs(lax.stop_gradient(target)), axis=0))
    unit = inverse_power_of_two(unit)
    small, small_target = sketched(rows, embedding, target * unit)
    # The derivative is that of the solution, not of the way to it.
    constants = lax.stop_gradient((small, small_target, ridge, target))
    fixed, right, weight, full_right = constants
    root = None if weight is None else jnp.sqrt(weight)
    factors = factors_of_small(fixed, rcond, root=root)
    # S X diag(scale) P = U, an orthonormal basis (with a ridge, but for its rows).
    left = product(fixed * factors.scale, factors.matrix)
    step = factors.direction(product(left.T, right), factors.row_space())
    solution = implicit_solution(
        scaled(factors.scale, step), DenseRows(small), small_target, ridge, factors
    )
    probe = factors.null_vector(jax.random.fold_in(embedding.key, 1))
    found = lax.stop_gradient(solution)
    _, squared, _, image = constant(rows).residual_products(
        full_right * unit, found, factors.scale * probe
    )
    if weight is not None:
        squared += weight * jnp.sum(found**2, axis=0)
    squares = rows.total(jnp.sum((full_right * unit) ** 2, axis=0))
    result = Solution(
        solution=solution,
        num_iterations=jnp.full(unit.shape, 1, jnp.int32),
        converged=factors.sees_all(probe, jnp.sqrt(image), rcond)
        & jnp.isfinite(squared),
        residual_history=jnp.sqrt(jnp.stack([squares, squared])),
        rank=factors.rank,
    )
    return in_units(result, unit, factors.scale)
