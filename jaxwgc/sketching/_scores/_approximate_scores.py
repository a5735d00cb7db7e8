"""Approximate leverage scores: sketch, factorise, project."""

import functools
import math

import jax
import jax.numpy as jnp
import scipy
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxwgc import _validation
from jaxwgc._arrays import cholesky_if, product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._gram import WELL_CONDITIONED, Gram, column_scale
from jaxwgc.sketching._row_blocks import DenseRows, block_size
from jaxwgc.sketching._scores._leverage_scores import leverage_scores

# Rows of the sketch that every row of X is added to. With 4, rows of leverage 1 that
# meet in one of them do no harm; with 1 or 2 they do.
_NUM_NONZEROS = 4

# The probability of a row to miss epsilon by the Gaussian matrix. It is half of what is
# asked for, so that 99% of rows are near in nearly every draw if they are of many
# directions.
_MISSES = 0.005

# The same by the sketch alone, where there are few columns. All rows then miss together
# if one does, and a larger sketch costs next to nothing.
_SKETCH_MISSES = 1e-4


def approximate_leverage_scores(
    key: jax.Array,
    matrix: jax.typing.ArrayLike,
    epsilon: float = 0.5,
    rcond: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Returns leverage scores, each within 1 ± epsilon with a probability of 99%.

    X is multiplied from the left by a sparse random matrix of signs with a few times p
    rows; the R factor of this sketch, in place of that of X, gives the scores as row
    norms of X R⁻¹. Where p is large, R⁻¹ is first multiplied by a Gaussian matrix with
    few columns, which keeps these norms approximately.

    The accuracy sets both sizes. The square of a row norm is distributed as χ² with k
    degrees of freedom over k under k Gaussian columns, and nearly as the inverse of
    that for a sketch of k + p rows. Both bring a bias as well; that the scores sum to
    the rank takes it away.

    The default accuracy, within a factor of 2, is what sampling by leverage scores
    needs, and is where this pays off most: two products of the size of X with p×p
    matrices become one with a p×64 matrix.

    Args:
      key: one PRNG key, from `jax.random.key` or `jax.random.PRNGKey`.
      matrix: X, real, of shape (N, p), in any units. Integers and bools are computed in
        the default float dtype, float16 and bfloat16 in float32.
      epsilon: a Python number in (0, 1), since it sets sizes. For small ones (below
        about 4 / √p) there is no Gaussian matrix and one product with a p×p matrix;
        where the sketch would have N/2 rows or more, the scores are exact.
      rcond: as in `leverage_scores`, applied to the sketch. Rows that are rounding
        beside others, of which it is a sum, are lost.

    Returns:
      (N,), each in [0, 1]. Each that is not 0 is within 1 ± epsilon of the exact one
      with a probability of 99%. Rows of many directions miss independently, so that
      about 99% of them are within it; rows of one direction miss together. Beside this
      there are the rounding errors of `leverage_scores`, and singular values near the
      cut-off of the rank, which the sketch may see on the other side of it.
      With a NaN or infinity in a traced matrix, all are NaN.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for an epsilon or rcond out of range.
      TypeError: for a complex or sparse matrix or anything but numbers, anything but a
        key, or an epsilon that is traced.

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
    key = _validation.check_key(key)
    _validation.check_share("epsilon", epsilon)
    matrix = _checks.finite_matrix("matrix", matrix)
    num_rows, num_columns = matrix.shape
    sketch_size, num_projections = _sizes(num_columns, float(epsilon))
    if 2 * sketch_size >= num_rows:
        return leverage_scores(matrix, rcond=rcond)
    matrix, rcond = _checks.with_cutoff(matrix, rcond)
    return _approximate_scores(key, matrix, rcond, sketch_size, num_projections)


def _sizes(num_columns: int, epsilon: float) -> tuple[int, int | None]:
    """Returns rows of the sketch and columns of the projection, None for none."""
    needed = _degrees_of_freedom(epsilon)
    # Below 3p the sketch is not always a subspace embedding.
    extra = max(3 * num_columns, 4 * needed)
    num_projections = math.ceil(1 / (1 / needed - 1 / extra))
    if num_projections < num_columns:
        return num_columns + extra, num_projections
    needed = _degrees_of_freedom(epsilon, of_inverse=True)
    return num_columns + max(3 * num_columns, needed), None


@functools.cache
def _degrees_of_freedom(epsilon: float, of_inverse: bool = False) -> int:
    """Returns k, to 3%, for which χ²_k / k is within 1 ± epsilon but in few cases.

    Or its inverse, but for still fewer.
    """
    low, high, misses = 1 - epsilon, 1 + epsilon, _MISSES
    if of_inverse:
        low, high, misses = 1 / high, 1 / low, _SKETCH_MISSES
    k = 1
    while scipy.special.chdtr(k, k * low) + scipy.special.chdtrc(k, k * high) > misses:
        k += 1 + k // 32
    return k


@functools.partial(jax.jit, static_argnames=("sketch_size", "num_projections"))
def _approximate_scores(
    key: jax.Array,
    matrix: jax.Array,
    rcond: jax.Array,
    sketch_size: int,
    num_projections: int | None,
) -> jax.Array:
    num_columns = matrix.shape[1]
    sketch_key, projection_key = jax.random.split(key)
    rows = DenseRows(matrix)
    finite, scale = column_scale(rows)
    sketch = DenseRows(_sparse_sign_sketch(sketch_key, matrix, scale, sketch_size))
    gram = Gram.equilibrated(sketch)
    if num_projections is None:
        projection = jnp.eye(num_columns, dtype=matrix.dtype)
    else:
        shape = (num_columns, num_projections)
        projection = jax.random.normal(projection_key, shape, matrix.dtype)

    # A Cholesky factorisation that succeeds shows that the smallest eigenvalue is
    # above the shift. Eigenvalues would take longer than all the rest.
    largest = jnp.abs(gram.matrix).sum(axis=0).max()
    shift = jnp.maximum(WELL_CONDITIONED, rcond**2) * largest
    diagonal = jnp.arange(num_columns)
    shifted = jnp.linalg.cholesky(gram.matrix.at[diagonal, diagonal].add(-shift))
    is_plain = jnp.isfinite(shifted).all()

    def plain(_: None) -> tuple[jax.Array, jax.Array]:
        lower = cholesky_if(is_plain, gram.matrix)
        return solve_triangular(lower.T, projection), jnp.asarray(num_columns)

    def refined(_: None) -> tuple[jax.Array, jax.Array]:
        inverse = gram.orthonormaliser(rcond)
        rank = jnp.any(inverse != 0, axis=0).sum()
        return product(inverse, projection), rank

    inverse, rank = lax.cond(is_plain, plain, refined, None)
    inverse = inverse * (gram.scale * gram.unit)[:, None]
    norms = rows.map(
        lambda block: jnp.sum(product(block * scale, inverse) ** 2, axis=1)
    )
    total = jnp.sum(norms)
    scores = norms * jnp.where(total > 0, rank / jnp.where(total > 0, total, 1), 0)
    return jnp.where(finite & gram.finite, jnp.clip(scores, 0, 1), jnp.nan)


def _sparse_sign_sketch(
    key: jax.Array, matrix: jax.Array, scale: jax.Array, sketch_size: int
) -> jax.Array:
    """Returns S X diag(`scale`), up to a constant: a sum of count sketches.

    Blocks of rows go to neighbouring rows of the sketch, at a random place: so any two
    rows meet with a probability of at most 1 / `sketch_size`, as with independent
    places, but memory is read and written in order.
    """
    num_rows, num_columns = matrix.shape
    size = min(sketch_size, block_size(num_rows, num_columns))
    num_blocks = -(-num_rows // size)
    place_key, sign_key = jax.random.split(key)
    places = jax.random.randint(
        place_key, (num_blocks, _NUM_NONZEROS), 0, sketch_size, jnp.int32
    )
    bits = jax.random.bits(sign_key, (num_blocks, size), jnp.uint8)

    def add(i: jax.Array, sketch: jax.Array) -> jax.Array:
        # The last block starts early enough to be whole; rows of the one before it
        # are left out.
        start = jnp.minimum(i * size, num_rows - size)
        is_new = start + jnp.arange(size) >= i * size
        block = lax.dynamic_slice_in_dim(matrix, start, size) * scale
        for j in range(_NUM_NONZEROS):
            signs = jnp.where((bits[i] >> j) & 1, 1, -1) * is_new
            place = places[i, j]
            old = lax.dynamic_slice_in_dim(sketch, place, size)
            new = old + block * signs.astype(matrix.dtype)[:, None]
            sketch = lax.dynamic_update_slice_in_dim(sketch, new, place, 0)
        return sketch

    # Rows past the end wrap around to the beginning.
    sketch = jnp.zeros((sketch_size + size, num_columns), matrix.dtype)
    sketch = lax.fori_loop(0, num_blocks, add, sketch)
    return sketch[:sketch_size].at[:size].add(sketch[sketch_size:])
