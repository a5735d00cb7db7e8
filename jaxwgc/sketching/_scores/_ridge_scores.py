"""Ridge leverage scores of the rows of a matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching import _checks
from jaxwgc.sketching._derivatives import known_product, orthonormaliser_of_gram
from jaxwgc.sketching._gram import Gram, gram, square_of_wide
from jaxwgc.sketching._row_blocks import RidgedRows, ridge_rows, rows_of
from jaxwgc.sketching._scores._gram_scores import at_most_one, gram_scores


def ridge_leverage_scores(
    matrix: Any,
    ridge: jax.typing.ArrayLike,
    rcond: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Returns the diagonal of X (XᵀX + ridge I)⁻¹ Xᵀ: a score of every row.

    The scores sum to the effective dimension Σ σ² / (σ² + ridge) over the singular
    values σ of X. They fall as the ridge grows, and at ridge 0 they are the leverage
    scores.

    Args:
      matrix: X, (N, p), an array or a sparse matrix, as in `leverage_scores`.
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
      A matrix with N >= p takes the two to four products of `leverage_scores`. A wide
      one is first reduced to its square factor, X = RᵀQᵀ: this is the dual way, which
      does not form XᵀX.

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
    matrix = _checks.any_matrix("matrix", matrix)
    regulariser = _checks.regulariser(ridge, matrix.dtype)
    if regulariser is None:
        regulariser = jnp.zeros((), matrix.dtype)
    matrix, rcond = _checks.with_cutoff(matrix, rcond)
    return _ridge_scores(matrix, regulariser, rcond)


@jax.jit
def _ridge_scores(matrix: Any, ridge: jax.Array, rcond: jax.Array) -> jax.Array:
    if matrix.shape[0] >= matrix.shape[1]:
        rows = RidgedRows(rows_of(matrix), lax.stop_gradient(ridge))
        known = Gram.equilibrated(rows)
        # Its derivative, which that of a root would lose at zero.
        change = ridge - lax.stop_gradient(ridge)
        change = jnp.diag(change * known.scale * known.unit * known.scale * known.unit)
        return gram_scores(known._replace(matrix=known.matrix + change), rcond)
    root = jnp.sqrt(lax.stop_gradient(ridge))
    rows = rows_of(lax.stop_gradient(matrix))
    largest = jnp.maximum(rows.largest().max(), root)
    finite = jnp.isfinite(largest)
    # One unit for all columns, which the ridge ties together.
    scale = jnp.where(finite, inverse_power_of_two(largest), 0)
    matrix = _checks.with_values(lambda x: jnp.where(finite, x, 0) * scale, matrix)
    # A maximum need not show a NaN.
    finite &= jnp.isfinite(rows.sum(lambda block: jnp.sum(block * scale)))
    square = square_of_wide(matrix)
    left, singular_values, right = jnp.linalg.svd(lax.stop_gradient(square))
    total = jnp.hypot(singular_values, root * scale)
    is_kept = total > rcond * total[0]
    row_basis = jnp.where(is_kept, right.T, 0)
    inverse = row_basis / jnp.where(is_kept, total, 1)
    with_ridge = gram(square) + ridge_rows(len(square), scale * ridge * scale)
    inverse = orthonormaliser_of_gram(inverse, row_basis, with_ridge)
    shares = jnp.where(is_kept, singular_values / jnp.where(is_kept, total, 1), 0)
    scores = jnp.sum(known_product(square, inverse, left * shares) ** 2, axis=1)
    return jnp.where(finite, at_most_one(scores), jnp.nan)
