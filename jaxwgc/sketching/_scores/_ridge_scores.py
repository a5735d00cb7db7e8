"""Ridge leverage scores of the rows of a matrix."""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.kinds import MatrixLike, by_rows_spec, compute, matrix_of
from jaxwgc.sketching._linalg.orthonormalise import factors_of
from jaxwgc.sketching._linalg.rows import Rows
from jaxwgc.sketching._linalg.wide import wide_scores


def ridge_leverage_scores(
    matrix: MatrixLike, ridge: ArrayLike, rcond: ArrayLike | None = None
) -> Any:
    """Returns the diagonal of X (XᵀX + ridge I)⁻¹ Xᵀ: a score of every row.

    The scores sum to the effective dimension Σ σ² / (σ² + ridge) over the singular
    values σ of X. They fall as the ridge grows, and at ridge 0 they are the leverage
    scores.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      ridge: a real scalar of at least 0, may be traced. It is added to XᵀX as it is,
        not times N, and must be in the range of the dtype of X.
      rcond: as in `leverage_scores`, of which these are the scores of X on top of
        √ridge I, a matrix of full rank. Where √ridge is below the cut-off, directions
        that X does not have, or has as noise only, count 0 as they do without a ridge.

    Returns:
      (N,), each in [0, 1]. The error is of the order of the rounding unit times the
      condition number of X on top of √ridge I; XᵀX + ridge I itself, whose condition
      number is the square, is not solved with. All NaN where a traced matrix is not
      finite or a traced ridge is negative or not finite.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for a ridge that is negative, not finite
        or lost in the dtype; for an rcond outside [0, 1).
      TypeError: for a complex matrix or anything but numbers.

    Note:
      A matrix with N >= p takes the two to four products of `leverage_scores`. Of a
      wide one, XXᵀ is decomposed: this is the dual way, which does not form XᵀX.

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
    checked = matrix_of("matrix", matrix)
    regulariser = _checks.regulariser(ridge, checked.dtype)
    checked, rcond = _checks.with_cutoff(checked, rcond)
    return compute(_ridge_scores, checked, regulariser, rcond, specs=by_rows_spec)


def _ridge_scores(rows: Rows, ridge: Array | None, rcond: Array) -> Any:
    if rows.is_wide:
        return wide_scores(rows, ridge, rcond)
    root = None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    return factors_of(rows, root, rcond).row_norms(rows, ridge)
