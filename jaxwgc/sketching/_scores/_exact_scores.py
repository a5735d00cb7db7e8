"""Leverage scores, ridge leverage scores and the numerical rank of a matrix."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import validation
from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._linalg.factors import (
    Factors,
    NumericalRank,
    factors_of,
    gram_factors,
    root_of,
)
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    compiled,
    matrix_and_cutoff,
    warn_of_precision,
)
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix, gram_of_block
from jaxwgc.sketching._linalg.projector import (
    as_scores,
    at_most_one,
    orthonormaliser,
    orthonormaliser_of_gram,
)
from jaxwgc.sketching._linalg.rows import column_scale
from jaxwgc.sketching._linalg.sparse import Sparse

METHODS = ("auto", "gram", "qr")


def leverage_scores(
    matrix: MatrixLike, method: str = "auto", rcond: ArrayLike | None = None
) -> Array | np.ndarray:
    """Computes how much each row matters to a linear fit: its leverage score.

    Scores are the diagonal of X X⁺. The scores sum to the numerical rank of X and
    do not change when X is multiplied from the right by an invertible matrix. The
    matrix may be rank-deficient, wide or zero.

    The numerical rank counts singular values above `rcond` times the largest. Every
    column is first multiplied by a power of two that scales its norm to about 1. So the
    units of the columns do not matter: a column of size 1e-8 counts as much as one of
    size 1e8. A column of rounding noise alone, such as a centred constant column, also
    counts: drop it, or set it to zero. `numerical_rank` returns the rank, and whether
    rounding decides it.

    Rows of very different norm do matter. Beside a row of 1e8, the other rows are below
    rounding in float32, and directions that only they span are truncated. For an
    array that is not traced, a warning reports it. Scale the rows, or use float64.

    Args:
      matrix: X, real, of shape (N, p), in any units. Integers and bools are converted
        to the default float dtype, float16 and bfloat16 to float32.
        - An array. Its rows may be sharded over devices, by a `NamedSharding` of the
          first axis (in a traced function, on a mesh of explicit axes). Each device
          then reads its own rows only, and sends p×p matrices. N must be at least p.
        - A sparse matrix: a `jax.experimental.sparse.BCOO` without batch or dense axes,
          or one of `scipy.sparse`.
        - `Blocks`, which are read twice.
      method: The algorithm. All three agree up to rounding.
        - `"gram"`: from the Gram matrix XᵀX. It takes two products of the size of X if
          X is well-conditioned (condition number below 100), and four otherwise. The
          second pass works on X times an inverse square root of a shifted Gram matrix,
          which makes it as accurate as QR. No array of the size of X is made.
        - `"qr"`: from X = QR and the singular value decomposition of R.
        - `"auto"`: `"gram"` for N >= 4p, a sparse or a sharded matrix, else `"qr"`.

        A sparse matrix requires `"gram"`. A few thousand of its rows (or columns, if it
        is wide) are densified at a time. Memory is proportional to the entries, and
        products take the time of a dense matrix. `Blocks` are factorised by `"qr"`,
        chunk by chunk.
      rcond: The cutoff of the numerical rank, a real scalar in [0, 1), may be traced.
        By default 10 √min(N, p) times machine epsilon of the dtype. That is a few times
        the rounding noise of a zero singular value, for every method and every N.
        NumPy's `matrix_rank` takes max(N, p) machine epsilons instead. In float32 with
        100,000 rows, a condition number of 84 would then count as rank-deficient. Below
        the default, `"gram"` (and to a lesser degree the others) cannot tell a singular
        value from noise.

    Returns:
      (N,), each in [0, 1]; a NumPy array for `Blocks`. The error is of the order of
      machine epsilon times the condition number of X without its truncated directions.
      If a traced matrix has a NaN or infinity, all scores are NaN.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if sharded rows are fewer than
        columns; if `Blocks` change between passes; if the method is unknown, or does
        not support the kind of matrix; if rcond is outside [0, 1).
      TypeError: If the matrix is complex, a sparse matrix of another kind, a
        `LinearOperator` (see `approximate_leverage_scores`), or not numeric.

    Note:
      `"gram"` decides by `jax.lax.cond` whether a second pass is needed. Under
      `jax.vmap` over matrices, the condition becomes a selection and both passes are
      computed.

      Derivatives are along matrices of the same rank. A column of zeros stays zero,
      since the scores jump if it does not. Sparse and sharded matrices have
      forward-mode derivatives only, and `Blocks` have none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> print(sketching.leverage_scores(matrix).round(3))
      [0.5 0.5 1. ]

    References:
      Charalambides, Pilanci and Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 3.1, and Drineas, Magdon-Ismail, Mahoney and
      Woodruff, "Fast approximation of matrix coherence and statistical leverage", JMLR
      13 (2012), section 1.1, for the definition. Demmel, Grigori, Hoemmen and Langou,
      "Communication-optimal parallel and sequential QR and LU factorizations", SIAM J.
      Sci. Comput. 34 (2012), for `Blocks`. The second pass follows Fukaya, Kannan,
      Nakatsukasa, Yamamoto and Yanagisawa, "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020), with
      eigenvectors in place of Cholesky factors, so that rank-deficient matrices pass.
    """
    validation.check_choice("method", method, METHODS)
    checked, cutoff = matrix_and_cutoff(matrix, rcond)
    if not isinstance(checked, Dense) and method not in ("auto", "gram"):
        raise ValueError(
            "method must be 'auto' or 'gram' for a sparse or sharded matrix and for "
            f"Blocks; got {method!r}"
        )
    scores = _scores(checked, None, cutoff, method=method)
    warn_of_precision(matrix, checked, scores)
    return scores


def ridge_leverage_scores(
    matrix: MatrixLike, ridge: ArrayLike, rcond: ArrayLike | None = None
) -> Array | np.ndarray:
    """Computes the leverage score of each row in a fit with a ridge.

    Scores are the diagonal of X (XᵀX + ridge I)⁻¹ Xᵀ. The scores sum to the
    effective dimension Σ σ² / (σ² + ridge) over the singular values σ of X. They
    fall as the ridge grows, and at ridge 0 they are the leverage scores.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      ridge: A real scalar of at least 0, may be traced. It is added to XᵀX unscaled,
        not times N, and must be in the range of the dtype of X.
      rcond: Cutoff of the numerical rank, relative to the largest singular value, a
        real scalar in [0, 1), may be traced. It applies to X stacked on √ridge I, with
        the default of `leverage_scores`. If √ridge is below the cutoff, the null space
        of X and directions of noise alone count 0, as they do without a ridge.

    Returns:
      (N,), each in [0, 1]. The error is of the order of machine epsilon times the
      condition number of X stacked on √ridge I. No system with XᵀX + ridge I is solved,
      since its condition number is the square. If a traced matrix is not finite, or a
      traced ridge is negative or not finite, all are NaN.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if ridge is negative, not finite or
        lost in the dtype; if rcond is outside [0, 1).
      TypeError: If the matrix is complex or not numeric.

    Note:
      A matrix with N >= p takes the two to four products of `leverage_scores`. For a
      wide matrix, XXᵀ is decomposed instead, and XᵀX is not formed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> print(sketching.ridge_leverage_scores(matrix, 2.0).round(2))
      [0.25 0.25 0.82]

    References:
      Alaoui and Mahoney, "Fast randomized kernel ridge regression with statistical
      guarantees", NeurIPS 2015, definition 1.
    """
    checked, cutoff = matrix_and_cutoff(matrix, rcond)
    regulariser = _arguments.regulariser(ridge, checked.dtype)
    return _scores(checked, regulariser, cutoff, method="gram")


@compiled("method")
def _scores(
    matrix: RowMatrix, ridge: Array | None, rcond: Array, *, method: str
) -> Array | np.ndarray:
    if matrix.is_wide:
        return wide_scores(matrix, ridge, rcond)
    factors = factors_of(matrix, root_of(ridge), rcond, method)
    inverse = orthonormaliser(matrix, factors, ridge)
    return as_scores(matrix.row_norms(inverse, factors.scale), factors.finite)


def numerical_rank(matrix: MatrixLike, rcond: ArrayLike | None = None) -> NumericalRank:
    """Computes the numerical rank of a matrix, and whether rounding decides it.

    Leverage scores sum to this rank. Check it if the data may be at the limits of the
    precision: a constant column beside columns of large mean, or columns that are
    nearly dependent. If the rank is ambiguous, centre the columns, use float64, or
    choose an `rcond`.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      rcond: Cutoff of the numerical rank, relative to the largest singular value, a
        real scalar in [0, 1), may be traced. By default that of `leverage_scores`.

    Returns:
      A pair of arrays with names:

      - `rank`: int32 scalar.
      - `is_ambiguous`: bool scalar, whether a singular value is within a factor of ten
        of the cutoff. Rounding or small changes of the data may then decide the rank.
        Values below 2 + √min(N, p) / 2 machine epsilons (of the largest) do not count:
        rounding turns zeros into such values.

      They are 0 and True if a traced matrix has a NaN or infinity.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if rcond is outside [0, 1).
      TypeError: If the matrix is complex or not numeric.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> steps = jnp.arange(100.0)
      >>> line = jnp.stack([jnp.ones(100), steps, 2 * steps + 1], axis=1)
      >>> print(*sketching.numerical_rank(line))
      2 False
      >>> print(*sketching.numerical_rank(line[:, :2] + jnp.array([0, 1e7])))
      1 True

    References:
      Golub and Van Loan, "Matrix computations", 4th edition (2013), section 5.4.1, for
      the numerical rank.
    """
    checked, cutoff = matrix_and_cutoff(matrix, rcond)
    rank = _rank(checked, cutoff)
    warn_of_precision(matrix, checked, rank.rank)
    return rank


@compiled()
def _rank(matrix: RowMatrix, rcond: Array) -> NumericalRank:
    if matrix.is_wide:
        _, factors, _ = factors_of_wide(matrix, rcond)
        return factors.rank
    # The first Gram matrix does not show small singular values, so the second one is
    # always computed.
    return factors_of(matrix, None, rcond, threshold=1.0).rank


def factors_of_wide(
    matrix: RowMatrix, rcond: ArrayLike, has_units: bool = True
) -> tuple[RowMatrix, Factors, Array]:
    """Returns a wide matrix scaled and transposed, its factors and column scales."""
    assert isinstance(matrix, Dense | Sparse)
    scale = column_scale(matrix.column_maxima())
    squares = lax.stop_gradient(matrix).sum_rows(_squares, scale)
    if has_units:
        scale = scale * inverse_power_of_two(jnp.sqrt(squares))
    else:
        scale = jnp.full(scale.shape, jnp.min(scale))
    tall = matrix.scaled(scale).T
    # Columns of Xᵀ share one scale: they are rows of X, and their sizes matter.
    factors = gram_factors(tall, None, rcond, threshold=1.0, has_units=False)
    finite = jnp.isfinite(squares).all() & factors.finite
    return tall, factors._replace(finite=finite), scale


def wide_scores(matrix: RowMatrix, ridge: Array | None, rcond: Array) -> Array:
    """Computes leverage scores of a wide matrix from the Gram matrix of its rows.

    Scores are the diagonal of K (K + ridge I)⁺ with K = X Xᵀ.
    """
    # With a ridge, all columns share one scale, since the ridge has the units of X. The
    # factorisation then truncates nothing, since the truncation below includes the
    # ridge.
    cutoff = rcond if ridge is None else 0.0
    tall, factors, scale = factors_of_wide(matrix, cutoff, has_units=ridge is None)
    vectors = factors.vectors
    values = factors.singular_values
    gram = tall.sum_rows(gram_of_block, factors.scale)
    shifted = gram
    total = values
    if ridge is not None:
        unit = scale[0] * factors.scale[0]
        total = jnp.hypot(values, unit * jnp.sqrt(lax.stop_gradient(ridge)))
        vectors = jnp.where(total > rcond * total[0], vectors, 0)
        shifted = gram + unit * ridge * unit * jnp.eye(len(gram))
    inverse = vectors / jnp.where(total > 0, total, 1)
    scores = jnp.sum((inverse * values) ** 2, axis=1)
    # Values of the scores come from the decomposition. Their derivatives come from the
    # matrix equation of `orthonormaliser_of_gram`.
    inverse = orthonormaliser_of_gram(inverse, vectors, shifted)
    differentiable = jnp.sum(inverse * product(gram, inverse), axis=1)
    scores += differentiable - lax.stop_gradient(differentiable)
    return jnp.where(factors.finite, at_most_one(scores), jnp.nan)


def _squares(block: Array, scale: Array) -> Array:
    return jnp.sum((block * scale) ** 2, axis=0)
