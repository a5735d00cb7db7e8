"""Leverage scores of a matrix that is only ever there in blocks of rows."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._arrays import product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._gram import WELL_CONDITIONED, Gram
from jaxwgc.sketching._row_blocks import DenseRows
from jaxwgc.sketching._scores._chunks import RepeatedChunks
from jaxwgc.sketching._scores._gram_scores import squared_row_norms
from jaxwgc.sketching._scores._unequal_rows import count_seeing

# The exponent of a column that is zero so far.
_NO_EXPONENT = -(2**14)


def streaming_leverage_scores(
    blocks: Callable[[], Iterable[jax.typing.ArrayLike]],
    rcond: jax.typing.ArrayLike | None = None,
) -> np.ndarray:
    """Returns scores of a matrix that does not fit in memory, in two passes.

    The first pass finds a square R with XᵀX = RᵀR, the second the row norms of X R⁻¹.

    Two passes are enough for the accuracy of `leverage_scores`: rows are gathered in
    chunks, and where the Gram matrix of a chunk is well-conditioned it is as good as
    its QR factor and is added to a sum in float64; otherwise the chunk, which is still
    in memory, gets the second look that `leverage_scores` gives a matrix, and its R is
    folded into the others by a QR factorisation in float64.

    Args:
      blocks: a function without arguments that returns the blocks anew each time: an
        iterable of real arrays (b, p), b may vary and may be 0. All are computed in the
        dtype of the first. Sparse blocks, of SciPy or BCOO, are converted to dense
        ones.
      rcond: as in `leverage_scores`; not traced.

    Returns:
      A NumPy array (N,), each in [0, 1], in the dtype of the computation.

    Raises:
      ValueError: where there are no rows, blocks differ in their columns, the second
        pass has other rows than the first, one has NaN or infinite entries, or (without
        an rcond) some rows are so large that others are rounding beside them, which
        `leverage_scores` can tell apart and two passes cannot; for an rcond outside
        [0, 1).
      TypeError: where blocks is not a function that gives an iterable of arrays.

    Note:
      This runs on the host, and not under `jax.jit`. Beside the scores it takes the
      memory of one block, of a chunk (32 MiB, or 16p rows where that is more) and of a
      few p×p matrices.

    Example:
      >>> import numpy as np
      >>> from jaxwgc import sketching
      >>> def blocks():
      ...     for seed in range(3):
      ...         yield np.random.default_rng(seed).standard_normal((1000, 4))
      >>> scores = sketching.streaming_leverage_scores(blocks)
      >>> print(scores.shape, scores.sum().round(3))
      (3000,) 4.0

    References:
      As `leverage_scores`; Demmel, Grigori, Hoemmen and Langou, "Communication-optimal
      parallel and sequential QR and LU factorizations", SIAM J. Sci. Comput. 34 (2012),
      for the folding of factors.
    """
    if not callable(blocks):
        raise TypeError(
            "blocks must be a function that returns an iterable of arrays, since it is "
            f"passed over twice; got {type(blocks).__name__}"
        )
    factor, chunk = None, np.empty((0, 0))
    rows = RepeatedChunks(blocks)
    for start, chunk, size in rows:
        if factor is None:
            factor = Factor(chunk.shape[1])
        factor.add(chunk, start, size)
    assert factor is not None
    shape = rows.num_rows, factor.num_columns
    _, cutoff = _checks.with_cutoff(jnp.asarray(chunk[:0]), rcond, shape=shape)
    scales, lower, beyond = (
        array.astype(chunk.dtype) for array in factor.orthonormaliser(float(cutoff))
    )
    may_be_lost = rcond is None and beyond.any()
    scores = np.empty(rows.num_rows, chunk.dtype)
    for start, chunk, size in rows:
        if may_be_lost and _num_seeing(chunk, scales, beyond):
            raise ValueError(
                "blocks must not have rows that outweigh others beyond the "
                f"precision; got others that are rounding of them in {chunk.dtype}"
            )
        norms = np.asarray(_chunk_scores(chunk, scales, lower))
        scores[start : start + size] = norms[:size]
    return scores


class Factor:
    """R with XᵀX = RᵀR for the rows so far, on the host in float64.

    All columns are divided by powers of two, `exponents`, so that nothing overflows and
    small columns do not vanish.
    """

    def __init__(self, num_columns: int):
        self.num_columns = num_columns
        self.exponents = np.full(num_columns, _NO_EXPONENT)
        self.triangular = np.zeros((num_columns, num_columns))

    def add(self, chunk: np.ndarray, start: int, size: int) -> None:
        """Takes in the rows of a chunk."""
        parts = _chunk_gram(chunk)
        scale, unit, gram, finite = map(np.asarray, parts)
        if not finite:
            wrong = start + int(np.argmax(~np.isfinite(chunk[:size]).all(axis=1)))
            raise ValueError(
                f"blocks must be finite; got NaN or infinity in row {wrong}"
            )
        gram = gram.astype(np.float64)
        exponents = 2 - np.frexp(scale)[1] - np.frexp(unit)[1]
        is_zero = np.diagonal(gram) == 0
        exponents = np.where(is_zero, _NO_EXPONENT, exponents)
        # As long as a column is zero its unit is not known, and needs not be.
        total = np.maximum(self.exponents, exponents)
        old = np.maximum(self.exponents - total, _NO_EXPONENT)
        new = np.maximum(exponents - total, _NO_EXPONENT)
        self.exponents = total
        factor = _cholesky(gram, is_zero)
        if factor is None:
            factor = np.asarray(_chunk_factor(chunk, *parts), np.float64)
        factors = [np.ldexp(self.triangular, old), np.ldexp(factor, new)]
        self.triangular = np.asarray(np.linalg.qr(np.concatenate(factors), mode="r"))

    def orthonormaliser(self, rcond: float) -> tuple[np.ndarray, ...]:
        """Returns two powers of two a column, L, and the directions that are cut off.

        X diag(both) L is orthonormal.
        """
        # A column that is zero throughout has nothing but rounding in its factor, and
        # no unit to measure that by.
        triangular = np.where(self.exponents > _NO_EXPONENT, self.triangular, 0)
        norms = np.linalg.norm(triangular, axis=0)
        more = np.where(norms > 0, np.round(np.log2(np.where(norms > 0, norms, 1))), 0)
        more = more.astype(int)
        _, singular_values, right = np.linalg.svd(np.ldexp(triangular, -more))
        kept = singular_values > rcond * singular_values[0]
        inverse = right.T * np.where(kept, 1 / np.where(kept, singular_values, 1), 0)
        lower = np.asarray(np.linalg.qr(inverse.T, mode="r")).T
        exponents = np.where(norms > 0, self.exponents + more, 0)
        # In two, since powers near the ends of the range are subnormal.
        half = exponents // 2
        scales = np.ldexp(1.0, -np.stack([half, exponents - half]))
        return scales, lower, np.where(kept, 0, right.T)


def _cholesky(gram: np.ndarray, is_zero: np.ndarray) -> np.ndarray | None:
    """Returns R with RᵀR the Gram matrix, or None where that is ill-conditioned.

    Above an eigenvalue of 1e-4 times the largest, R is exact in every direction to 1e4
    roundings. Columns that are zero throughout lose nothing and do not count.
    """
    largest = max(np.abs(gram).sum(axis=0).max(), 1.0)
    shifted = gram + np.diag(is_zero - WELL_CONDITIONED * largest)
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return None
    return np.linalg.cholesky(gram + np.diag(is_zero)).T * ~is_zero


@jax.jit
def _chunk_gram(chunk: jax.Array) -> tuple[jax.Array, ...]:
    return Gram.equilibrated(DenseRows(chunk))[1:]


@jax.jit
def _chunk_factor(chunk: jax.Array, *parts: jax.Array) -> jax.Array:
    gram = Gram(DenseRows(chunk), *parts)
    return gram.refined(*gram.decomposed()).factor()


@jax.jit
def _chunk_scores(chunk: jax.Array, scales: jax.Array, lower: jax.Array) -> jax.Array:
    first, second = scales
    scores = DenseRows(chunk).map(
        lambda rows: squared_row_norms(rows * first, second[:, None] * lower)
    )
    return jnp.clip(scores, 0, 1)


@jax.jit
def _num_seeing(chunk: jax.Array, scales: jax.Array, beyond: jax.Array) -> jax.Array:
    def count(rows: jax.Array) -> jax.Array:
        rows = rows * scales[0] * scales[1]
        return count_seeing(rows, product(rows, beyond))

    return DenseRows(chunk).sum(count)
