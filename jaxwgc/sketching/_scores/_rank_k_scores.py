"""Leverage scores of the rows in the leading singular directions of a matrix."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching import _checks
from jaxwgc.sketching._linalg.derivatives import at_most_one
from jaxwgc.sketching._linalg.kinds import MatrixLike, compute, matrix_of
from jaxwgc.sketching._linalg.rows import Rows, constant
from jaxwgc.sketching._scores._leading_directions import (
    inverses,
    leading_directions,
    projection_on,
    trust,
)


class RankKScores(NamedTuple):
    """Scores of rows in the leading directions, and how far they may be trusted.

    Attributes:
      scores: (N,), squared row norms of U_k. They sum to `rank`, up to what
        `error_bound` allows.
      singular_values: (k,), the largest first; at most those of X.
      rank: int32 scalar, the number of directions that count: k, or fewer where the
        numerical rank of X is less. The scores are then those of the directions that
        are there.
      gap: scalar in [0, 1], (σ_k - σ_{k+1}) / σ_k of the values that were found, each
        of which grows towards its own as passes are added. 1 below k directions, and 0
        where there is none.
      error_bound: scalar in [0, 1], the largest error of the square root of a score. It
        is the sine of the angle between the subspace that was found and that of the
        leading directions, which is at most the residual ‖XᵀU - V Σ‖ over σ_k - σ_{k+1}
        (Wedin's theorem), with the gap that was found. Far above most errors. No bound
        where the random start has missed one of the leading directions, of which
        nothing is then seen: with an `oversampling` of 0 to 2 that happens (in 1% of
        hard cases), with 5 or more it was not seen to.
      is_ambiguous: bool scalar, whether the scores say nothing of X: k is inside of a
        cluster of singular values that are equal, up to rounding or to the residual
        (then the scores are those of k directions out of more), or rounding decides
        the rank.
    """

    scores: Any
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
    """Returns the squared row norms of U_k, the leading k left singular vectors of X.

    Rows that matter to the best approximation of X of rank k have large scores; what
    is noise below these directions does not count, as it does in `leverage_scores`. The
    scores are found in a few passes over the rows, which are never decomposed: all but
    two of the passes build a block Krylov space of XᵀX from a random start, the next
    one goes over the leading directions in it once more, and the last gives the scores
    and the residual, which tells how good they are.

    Other than for `leverage_scores`, the units of columns matter, as they do to
    singular vectors: centre and scale the columns first where that is what is meant.

    Args:
      key: one PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      matrix: X, (N, p), of any kind that `leverage_scores` takes. `Blocks` of sparse
        matrices of SciPy take time of their entries.
      rank: k, a Python int from 1 to min(N, p).
      num_passes: how often the rows are seen, a Python int of at least 3, and once more
        for the scores. The error falls by a factor with each, the more the faster
        singular values fall beyond k.
      oversampling: how many directions more than k are found; the k-th converges the
        faster, the further σ at k + `oversampling` is below it. By default k + 10.
      rcond: singular values of at most `rcond` times the largest are none; as in
        `leverage_scores`, without the units of columns.

    Returns:
      `RankKScores`. Scores of `Blocks` are a NumPy array. With a NaN or infinity in a
      traced matrix, scores and bound are NaN.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for a rank below 1 or above min(N, p), too
        few passes, a negative oversampling, or an rcond outside [0, 1); for `Blocks`
        that change between passes (as weighted sums tell, in which a change of one row
        of many, or in its last digits, is lost).
      TypeError: for a complex matrix, a sparse one of another kind, or anything but
        numbers; for anything but a key.

    Note:
      In float32, directions below 3e-4 of the largest are lost, or converge slowly. The
      bound tells.

      First derivatives, of arrays in both modes and of BCOO in forward mode, are those
      of the exact scores, from linear systems that take further passes, the more the
      smaller the gap. They are NaN where `is_ambiguous`, and second ones always. Those
      of the other fields are zero.

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
    key = _validation.check_key(key)
    rank = _validation.check_int("rank", rank, minimum=1)
    num_passes = _validation.check_int("num_passes", num_passes, minimum=3)
    if oversampling is None:
        oversampling = rank + 10
    oversampling = _validation.check_int("oversampling", oversampling, minimum=0)
    # One direction beyond the last, so that there is a gap to see.
    sizes = _Sizes(rank, rank + max(oversampling, 1), num_passes)
    checked = matrix_of("matrix", matrix)
    if rank > min(checked.shape):
        raise ValueError(
            f"rank must be at most min(N, p); got rank = {rank} and {checked.shape}"
        )
    checked, rcond = _checks.with_cutoff(checked, rcond)
    return compute(_scores, checked, key, rcond, specs=_specs, sizes=sizes)


class _Sizes(NamedTuple):
    """The numbers that set shapes: k, the directions that are found, and passes."""

    rank: int
    width: int
    num_passes: int


def _specs(by_rows: Any) -> Any:
    everywhere: Any = PartitionSpec()
    return RankKScores(by_rows, *[everywhere] * 5)


def _scores(rows: Rows, key: Array, rcond: Array, sizes: _Sizes) -> RankKScores:
    num_columns = rows.shape[1]
    largest = rows.largest().max()
    finite = jnp.isfinite(largest)
    # One for all columns, to which units matter.
    scale = inverse_power_of_two(jnp.where(finite, largest, 1))
    fixed = constant(rows)

    def run(basis: Array) -> Array:
        passed = fixed.products(basis, scale)
        # Decompositions of NaN may do anything, and differ by backend.
        return jnp.where(jnp.isfinite(passed).all(), passed, 0)

    width = min(sizes.width, num_columns)
    leading = leading_directions(
        run, key, num_columns, width, sizes.num_passes, rows.dtype
    )
    # Constants, so that this has the derivative of XᵀX alone.
    passed = rows.products(leading.vectors[:, : sizes.rank], scale)
    # A maximum need not show a NaN; sums do.
    finite &= jnp.isfinite(passed).all()
    passed = jnp.where(finite, passed, 0)
    known = trust(leading, lax.stop_gradient(passed), sizes.rank, rcond)
    if rows.is_on_host:
        inverse = inverses(leading, sizes.rank, rcond)
        projection = leading.vectors[:, : sizes.rank] * inverse
        scores = np.clip(rows.norms_of(projection, scale), 0, 1)
    else:
        projection = projection_on(fixed, scale, leading, known, passed[:num_columns])
        scores = at_most_one(rows.norms_of(projection, scale))
        scores = jnp.where(finite, scores, jnp.nan)
    return RankKScores(
        scores=scores,
        singular_values=jnp.where(
            finite, leading.values[: sizes.rank] / scale, jnp.nan
        ),
        rank=jnp.where(finite, known.rank, 0),
        gap=jnp.where(finite, known.gap, jnp.nan),
        error_bound=jnp.where(finite, known.error_bound, jnp.nan),
        is_ambiguous=known.is_ambiguous | ~finite,
    )
