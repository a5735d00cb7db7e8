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
    """Computes ridge leverage scores: the diagonal of X (XᵀX + ridge I)⁻¹ Xᵀ.

    The scores sum to the effective dimension Σ σ² / (σ² + ridge) over the singular
    values σ of X. They fall as the ridge grows, and at ridge 0 they are the leverage
    scores.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      ridge: A real scalar of at least 0, may be traced. It is added to XᵀX unscaled,
        not times N, and must be in the range of the dtype of X.
      rcond: See `leverage_scores`; applied to X stacked on √ridge I. If √ridge is below
        the cutoff, the null space of X and directions of noise alone count 0, as they
        do without a ridge.

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
    checked = matrix_of("matrix", matrix)
    regulariser = _checks.regulariser(ridge, checked.dtype)
    checked, rcond = _checks.with_cutoff(checked, rcond)
    return compute(_ridge_scores, checked, regulariser, rcond, specs=by_rows_spec)


def _ridge_scores(rows: Rows, ridge: Array | None, rcond: Array) -> Any:
    if rows.is_wide:
        return wide_scores(rows, ridge, rcond)
    root = None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    return factors_of(rows, root, rcond).row_norms(rows, ridge)
