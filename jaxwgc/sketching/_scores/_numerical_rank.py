"""The numerical rank of a matrix, as leverage scores see it."""

from jax import Array
from jax.typing import ArrayLike

from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.kinds import MatrixLike, compute, matrix_of
from jaxwgc.sketching._linalg.orthonormalise import factors_of
from jaxwgc.sketching._linalg.rank import NumericalRank
from jaxwgc.sketching._linalg.rows import Rows
from jaxwgc.sketching._linalg.wide import factors_of_wide


def numerical_rank(matrix: MatrixLike, rcond: ArrayLike | None = None) -> NumericalRank:
    """Returns the rank to which leverage scores sum, and whether rounding decides it.

    It is asked for beside the scores where data may be at the limits of the precision:
    columns of a large mean beside a constant one, or that nearly depend on each other.
    If it is ambiguous, centre the columns, use float64, or choose an `rcond`.

    Args:
      matrix: X, (N, p), of any kind that `leverage_scores` takes.
      rcond: as in `leverage_scores`.

    Returns:
      `NumericalRank`. With a NaN or infinity in a traced matrix, 0 and True.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for an rcond outside [0, 1).
      TypeError: for a complex matrix or anything but numbers.

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
      the numerical rank; `leverage_scores` for how it is found.
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
