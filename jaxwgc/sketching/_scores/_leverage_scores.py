"""Exact leverage scores of the rows of a matrix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._derivatives import orthonormal_basis
from jaxwgc.sketching._gram import Gram, equilibrated, square_of_wide
from jaxwgc.sketching._row_blocks import DenseRows, rows_of
from jaxwgc.sketching._scores._gram_scores import (
    at_most_one,
    gram_scores,
    scores_where_lost,
)
from jaxwgc.sketching._scores._unequal_rows import is_lost

METHODS = ("auto", "gram", "qr", "svd")


def leverage_scores(
    matrix: Any, method: str = "auto", rcond: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Returns the leverage score of every row: the diagonal of X X⁺.

    The scores sum to the numerical rank of X and do not change when X is multiplied
    from the right by an invertible matrix. The matrix may be rank-deficient, wide or
    zero.

    The numerical rank counts singular values above `rcond` times the largest, after
    every column has been multiplied by the power of two that brings its norm next to
    1. So the units of the columns do not matter: a column of size 1e-8 counts as much
    as one of size 1e8. The other side of this is that a column of nothing but rounding
    noise (a constant column, centred) counts as a column too; drop it, or make it zero.
    `numerical_rank` gives the rank by itself, and says where rounding decides it.

    Nor do rows of very unequal size matter: beside a row of 1e8, all others are below
    the cut-off in float32, but a direction in which they are more than rounding of
    their own counts. The heaviest rows are then taken first, as in QR with sorted rows.
    (One that is heavy in some columns only does hide others there, since columns are
    brought to one size first.)

    Args:
      matrix: X, real, of shape (N, p), in any units: an array, or a sparse matrix, a
        `jax.experimental.sparse.BCOO` without batch or dense axes or one of
        `scipy.sparse`. Integers and bools are computed in the default float dtype,
        float16 and bfloat16 in float32.
      method: how the scores are found; all four agree up to rounding.
        - `"gram"`: from the Gram matrix XᵀX, in two products of the size of X where X
          is well-conditioned (condition number below 100). Where it is but for
          directions that look like zero, one more product, with these alone, tells
          whether they are. Otherwise it takes four: the second pass works on X times
          an inverse square root of a shifted Gram matrix, which makes it as good as
          QR. No array of the size of X is made.
        - `"qr"`: from X = QR and the singular value decomposition of R.
        - `"svd"`: from the singular value decomposition of X, or of its square factor
          where it is wide: the slowest, the reference.
        - `"auto"`: `"gram"` where N >= 4p or X is sparse, else `"qr"`.

        Of a sparse matrix, for which `"gram"` is the only way, a few thousand rows (or
        columns, of a wide one) are dense at a time. That takes the memory of the
        entries, and products as long as those of a dense matrix.
      rcond: the cut-off of the numerical rank, a real scalar in [0, 1), may be traced.
        By default 10 √min(N, p) times the rounding unit of the dtype: a few times the
        noise that rounding makes of a zero singular value, in every method and for
        every N. NumPy's `matrix_rank` takes max(N, p) rounding units instead; in
        float32 and with 100,000 rows that would call everything beyond a condition
        number of 84 rank-deficient. Below the default, `"gram"` (and to a lesser degree
        the others) cannot tell a singular value from noise. Above it, rows of unequal
        size are not looked at: what is below `rcond` is cut off.

    Returns:
      (N,), each in [0, 1]. The error is of the order of the rounding unit times the
      condition number of the kept part of X. With a NaN or infinity in a traced matrix,
      all scores are NaN.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for an unknown method, or one that a
        sparse matrix does not have; for an rcond outside [0, 1).
      TypeError: for a complex matrix, a sparse one of another kind, or anything but
        numbers.

    Note:
      `"gram"` decides by `jax.lax.cond` what is needed beyond the first pass. Under
      `jax.vmap` over matrices the condition becomes a selection and all is computed.

      Derivatives are those along matrices of the same rank: a column of zeros stays
      zero, since the scores jump where it does not. Those of a sparse matrix are
      forward-mode only.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> print(sketching.leverage_scores(matrix).round(3))
      [0.5 0.5 1. ]

    References:
      The paper's section 3.1. Drineas, Magdon-Ismail, Mahoney and Woodruff, "Fast
      approximation of matrix coherence and statistical leverage", JMLR 13 (2012),
      section 1.1, for the definition. Cox and Higham, "Stability of Householder QR
      factorization for weighted least squares problems", in: Numerical Analysis 1997
      (1998), for rows of unequal size. The second pass follows Fukaya, Kannan,
      Nakatsukasa, Yamamoto and Yanagisawa, "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020), with
      eigenvectors in place of Cholesky factors, so that rank-deficient matrices pass.
    """
    _validation.check_choice("method", method, METHODS)
    matrix = _checks.any_matrix("matrix", matrix)
    is_sparse = _checks.is_sparse(matrix)
    if is_sparse and method not in ("auto", "gram"):
        raise ValueError(
            f'method must be "auto" or "gram" for a sparse matrix; got {method!r}'
        )
    num_rows, num_columns = matrix.shape
    if method == "auto":
        method = "gram" if is_sparse or num_rows >= 4 * num_columns else "qr"
    return _scores(*_checks.with_cutoff(matrix, rcond), method)


@functools.partial(jax.jit, static_argnames="method")
def _scores(matrix: Any, rcond: jax.Array, method: str) -> jax.Array:
    num_rows, num_columns = matrix.shape
    if method == "gram" and num_rows >= num_columns:
        return gram_scores(Gram.equilibrated(rows_of(matrix)), rcond)
    finite, matrix, _, _ = equilibrated(matrix)
    if num_rows < num_columns:
        matrix = square_of_wide(matrix)
    # Not equilibrated again: the last columns of Rᵀ may be nothing but noise.
    gram = Gram.plain(DenseRows(matrix))
    if method == "gram":
        scores = gram_scores(gram, rcond)
    else:
        basis, row_basis = orthonormal_basis(matrix, rcond, method)
        lost = is_lost(gram.rows, gram.scaled, row_basis, rcond)
        scores = scores_where_lost(
            gram, lost, lambda: at_most_one(jnp.sum(basis**2, axis=1))
        )
    return jnp.where(finite, scores, jnp.nan)
