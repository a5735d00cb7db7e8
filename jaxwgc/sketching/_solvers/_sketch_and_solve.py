"""Least squares by solving a smaller system."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc import _validation
from jaxwgc._arrays import product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._operators import (
    LinearOperator,
    Matrix,
    MatrixLike,
    any_system,
    sketched,
    times,
)
from jaxwgc.sketching._solvers._implicit import implicit_solution
from jaxwgc.sketching._solvers._orthonormalisers import from_factors
from jaxwgc.sketching._solvers._rounded_input import mind_rounding
from jaxwgc.sketching._solvers._solution import Solution, every_target


def sketch_and_solve(
    key: jax.Array,
    matrix: MatrixLike,
    target: jax.typing.ArrayLike,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    ridge: jax.typing.ArrayLike = 0.0,
    rcond: jax.typing.ArrayLike | None = None,
) -> Solution:
    """Solves least squares on a sketch: θ that minimises ‖S(Xθ - y)‖² + ridge ‖θ‖².

    One sketch, one factorisation, no iterations. With an embedding of distortion ε, the
    residual ‖Xθ - y‖ is within a factor (1 + ε) / (1 - ε) of the smallest one; more
    accuracy needs a larger sketch, of a size that grows with 1 / ε. See
    `preconditioned` for an exact solution at a similar price.

    Args:
      key: a PRNG key.
      matrix: X, real, of shape (N, p), of any rank: an array, a sparse matrix (a BCOO
        or one of SciPy), which is sketched in time of its entries, or a
        `LinearOperator` that has a `sketch`.
      target: y, of shape (N,), or (N, c) for c systems with the same matrix.
      sketch_size: m, the number of rows of S: at least min(N, p), and some multiples of
        p for a useful answer.
      embedding: how S is drawn: a constructor, such as `gaussian`, `rademacher`,
        `srht`, `count_sketch`, `sparse_sign` or `row_sampling` (uniform), which is
        called with key, m and N; or an `Embedding` of the shape (m, N), whose own key
        is used. Of a sparse matrix the last three only, which are sparse themselves.
      ridge: a non-negative number, may be traced.
      rcond: singular values of SX below `rcond` times the largest, after its columns
        have been scaled to norms next to 1, count as zero. By default
        4 + √min(N, p) times the rounding unit of the dtype.

    Returns:
      `Solution`. Where SX is rank-deficient, the θ of the least norm. The residual
      history holds the norms of y and of y - Xθ, with a ridge the root of what would be
      minimised without the sketch. `num_iterations` is 1. `converged`
      says that the sketch kept the rank of X, that no heavy rows hide others, and that
      the result is finite: a NaN in a traced matrix or target gives NaN and False. It
      does not say how good θ is.
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
    given = matrix, target
    _validation.check_key(key)
    linear_map, target = any_system(key, matrix, target)
    if isinstance(linear_map, LinearOperator) and linear_map.sketch is None:
        raise ValueError("operator.sketch must be given here; got None")
    sketch_size = _checks.sketch_size(sketch_size, linear_map.shape)
    target, rcond = _checks.with_cutoff(
        target, rcond, _checks.solver_cutoff, linear_map.shape
    )
    regulariser = _checks.regulariser(ridge, linear_map.dtype)
    embedding = embed(embedding, key, sketch_size, linear_map.shape[0])
    solution = _solve(linear_map, target, embedding, regulariser, rcond)
    return mind_rounding(solution, *given, ridge)


@jax.jit
def _solve(
    matrix: Matrix,
    target: jax.Array,
    embedding: Embedding,
    ridge: jax.Array | None,
    rcond: jax.Array,
) -> Solution:
    small_matrix = sketched(matrix, embedding)
    # The derivative is that of the solution, not of the way to it.
    constant, root = lax.stop_gradient((small_matrix, ridge))
    factors, are_hidden = from_factors(constant, root, rcond).beside(matrix, rcond)
    # S X diag(scale) P = U, an orthonormal basis (with a ridge, but for its rows).
    left = product(constant * factors.scale, factors.matrix)

    probe_key = jax.random.fold_in(embedding.key, 1)
    is_complete = factors.is_complete(matrix, probe_key, rcond)
    is_complete &= ~are_hidden

    def solve(target: jax.Array, _: jax.Array) -> Solution:
        small_target = embedding @ target
        coordinates = product(lax.stop_gradient(small_target), left)
        solution = factors.scale * factors.shortest_direction(coordinates)
        solution = implicit_solution(
            solution, small_matrix, small_target, ridge, factors
        )
        length = jnp.linalg.norm(target - times(matrix, solution))
        if ridge is not None:
            length = jnp.hypot(length, jnp.sqrt(ridge) * jnp.linalg.norm(solution))
        norms = jnp.stack([jnp.linalg.norm(target), length])
        return Solution(solution, jnp.int32(1), is_complete, norms, factors.rank)

    return every_target(solve, target, factors.scale)
