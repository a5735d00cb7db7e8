"""Approximate leverage scores, from a sketch and a random projection."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import Array
from jax.typing import ArrayLike

from jaxwgc._common import array_validation
from jaxwgc._common.arrays import product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._linalg.factors import factors_of_small, rank_cutoff
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    OperatorLike,
    compiled,
    matrix_of,
)
from jaxwgc.sketching._linalg.linear_operator import (
    LinearOperator,
    Operator,
    checked_operator,
    from_lineax,
)
from jaxwgc.sketching._linalg.matrix import Dense, RowMatrix
from jaxwgc.sketching._linalg.projector import orthonormaliser
from jaxwgc.sketching._scores._exact_scores import leverage_scores

# Number of sketch rows to which each row of X is added. With 1 or 2, scores become
# inaccurate if two rows of leverage 1 share a sketch row. With 4, they do not.
_NUM_NONZEROS = 4

# Probability that the Gaussian projection changes the score of a row by a factor
# outside of 1 ± epsilon. It is half of the 1% that is documented. If rows span many
# directions, 99% of the scores are then within 1 ± epsilon in nearly every draw.
_MISSES = 0.005


def approximate_leverage_scores(
    key: Array,
    matrix: "MatrixLike | OperatorLike",
    epsilon: float = 0.5,
    rcond: ArrayLike | None = None,
) -> Array | np.ndarray:
    """Computes leverage scores to a given relative accuracy, by a sketch.

    Each score is within a factor 1 ± epsilon with a probability of 99%. X is
    multiplied from the left by a sparse random matrix of signs with a few times p
    rows. The R factor of this sketch replaces the R factor of X: the scores are the
    squared row norms of X R⁻¹. If p is large, R⁻¹ is first multiplied by a Gaussian
    matrix with few columns, which keeps these norms approximately.

    The accuracy sets both sizes. Under k Gaussian columns, the square of a row norm is
    distributed as χ² with k degrees of freedom over k. Under a sketch of k + p rows, it
    is nearly the inverse of such a variable. Both are biased. The bias is removed by
    scaling, since the scores sum to the rank.

    The default accuracy, within a factor of 2, is what sampling by leverage scores
    needs. It also saves most: one product with a p×64 matrix replaces two products with
    p×p matrices.

    Args:
      key: One PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      matrix: X, (N, p), of any kind that `leverage_scores` takes, or an operator, a
        `LinearOperator` or one of lineax. An operator takes p products, 16 of which are
        in memory at a time, and then as many as the Gaussian matrix has columns. Its
        `sketch` replaces the first p.
      epsilon: A Python number in (0, 1), since it sets sizes. Below about 4 / √p, no
        Gaussian matrix is used, but one product with a p×p matrix. If the sketch would
        have at least N/2 rows, the scores are exact.
      rcond: Cutoff of the numerical rank, relative to the largest singular value, a
        real scalar in [0, 1), may be traced. It applies to the sketch, with the default
        of `leverage_scores`. Rows that are below the rounding of larger rows are lost,
        since the sketch is a sum of rows.

    Returns:
      (N,), each in [0, 1]. Each nonzero score is within 1 ± epsilon of the exact one
      with a probability of 99%. If rows span many directions, they miss independently,
      and about 99% of them are within the bounds. Rows of one direction miss together.
      Further errors are the rounding errors of `leverage_scores`, and singular values
      near the cutoff of the rank, for which the sketch may decide differently. If a
      traced matrix has a NaN or infinity, all are NaN.

    Raises:
      ValueError: If the matrix does not have two axes, has no rows or columns, or
        (unless traced) has NaN or infinite entries; if an operator is invalid as in
        `preconditioned`; if epsilon or rcond is out of range.
      TypeError: If the matrix is complex or not numeric, the key is no PRNG key, or
        epsilon is traced.

    Example:
      >>> import jax
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (4000, 3))
      >>> exact = sketching.leverage_scores(matrix)
      >>> scores = sketching.approximate_leverage_scores(
      ...     jax.random.key(1), matrix, epsilon=0.3
      ... )
      >>> ratios = scores / exact
      >>> print(bool(ratios.min() > 0.7), bool(ratios.max() < 1.3))
      True True

    References:
      Drineas, Magdon-Ismail, Mahoney and Woodruff, "Fast approximation of matrix
      coherence and statistical leverage", JMLR 13 (2012), algorithm 1. The sketch is
      that of Nelson and Nguyen, "OSNAP: faster numerical linear algebra algorithms via
      sparser subspace embeddings", FOCS 2013.
    """
    key = array_validation.check_key(key)
    array_validation.check_share("epsilon", epsilon)
    converted = from_lineax(matrix)
    is_adjoint = None
    if isinstance(converted, LinearOperator):
        checked, is_adjoint = checked_operator(key, converted)
    else:
        checked = matrix_of(converted)
    num_rows, num_columns = checked.shape
    sketch_size, num_projections = _sizes(num_columns, float(epsilon))
    if 2 * sketch_size < num_rows:
        default_rcond = rank_cutoff(checked.shape, checked.dtype)
        checked, rcond = _arguments.with_cutoff(checked, rcond, default_rcond)
        scores = _scores(
            checked,
            key,
            rcond,
            sketch_size=sketch_size,
            num_projections=num_projections,
        )
    elif isinstance(checked, Operator):
        # X has at most as many rows as two sketches, so that its array fits in memory.
        scores = leverage_scores(checked.to_array(), rcond=rcond)
    else:
        assert not isinstance(converted, LinearOperator)
        scores = leverage_scores(converted, rcond=rcond)
    if is_adjoint is None:
        return scores
    # Under `jax.jit`, no error can be raised if the functions of an operator are not
    # adjoint. All scores become NaN instead.
    return jnp.where(is_adjoint, scores, jnp.nan)


def _sizes(num_columns: int, epsilon: float) -> tuple[int, int | None]:
    """Returns the number of rows of the sketch, and of columns of the projection.

    The second number is None if a projection would save nothing.
    """
    needed = _degrees_of_freedom(epsilon)
    # Number of sketch rows beyond p. At least 3p are needed for a subspace embedding in
    # every draw. If X has few columns, a single bad draw makes all scores wrong. With 4
    # rows per required column of the projection, its probability is below 1e-4.
    extra = max(3 * num_columns, 4 * needed)
    num_projections = math.ceil(1 / (1 / needed - 1 / extra))
    sketch_size = num_columns + extra
    if num_projections >= num_columns:
        return sketch_size, None
    return sketch_size, num_projections


@functools.cache
def _degrees_of_freedom(epsilon: float) -> int:
    """Returns the number of projection columns for a relative accuracy of scores.

    For this number k, χ²_k / k deviates from 1 by more than epsilon with a probability
    of at most `_MISSES`.
    """
    k = 1
    while True:
        below = scipy.special.chdtr(k, k * (1 - epsilon))
        above = scipy.special.chdtrc(k, k * (1 + epsilon))
        if below + above <= _MISSES:
            return k
        k += 1 + k // 32


@compiled("sketch_size", "num_projections")
def _scores(
    matrix: RowMatrix | Operator,
    key: Array,
    rcond: Array,
    *,
    sketch_size: int,
    num_projections: int | None,
) -> Array | np.ndarray:
    num_rows, num_columns = matrix.shape
    keys = jax.random.split(key)
    num_nonzeros = min(_NUM_NONZEROS, sketch_size)
    embedding = sparse_sign(keys[0], sketch_size, num_rows, num_nonzeros)
    [small] = matrix.sketch(embedding)
    factors = factors_of_small(small, rcond)
    inverse = orthonormaliser(Dense(small), factors)
    if num_projections is not None:
        shape = (num_columns, num_projections)
        projection = jax.random.normal(keys[1], shape, matrix.dtype)
        inverse = product(inverse, projection)
    norms = matrix.row_norms(inverse, factors.scale)
    total = norms.sum()
    share = factors.rank.rank / jnp.where(total > 0, total, 1)
    if isinstance(norms, np.ndarray):
        return np.clip(norms * np.asarray(share), 0, 1)
    return jnp.where(factors.finite, jnp.clip(norms * share, 0, 1), jnp.nan)
