"""Leverage scores of rows in the leading singular directions."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc._common.conjugate_gradients import conjugate_gradients
from jaxwgc.sketching._linalg.kinds import MatrixLike, compiled, matrix_and_cutoff
from jaxwgc.sketching._linalg.matrix import RowMatrix
from jaxwgc.sketching._linalg.projector import as_scores, without_derivative
from jaxwgc.sketching._linalg.rows import diagonal, safe

# Largest number of conjugate-gradient steps for derivatives. In float64, 300 are enough
# for a gap of 1e-3.
_MAX_STEPS = 1000


class RankKScores(NamedTuple):
    """Leverage scores in leading directions, and a bound on their error.

    See `rank_k_leverage_scores`.
    """

    scores: Array | np.ndarray
    singular_values: Array
    rank: Array
    gap: Array
    error_bound: Array
    is_ambiguous: Array


def rank_k_leverage_scores(
    key: Array,
    matrix: MatrixLike,
    rank: int,
    *,
    num_passes: int = 3,
    oversampling: int | None = None,
    rcond: ArrayLike | None = None,
) -> RankKScores:
    """Computes leverage scores of rows in the leading singular directions.

    Scores are the squared row norms of U_k, the leading left singular vectors. The
    columns of U_k are the leading k left singular vectors of X. Rows that matter to
    the best rank-k approximation of X have large scores. Unlike in
    `leverage_scores`, noise below these directions does not count.

    The scores take a few passes over the rows, and X is never decomposed. All but two
    of the passes build a block Krylov space of XᵀX from a random start. The next pass
    refines the leading directions in this space. The last pass computes the scores, and
    the residual that bounds their error.

    Unlike in `leverage_scores`, the units of columns matter, as they do to singular
    vectors. Centre and scale the columns first if needed.

    Args:
      key: One PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      matrix: X, (N, p), of any kind that `leverage_scores` takes. `Blocks` of sparse
        SciPy matrices take time proportional to their entries.
      rank: k, an int from 1 to min(N, p).
      num_passes: The number of passes over the rows, an int of at least 3; the scores
        take one more. Each pass lowers the error by a factor. The factor is larger if
        singular values fall faster beyond k.
      oversampling: The number of directions beyond k, by default k + 10. The k-th
        direction converges faster if σ at k + `oversampling` is further below σ_k.
      rcond: Singular values of at most `rcond` times the largest are truncated. See
        `leverage_scores`; here columns are not scaled.

    Returns:
      A named tuple:

      - `scores`: (N,), squared row norms of U_k. They sum to `rank`, up to what
        `error_bound` allows. Scores of `Blocks` are a NumPy array.
      - `singular_values`: (k,), the largest first; at most those of X.
      - `rank`: int32 scalar, the number of directions: k, or the numerical rank of X if
        that is less. The scores are those of these directions.
      - `gap`: scalar in [0, 1], (σ_k - σ_{k+1}) / σ_k of the computed values. With more
        passes, each value grows towards the exact one. The gap is 1 for fewer than k
        directions, and 0 for none.
      - `error_bound`: scalar in [0, 1], the largest error of the square root of a
        score. It bounds the sine of the angle between the computed subspace and the
        leading one: the residual ‖XᵀU - V Σ‖ over the computed σ_k - σ_{k+1} (Wedin's
        theorem). Most errors are far below. It is no bound if the random start misses a
        leading direction. That happened in 1% of hard cases with an `oversampling` of 0
        to 2, and was not observed with 5 or more.
      - `is_ambiguous`: bool scalar, whether X does not determine the scores. Either
        rounding decides the rank, or k is inside a cluster of singular values that are
        equal up to rounding or the residual. The k directions are then arbitrary.

      If a traced matrix has a NaN or infinity, scores and bound are NaN.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if rank is below 1 or above min(N,
        p); if there are too few passes, oversampling is negative, or rcond is outside
        [0, 1); if `Blocks` change between passes. Weighted sums detect changes, but not
        a change of one row of many or of last digits.
      TypeError: If the matrix is complex, a sparse matrix of another kind, or not
        numeric; if the key is no PRNG key.

    Note:
      In float32, directions below 3e-4 of the largest are lost, or converge slowly.
      `error_bound` is then large.

      First derivatives are those of the exact scores, for arrays in both modes and for
      BCOO in forward mode. They solve linear systems in further passes; a smaller gap
      takes more. They are NaN if `is_ambiguous`. Second derivatives are always NaN.
      Derivatives of the other fields are zero.

    Example:
      >>> import jax
      >>> from jaxwgc import sketching
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> signal = jax.random.normal(keys[0], (500, 3)) @ jax.random.normal(
      ...     keys[1], (3, 40)
      ... )
      >>> matrix = signal + 0.1 * jax.random.normal(keys[2], (500, 40))
      >>> leading = sketching.rank_k_leverage_scores(keys[3], matrix, 3)
      >>> print(f"{leading.scores.sum():.2f}", leading.rank, leading.gap > 0.5)
      3.00 3 True
      >>> print(leading.error_bound < 1e-3, leading.is_ambiguous)
      True False

    References:
      Drineas, Mahoney and Muthukrishnan, "Relative-error CUR matrix decompositions",
      SIAM J. Matrix Anal. Appl. 30 (2008), for these scores. Musco and Musco,
      "Randomized block Krylov methods for stronger and faster approximate singular
      value decomposition", NeurIPS 2015. Halko, Martinsson and Tropp, "Finding
      structure with randomness", SIAM Review 53 (2011), algorithms 4.4 and 5.1, for the
      pass over the leading directions. Wedin, "Perturbation bounds in connection with
      singular value decomposition", BIT 12 (1972).
    """
    key = array_validation.check_key(key)
    checked, cutoff = matrix_and_cutoff(matrix, rcond)
    rank = validation.check_int("rank", rank, minimum=1)
    if rank > min(checked.shape):
        raise ValueError(
            f"rank must be at most min(N, p); got rank = {rank} and min(N, p) = "
            f"{min(checked.shape)}"
        )
    num_passes = validation.check_int("num_passes", num_passes, minimum=3)
    if oversampling is None:
        oversampling = rank + 10
    oversampling = validation.check_int("oversampling", oversampling, minimum=0)
    # The gap is the distance to the next singular value, so that at least one more
    # direction is computed.
    width = rank + max(oversampling, 1)
    return _scores(checked, key, cutoff, rank=rank, width=width, num_passes=num_passes)


@compiled("rank", "width", "num_passes")
def _scores(
    matrix: RowMatrix,
    key: Array,
    rcond: Array,
    *,
    rank: int,
    width: int,
    num_passes: int,
) -> RankKScores:
    num_columns = matrix.shape[1]
    largest = matrix.column_maxima().max()
    finite = jnp.isfinite(largest)
    # The units of the columns matter, so all columns share one scale.
    scale = inverse_power_of_two(jnp.where(finite, largest, 1))
    fixed = lax.stop_gradient(matrix)

    def run(basis: Array) -> Array:
        passed = fixed.gram_products(basis, scale)
        # The result of a decomposition of NaN is undefined, and differs by backend.
        return jnp.where(jnp.isfinite(passed).all(), passed, 0)

    start = jax.random.normal(key, (num_columns, min(width, num_columns)), matrix.dtype)
    vectors, values = leading_directions(run, start, num_passes)
    is_kept = values[:rank] > rcond * values[0]
    vectors = jnp.where(is_kept, vectors[:, :rank], 0)
    divisors = jnp.where(is_kept, values[:rank], 1)
    # The directions are constants, so the product has the derivative of XᵀX alone.
    passed = matrix.gram_products(vectors, scale)
    # Column maxima may lose a NaN. The sums in these products keep it.
    finite &= jnp.isfinite(passed).all()
    passed = jnp.where(finite, passed, 0)
    num_kept, gap, error_bound, is_ambiguous = _accuracy(
        vectors, values, lax.stop_gradient(passed), rcond
    )
    projection = _projection(
        fixed,
        scale,
        vectors,
        divisors,
        is_ambiguous,
        image=passed[:num_columns],
    )
    scores = as_scores(matrix.row_norms(projection, scale), finite)
    nan = jnp.where(finite, 0, jnp.nan)
    return RankKScores(
        scores=scores,
        singular_values=values[:rank] / scale + nan,
        rank=jnp.where(finite, num_kept, 0),
        gap=gap + nan,
        error_bound=error_bound + nan,
        is_ambiguous=is_ambiguous | ~finite,
    )


@jax.jit
def _accuracy(
    vectors: Array, values: Array, passed: Array, rcond: Array
) -> tuple[Array, Array, Array, Array]:
    """Computes rank, gap, error bound and ambiguity of the leading directions."""
    num_columns, rank = vectors.shape
    largest = values[0]
    is_kept = values[:rank] > rcond * largest
    inverse = jnp.where(is_kept, 1 / safe(values[:rank]), 0)
    images = passed[:num_columns] * inverse
    squares = passed[num_columns:]
    residual = images - product(vectors, product(vectors.T, images))
    squares = squares * inverse * inverse[:, None] - jnp.diag(is_kept)
    skewness = jnp.linalg.norm(squares)
    num_kept = jnp.sum(is_kept, dtype=jnp.int32)
    smallest = jnp.where(num_kept > 0, values[jnp.maximum(num_kept - 1, 0)], 0)
    # If some of the leading values are truncated, the next value is only rounding
    # error, and counts as 0.
    beyond = jnp.where(num_kept < rank, 0, jnp.append(values, 0)[num_kept])
    gap = smallest - beyond
    eps = float(jnp.finfo(values.dtype).eps)
    rounding = 10 * len(values) ** 0.5 * eps * largest
    # Values this near to the cutoff may have crossed it by rounding. Measured: rounding
    # turned zero singular values into up to 33 machine epsilons. With 40 columns, the
    # default cutoff is 63 machine epsilons.
    is_near = jnp.abs(values[:rank] - rcond * largest) <= rounding / 2
    size = jnp.linalg.norm(residual) / jnp.sqrt(jnp.maximum(1 - skewness, eps))
    angle = jnp.where(gap > rounding, size / jnp.where(gap > 0, gap, 1), 1)
    bound = jnp.where(num_kept > 0, jnp.minimum(angle + skewness, 1), 0)
    is_split = (num_kept > 0) & ((gap <= rounding) | (bound >= 1))
    is_ambiguous = is_split | ((largest > 0) & jnp.any(is_near))
    relative_gap = jnp.where(num_kept > 0, gap / safe(smallest), 0)
    return num_kept, relative_gap, bound, is_ambiguous


@jax.custom_jvp
def _projection(
    matrix: RowMatrix,
    scale: Array,
    vectors: Array,
    values: Array,
    is_bad: Array,
    image: Array,
) -> Array:
    """Returns leading singular vectors divided by singular values, with derivatives.

    The result is B = V / σ with X B = U_k; derivatives are right up to a rotation. The
    derivatives are those of `image`, XᵀX V for a constant V. All other arguments
    are constants. Truncated vectors are 0, and their values 1. First derivatives
    are NaN if `is_bad`, and second derivatives always.
    """
    del matrix, scale, is_bad, image
    return vectors / values


@_projection.defjvp
def _projection_jvp(primals, tangents):
    """Computes the derivative of `_projection`, by one linear system per direction.

    The system is (σ_a² - XᵀX) y = (d XᵀX) v_a, for y orthogonal to all leading
    directions.
    """
    matrix, scale, vectors, values, is_bad, image = primals
    change = tangents[-1]
    inner = product(vectors.T, change)

    def orthogonal_part(columns: Array) -> Array:
        return columns - product(vectors, product(vectors.T, columns))

    def shifted(columns: Array) -> Array:
        images = matrix.gram_products(columns, scale)[: columns.shape[0]]
        return columns * values**2 - orthogonal_part(images)

    def solve(function: Callable[..., Array], right: Array) -> Array:
        """Returns the solutions, or NaN if the iteration did not converge."""
        eps = float(jnp.finfo(right.dtype).eps)
        solution = conjugate_gradients(function, right, _MAX_STEPS, tolerance=4 * eps)
        error = jnp.linalg.norm(function(solution) - right)
        is_solved = error <= eps**0.5 * jnp.linalg.norm(right)
        return jnp.where(is_solved, solution, jnp.nan)

    moved = lax.custom_linear_solve(
        shifted, orthogonal_part(change), solve, symmetric=True
    )
    inner = inner / values[:, None] ** 2
    change = (moved - product(vectors, inner) / 2) / values
    factor = 1 + 0 * without_derivative(jnp.sum(image))
    factor = jnp.where(is_bad, jnp.nan, factor)
    return vectors / values, change * factor


def leading_directions(
    run: Callable[[Array], Array], start: Array, num_passes: int
) -> tuple[Array, Array]:
    """Computes the leading right singular vectors, and their singular values.

    `run` maps Q (p, l) to Xᵀ(X Q) stacked on (X Q)ᵀ(X Q), (p + l, l), in one pass.

    The first passes build a Krylov basis Q. Each of its blocks is the image of the last
    block, made orthogonal to all earlier blocks. One further pass computes the images
    of the leading directions in the span of Q. It resolves a singular value of 1e-3 of
    the largest one in float32. The square of this value is lost in the rounding errors
    of QᵀXᵀXQ. The caller makes the last of the `num_passes` passes.
    """
    num_columns, width = start.shape
    block, _ = jnp.linalg.qr(start)
    basis = block
    images = jnp.zeros((num_columns, 0), start.dtype)
    for step in range(num_passes - 2):
        if step:
            block = _next_block(basis, images[:, -block.shape[1] :])
            if not block.shape[1]:
                # The basis spans the whole space.
                break
            basis = jnp.concatenate([basis, block], axis=1)
        new = run(block)[:num_columns]
        images = jnp.concatenate([images, new], axis=1)
    block = _in_basis(basis, images, width)
    return _extracted(run(block), num_columns)


@jax.jit
def _next_block(basis: Array, new: Array) -> Array:
    """Returns new columns, made orthonormal and orthogonal to the basis."""
    num_columns, width = basis.shape
    num_free = max(num_columns - width, 0)
    new = new[:, :num_free]
    for _ in range(3):
        new = new - product(basis, product(basis.T, new))
        norms = jnp.linalg.norm(new, axis=0)
        new = jnp.linalg.qr(new / jnp.where(norms > 0, norms, 1))[0]
    return new


@functools.partial(jax.jit, static_argnames="width")
def _in_basis(basis: Array, images: Array, width: int) -> Array:
    """Returns the leading directions in the span of a basis.

    They are the Rayleigh-Ritz vectors times XᵀX, which takes no further pass, since the
    images are known.
    """
    small = product(basis.T, images)
    squares, vectors = jnp.linalg.eigh((small + small.T) / 2)
    # Eigenvalues ascend, so the leading ones are last.
    squares = squares[::-1][:width]
    vectors = vectors[:, ::-1][:, :width]
    noise = basis.shape[1] * float(jnp.finfo(basis.dtype).eps)
    is_kept = squares > noise * squares[0]
    # The image of a direction in the null space is only rounding error, so that the
    # direction itself is kept. The next pass then has a full block of directions.
    further = product(images, vectors / jnp.where(is_kept, squares, 1))
    return jnp.linalg.qr(jnp.where(is_kept, further, product(basis, vectors)))[0]


@functools.partial(jax.jit, static_argnames="num_columns")
def _extracted(passed: Array, num_columns: int) -> tuple[Array, Array]:
    """Computes right singular vectors and singular values from images of a basis."""
    images = passed[:num_columns]
    squares = passed[num_columns:]
    sizes = jnp.sqrt(diagonal(squares))
    sizes = jnp.where(sizes > 0, sizes, 1)
    eigenvalues, vectors = jnp.linalg.eigh(squares / sizes / sizes[:, None])
    noise = 10 * squares.shape[0] * float(jnp.finfo(squares.dtype).eps)
    is_kept = eigenvalues > noise * jnp.maximum(eigenvalues[-1], 0)
    roots = jnp.sqrt(jnp.where(is_kept, eigenvalues, 1))
    whitening = jnp.where(is_kept, vectors / roots, 0)
    projected = product(images, whitening / sizes[:, None])
    vectors, values, _ = jnp.linalg.svd(projected, full_matrices=False)
    return vectors, values
