"""The numerical rank of a matrix, as used by leverage scores."""

from jax import Array
from jax.typing import ArrayLike

from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.kinds import MatrixLike, compute, matrix_of
from jaxwgc.sketching._linalg.orthonormalise import factors_of
from jaxwgc.sketching._linalg.rank import NumericalRank
from jaxwgc.sketching._linalg.rows import Rows
from jaxwgc.sketching._linalg.wide import factors_of_wide


def numerical_rank(matrix: MatrixLike, rcond: ArrayLike | None = None) -> NumericalRank:
    """Computes the numerical rank of a matrix, and whether rounding decides it.

    Leverage scores sum to this rank. Check it if the data may be at the limits of the
    precision: a constant column beside columns of large mean, or columns that are
    nearly dependent. If the rank is ambiguous, centre the columns, use float64, or
    choose an `rcond`.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      rcond: See `leverage_scores`.

    Returns:
      A `NumericalRank`: 0 and True if a traced matrix has a NaN or infinity.

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
      the numerical rank. See `leverage_scores` for the algorithm.
    """
    checked = matrix_of("matrix", matrix)
    checked, rcond = _checks.with_cutoff(checked, rcond)
    rank = compute(_rank, checked, rcond)
    _checks.warn_of_precision(matrix, checked, rank.rank)
    return rank


def _rank(rows: Rows, rcond: Array) -> NumericalRank:
    if rows.is_wide:
        return factors_of_wide(rows, rcond)[1].rank
    # Always by two Gram matrices, since one does not show small singular values.
    return factors_of(rows, None, rcond, threshold=1.0).rank
