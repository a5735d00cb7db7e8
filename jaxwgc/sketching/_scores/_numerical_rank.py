"""The numerical rank of a matrix, and whether rounding decides it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._gram import (
    WELL_CONDITIONED,
    Gram,
    equilibrated,
    square_of_wide,
)
from jaxwgc.sketching._row_blocks import DenseRows, rows_of
from jaxwgc.sketching._scores._unequal_rows import is_lost, levelled


class NumericalRank(NamedTuple):
    """The number of directions of a matrix that are more than rounding.

    Attributes:
      rank: int32 scalar.
      is_ambiguous: bool scalar, whether rounding may decide it: a singular value is
        within 10 √min(N, p) rounding units (of the largest) of the cut-off. Those below
        2 + √min(N, p) / 2 units do not count: rounding makes as much of a zero.
    """

    rank: jax.Array
    is_ambiguous: jax.Array


def rank_of(singular_values: jax.Array, rcond: jax.typing.ArrayLike) -> NumericalRank:
    """Returns the rank of a matrix with these singular values, the largest first."""
    eps = jnp.finfo(singular_values.dtype).eps
    root = singular_values.shape[0] ** 0.5
    shares = singular_values / jnp.where(singular_values[0] > 0, singular_values[0], 1)
    is_near = jnp.abs(shares - rcond) <= 10 * root * eps
    return NumericalRank(
        rank=jnp.sum(shares > rcond, dtype=jnp.int32),
        # In matrices of up to 100,000 rows and of rank 1 to p - 1, a zero became up to
        # 2.4 units with 5 columns and 5 with 50, by a second Gram matrix, or 2 by QR.
        is_ambiguous=jnp.any(is_near & (shares > (2 + root / 2) * eps)),
    )


def numerical_rank(
    matrix: Any, rcond: jax.typing.ArrayLike | None = None
) -> NumericalRank:
    """Returns the rank to which leverage scores sum, and whether rounding decides it.

    It is asked for beside the scores where data may be at the limits of the precision:
    columns of a large mean beside a constant one, or that nearly depend on each other.
    If it is ambiguous, centre the columns, use float64, or choose an `rcond`.

    Args:
      matrix: X, (N, p), an array or a sparse matrix, as in `leverage_scores`.
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
    matrix = _checks.any_matrix("matrix", matrix)
    return _rank(*_checks.with_cutoff(matrix, rcond))


@jax.jit
def _rank(matrix: Any, rcond: jax.Array) -> NumericalRank:
    if matrix.shape[0] < matrix.shape[1]:
        finite, matrix, _, _ = equilibrated(matrix)
        gram = Gram.plain(DenseRows(square_of_wide(matrix)))._replace(finite=finite)
    else:
        gram = Gram.equilibrated(rows_of(matrix))
    eigenvalues, vectors = gram.decomposed()
    small = gram.refined(eigenvalues, vectors).small()
    _, singular_values, right = jnp.linalg.svd(small)
    is_kept = singular_values > rcond * singular_values[0]
    row_basis = product(vectors, jnp.where(is_kept, right.T, 0))
    lost = is_lost(gram.rows, gram.scaled, row_basis, rcond)

    def by_levels() -> NumericalRank:
        values = jnp.linalg.eigh(levelled(gram, lost).matrix)[0][::-1]
        noise = _checks.rank_cutoff(values.shape, values.dtype)
        is_small = values <= WELL_CONDITIONED * values[0]
        return NumericalRank(
            rank=jnp.sum(~is_small, dtype=jnp.int32),
            is_ambiguous=jnp.any(is_small & (values > noise * values[0])),
        )

    rank = lax.cond(lost, by_levels, lambda: rank_of(singular_values, rcond))
    return NumericalRank(
        rank=jnp.where(gram.finite, rank.rank, 0),
        is_ambiguous=rank.is_ambiguous | ~gram.finite,
    )
