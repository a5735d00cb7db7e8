"""Exact leverage scores of the rows of a matrix."""

from typing import Any

from jax import Array
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    by_rows_spec,
    compute,
    is_dense,
    matrix_of,
)
from jaxwgc.sketching._linalg.orthonormalise import factors_of
from jaxwgc.sketching._linalg.rows import Rows
from jaxwgc.sketching._linalg.wide import wide_scores

METHODS = ("auto", "gram", "qr", "svd")


def leverage_scores(
    matrix: MatrixLike, method: str = "auto", rcond: ArrayLike | None = None
) -> Any:
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

    Rows of very different norm do matter: beside a row of 1e8, all that others have is
    rounding in float32, and directions that only they see are cut off. A warning says
    so if the matrix is not traced; scale the rows, or use float64.

    Args:
      matrix: X, real, of shape (N, p), in any units. Integers and bools are computed in
        the default float dtype, float16 and bfloat16 in float32.
        - An array. If its rows are spread over devices (a `NamedSharding` of the first
          axis; in a traced function on a mesh of explicit axes), each device reads its
          own rows only; what travels are p×p matrices. N must be at least p.
        - A sparse matrix: a `jax.experimental.sparse.BCOO` without batch or dense axes,
          or one of `scipy.sparse`.
        - `Blocks`, which are read twice.
      method: how the scores are found; all four agree up to rounding.
        - `"gram"`: from the Gram matrix XᵀX, in two products of the size of X if X is
          well-conditioned (condition number below 100), and in four otherwise: the
          second pass works on X times an inverse square root of a shifted Gram matrix,
          which makes it as good as QR. No array of the size of X is made.
        - `"qr"`: from X = QR and the singular value decomposition of R.
        - `"svd"`: from the singular value decomposition of X: the slowest, the
          reference.
        - `"auto"`: `"gram"` for N >= 4p, a sparse or a sharded matrix, else `"qr"`.

        Of a sparse matrix, for which `"gram"` is the only way, a few thousand rows (or
        columns, of a wide one) are dense at a time. That takes the memory of the
        entries, and products as long as those of a dense matrix. `Blocks` are
        factorised by `"qr"`, chunk by chunk.
      rcond: the cut-off of the numerical rank, a real scalar in [0, 1), may be traced.
        By default 10 √min(N, p) times the rounding unit of the dtype: a few times the
        noise that rounding makes of a zero singular value, in every method and for
        every N. NumPy's `matrix_rank` takes max(N, p) rounding units instead; in
        float32 and with 100,000 rows that would call everything beyond a condition
        number of 84 rank-deficient. Below the default, `"gram"` (and to a lesser degree
        the others) cannot tell a singular value from noise.

    Returns:
      (N,), each in [0, 1]; of `Blocks` a NumPy array. The error is of the order of the
      rounding unit times the condition number of the kept part of X. With a NaN or
      infinity in a traced matrix, all scores are NaN.

    Raises:
      ValueError: If the matrix has not two axes, no rows or columns, or (if not traced)
        NaN or infinite entries; if rows are sharded and fewer than columns; if `Blocks`
        change between passes; if the method is unknown, or one that the kind of matrix
        does not have; if rcond is outside [0, 1).
      TypeError: If the matrix is complex, a sparse one of another kind, a
        `LinearOperator`, or anything but numbers.

    Note:
      `"gram"` decides by `jax.lax.cond` what is needed beyond the first pass. Under
      `jax.vmap` over matrices the condition becomes a selection and all is computed.

      Derivatives are those along matrices of the same rank: a column of zeros stays
      zero, since the scores jump if it does not. Those of a sparse or sharded matrix
      are forward-mode only, and `Blocks` have none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> print(sketching.leverage_scores(matrix).round(3))
      [0.5 0.5 1. ]

    References:
      The paper's section 3.1. Drineas, Magdon-Ismail, Mahoney and Woodruff, "Fast
      approximation of matrix coherence and statistical leverage", JMLR 13 (2012),
      section 1.1, for the definition. Demmel, Grigori, Hoemmen and Langou,
      "Communication-optimal parallel and sequential QR and LU factorizations", SIAM J.
      Sci. Comput. 34 (2012), for `Blocks`. The second pass follows Fukaya, Kannan,
      Nakatsukasa, Yamamoto and Yanagisawa, "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020), with
      eigenvectors in place of Cholesky factors, so that rank-deficient matrices pass.
    """
    _validation.check_choice("method", method, METHODS)
    checked = matrix_of("matrix", matrix)
    if not is_dense(checked) and method not in ("auto", "gram"):
        raise ValueError(
            "method must be 'auto' or 'gram' for sparse, sharded or streamed rows; got "
            f"{method!r}"
        )
    num_rows, num_columns = checked.shape
    if method == "auto":
        is_tall = num_rows >= 4 * num_columns
        method = "gram" if is_tall or not is_dense(checked) else "qr"
    checked, rcond = _checks.with_cutoff(checked, rcond)
    scores = compute(_scores, checked, rcond, specs=by_rows_spec, method=method)
    _checks.warn_of_precision(matrix, checked, scores)
    return scores


def _scores(rows: Rows, rcond: Array, method: str) -> Any:
    if rows.is_wide:
        return wide_scores(rows, None, rcond, method)
    return factors_of(rows, None, rcond, method).row_norms(rows)
