"""Least squares by solving a smaller system."""

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.sketching._embeddings._by_name import embed
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._matrix_checks import nan_for_wrong_cutoff
from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._scores._gram_scores import HIGHEST
from jaxwgc.sketching._solvers import _systems
from jaxwgc.sketching._solvers._orthonormalisers import from_factors
from jaxwgc.sketching._solvers._solution import Solution


def sketch_and_solve(
    key: jax.Array,
    matrix: jax.typing.ArrayLike,
    target: jax.typing.ArrayLike,
    sketch_size: int,
    embedding: str | Embedding = "sparse_sign",
    *,
    rcond: jax.typing.ArrayLike | None = None,
) -> Solution:
    """Least squares on a sketch: the θ that minimises ‖S(Xθ - y)‖.

    One sketch, one factorisation, no iterations. With an embedding of distortion ε, the
    residual ‖Xθ - y‖ is within a factor (1 + ε) / (1 - ε) of the smallest one; more
    accuracy needs a larger sketch, of a size that grows with 1 / ε. See
    `preconditioned` for an exact solution at a similar price.

    Args:
      key: a PRNG key.
      matrix: X, real, of shape (N, p), of any rank.
      target: y, of shape (N,), or (N, c) for c systems with the same matrix.
      sketch_size: m, the number of rows of S: at least min(N, p), and some multiples of
        p for a useful answer.
      embedding: how S is drawn: `"gaussian"`, `"rademacher"`, `"srht"`,
        `"count_sketch"`, `"sparse_sign"` or `"row_sampling"` (uniform); or an
        `Embedding` of the shape (m, N), whose own key is used.
      rcond: singular values of SX below `rcond` times the largest, after its columns
        have been scaled to norms next to 1, count as zero. By default
        4 + √min(N, p) times the rounding unit of the dtype.

    Returns:
      `Solution`. Where SX is rank-deficient, the θ of the least norm. The residual
      history holds the norms of y and of y - Xθ. `num_iterations` is 1. `converged`
      says that the sketch kept the rank of X, and that the result is finite: a NaN in a
      traced matrix or target gives NaN and False. It does not say how good θ is.

    Raises:
      ValueError: for a sketch smaller than min(N, p), shapes that do not match, entries
        that are not finite (where not traced), an unknown embedding or one of the wrong
        shape, or an rcond outside [0, 1).
      TypeError: for complex arrays or anything but numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> target = matrix @ jnp.array([1.0, -2.0])
      >>> found = sketching.sketch_and_solve(jax.random.key(1), matrix, target, 20)
      >>> print(found.solution.round(3))
      [ 1. -2.]

    References:
      Sarlós, "Improved approximation algorithms for large matrices via random
      projections", FOCS 2006; Woodruff, "Sketching as a tool for numerical linear
      algebra", Foundations and Trends in Theoretical Computer Science 10 (2014),
      section 2.
    """
    _validation.check_key(key)
    matrix, target = _systems.system(matrix, target)
    num_rows, num_columns = matrix.shape
    sketch_size = _systems.sketch_size(sketch_size, num_rows, num_columns)
    matrix = nan_for_wrong_cutoff(matrix, rcond)
    rcond = _systems.cutoff(rcond, (num_rows, num_columns), matrix.dtype)
    embedding = embed(embedding, key, sketch_size, num_rows)
    return _solve(matrix, target, embedding, rcond)


@jax.jit
def _solve(
    matrix: jax.Array, target: jax.Array, embedding: Embedding, rcond: jax.Array
) -> Solution:
    # Of every column of the target; against overflow, and exact.
    units = inverse_power_of_two(jnp.abs(target).max(axis=0))
    target = target * units
    small_matrix, small_target = embedding.apply((matrix, target))
    factors = from_factors(small_matrix, None, rcond)
    inverse = factors.matrix
    # S X diag(scale) P = U, an orthonormal basis.
    left = jnp.matmul(small_matrix * factors.scale, inverse, precision=HIGHEST)

    # A direction of X that the sketch misses is in the null space of SX, as is one that
    # X does not have. A random vector of that space tells which.
    probe = jax.random.normal(
        jax.random.fold_in(embedding.key, 1), factors.scale.shape, matrix.dtype
    )
    unseen = factors.scale * factors.unseen(probe)
    image = jnp.matmul(matrix, unseen, precision=HIGHEST)
    bound = 8 * rcond * jnp.linalg.norm(factors.singular_values)
    bound = bound * jnp.linalg.norm(probe)
    is_complete = jnp.linalg.norm(image) <= bound

    def solve(
        small_target: jax.Array, target: jax.Array, unit: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        coordinates = jnp.matmul(small_target, left, precision=HIGHEST)
        solution = jnp.matmul(inverse, coordinates, precision=HIGHEST)
        solution = factors.shortest(factors.scale * solution)
        residual = target - jnp.matmul(matrix, solution, precision=HIGHEST)
        norms = jnp.stack([jnp.linalg.norm(target), jnp.linalg.norm(residual)]) / unit
        return solution / unit, is_complete & jnp.isfinite(solution).all(), norms

    if target.ndim == 2:
        solve = jax.vmap(solve, in_axes=-1, out_axes=-1)
    solution, converged, history = solve(small_target, target, units)
    return Solution(solution, jnp.ones_like(converged, jnp.int32), converged, history)
