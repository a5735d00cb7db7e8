"""Exact leverage scores of the rows of a matrix."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._powers import inverse_power_of_two

METHODS = ("auto", "gram", "qr", "svd")

_HIGHEST = lax.Precision.HIGHEST

# One pass over the Gram matrix loses the square of the condition number. Below this
# ratio of its eigenvalues (a condition number of 100) the loss is at most 1e4 roundings
# and the second pass is skipped.
_WELL_CONDITIONED = 1e-4


def leverage_scores(
    matrix: jax.typing.ArrayLike,
    method: str = "auto",
    rcond: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The leverage score of every row: the diagonal of X X⁺.

    The scores sum to the numerical rank of X and do not change when X is multiplied
    from the right by an invertible matrix. The matrix may be rank-deficient, wide or
    zero.

    The numerical rank counts singular values above `rcond` times the largest, after
    every column has been multiplied by the power of two that brings its norm next to
    1. So the units of the columns do not matter: a column of size 1e-8 counts as much
    as one of size 1e8. The other side of this is that a column of nothing but rounding
    noise (a constant column, centred) counts as a column too; drop it, or make it zero.

    Args:
      matrix: X, real, of shape (N, p), in any units. Integers and bools are computed in
        the default float dtype, float16 and bfloat16 in float32.
      method: how the scores are found; all four agree up to rounding.
        - `"gram"`: from the Gram matrix XᵀX, in two products of the size of X where X
          is well-conditioned (condition number below 100) and in four otherwise: the
          second pass works on X times an inverse square root of a shifted Gram matrix,
          which makes it as good as QR. No array of the size of X is made.
        - `"qr"`: from X = QR and the singular value decomposition of R.
        - `"svd"`: from the singular value decomposition of X: the slowest, the
          reference.
        - `"auto"`: `"gram"` where N >= 4p, else `"qr"`.
      rcond: the cut-off of the numerical rank, a real scalar in [0, 1), may be traced.
        By default 10 √min(N, p) times the rounding unit of the dtype: a few times the
        noise that rounding makes of a zero singular value, in every method and for
        every N. NumPy's `matrix_rank` takes max(N, p) rounding units instead; in
        float32 and with 100,000 rows that would call everything beyond a condition
        number of 84 rank-deficient. Below the default, `"gram"` (and to a lesser degree
        the others) cannot tell a singular value from noise.

    Returns:
      (N,), each in [0, 1]. The error is of the order of the rounding unit times the
      condition number of the kept part of X. With a NaN or infinity in a traced matrix,
      all scores are NaN.

    Raises:
      ValueError: for a matrix without two axes, without rows or columns, or (where not
        traced) with NaN or infinite entries; for an unknown method; for an rcond
        outside [0, 1).
      TypeError: for a complex matrix or anything but numbers.

    Note:
      `"gram"` decides by `jax.lax.cond` whether the second pass is needed. Under
      `jax.vmap` over matrices the condition becomes a selection and both are computed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
      >>> print(sketching.leverage_scores(matrix).round(3))
      [0.5 0.5 1. ]

    References:
      The paper's section 3.1. Drineas, Magdon-Ismail, Mahoney and Woodruff, "Fast
      approximation of matrix coherence and statistical leverage", JMLR 13 (2012),
      section 1.1, for the definition. The second pass follows Fukaya, Kannan,
      Nakatsukasa, Yamamoto and Yanagisawa, "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020), with
      eigenvectors in place of Cholesky factors, so that rank-deficient matrices pass.
    """
    _validation.check_choice("method", method, METHODS)
    value = matrix
    matrix = _checks.float_array("matrix", value)
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have shape (N, p); got {matrix.shape}")
    num_rows, num_columns = matrix.shape
    if num_rows < 1 or num_columns < 1:
        raise ValueError(
            f"matrix must have at least one row and one column; got {matrix.shape}"
        )
    if not _validation.is_traced(value):
        # On the device, where the matrix is; also inside a traced function.
        with jax.ensure_compile_time_eval():
            num_wrong = int(_count_non_finite(jnp.asarray(value, matrix.dtype)))
        if num_wrong:
            raise ValueError(
                f"matrix must be finite; got {num_wrong} NaN or infinite entries"
            )
    smaller = min(num_rows, num_columns)
    if rcond is None:
        rcond = 10 * smaller**0.5 * float(jnp.finfo(matrix.dtype).eps)
    else:
        _validation.check_number("rcond", rcond, minimum=0)
        if not _validation.is_traced(rcond) and not np.asarray(rcond) < 1:
            raise ValueError(f"rcond must be less than 1; got {rcond}")
    if method == "auto":
        method = "gram" if num_rows >= 4 * num_columns else "qr"
    return _scores(matrix, jnp.asarray(rcond, matrix.dtype), method)


@jax.jit
def _count_non_finite(matrix: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(matrix))


@functools.partial(jax.jit, static_argnames="method")
def _scores(matrix: jax.Array, rcond: jax.Array, method: str) -> jax.Array:
    largest = jnp.abs(matrix).max(axis=0)
    finite = jnp.isfinite(largest).all()
    # Against overflow of squares; exact, since a power of two.
    scale = jnp.where(finite, inverse_power_of_two(largest), 0)
    num_rows, num_columns = matrix.shape
    if method == "gram" and num_rows >= num_columns:
        gram = _sum_over_blocks(matrix, lambda rows: _gram(rows * scale))
        unit = inverse_power_of_two(jnp.sqrt(jnp.diagonal(gram)))
        gram = gram * unit * unit[:, None]
        scores = _from_gram(matrix, scale, unit, gram, rcond)
    else:
        matrix = jnp.where(finite, matrix, 0) * scale
        matrix = matrix * inverse_power_of_two(jnp.linalg.norm(matrix, axis=0))
        scores = _from_factors(matrix, rcond, method)
    return jnp.where(finite, jnp.clip(scores, 0, 1), jnp.nan)


def _from_factors(matrix: jax.Array, rcond: jax.Array, method: str) -> jax.Array:
    """Scores of a matrix with equilibrated columns, by orthogonal factorisations."""
    num_rows, num_columns = matrix.shape
    if num_rows < num_columns and method != "svd":
        # X = RᵀQᵀ with orthonormal rows in Qᵀ: the columns of X span those of Rᵀ,
        # which is square.
        matrix = jnp.linalg.qr(matrix.T, mode="r").T
        if method == "gram":
            # Not equilibrated again: the last columns of Rᵀ may be nothing but noise.
            ones = jnp.ones(num_rows, matrix.dtype)
            return _from_gram(matrix, ones, ones, _gram(matrix), rcond)
        basis = None
    elif method == "qr":
        basis, matrix = jnp.linalg.qr(matrix)
    else:
        basis = None
    left, singular_values, _ = jnp.linalg.svd(matrix, full_matrices=False)
    left = jnp.where(singular_values > rcond * singular_values[0], left, 0)
    if basis is not None:
        left = jnp.matmul(basis, left, precision=_HIGHEST)
    return jnp.sum(left**2, axis=1)


def _from_gram(
    matrix: jax.Array,
    scale: jax.Array,
    unit: jax.Array,
    gram: jax.Array,
    rcond: jax.Array,
) -> jax.Array:
    """Scores of the tall X = `matrix` diag(`scale` * `unit`), with XᵀX = `gram`.

    The two powers of two are kept apart, since their product may be subnormal.
    """
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    largest = eigenvalues[-1]
    is_plain = eigenvalues[0] > jnp.maximum(_WELL_CONDITIONED, rcond**2) * largest

    def plain(_: None) -> jax.Array:
        return vectors / jnp.sqrt(eigenvalues)

    def refined(_: None) -> jax.Array:
        return _refine(matrix, scale, unit, eigenvalues, vectors, rcond)

    # The columns of X times `inverse` are orthonormal and span those of X.
    inverse = lax.cond(is_plain, plain, refined, None) * unit[:, None]
    # A rotation from the right keeps the norms of rows, and makes it triangular.
    lower = jnp.linalg.qr(inverse.T, mode="r").T
    half = _half(lower.shape[0])

    def squared_norms(rows: jax.Array) -> jax.Array:
        rows = rows * scale
        # Without the quarter of the triangular matrix that is zero.
        left = jnp.matmul(rows, lower[:, :half], precision=_HIGHEST)
        right = jnp.matmul(rows[:, half:], lower[half:, half:], precision=_HIGHEST)
        return jnp.sum(left**2, axis=1) + jnp.sum(right**2, axis=1)

    return _map_over_blocks(matrix, squared_norms)


def _refine(
    matrix: jax.Array,
    scale: jax.Array,
    unit: jax.Array,
    eigenvalues: jax.Array,
    vectors: jax.Array,
    rcond: jax.Array,
) -> jax.Array:
    """A matrix P such that X P is an orthonormal basis of the columns of X.

    The eigenvalues of XᵀX are known to eps times the largest only, so that singular
    values below √eps are lost. Y = X V (Λ + shift)^(-1/2) has the columns' span of X,
    its singular values are at least those of X over √eps, and its Gram matrix shows
    them down to eps times the largest singular value of X.
    """
    eps = jnp.finfo(matrix.dtype).eps
    # Just enough to keep rounding noise from being divided by zero: a larger shift
    # would cost resolution.
    shift = 4 * eps * eigenvalues[-1]
    # For a zero matrix; any positive number will do.
    shift = jnp.where(shift > 0, shift, 1)
    root = jnp.sqrt(jnp.maximum(eigenvalues, 0) + shift)
    whitening = vectors / root
    scaled_whitening = whitening * unit[:, None]
    gram = _sum_over_blocks(
        matrix,
        lambda rows: _gram(
            jnp.matmul(rows * scale, scaled_whitening, precision=_HIGHEST)
        ),
    )
    inner_eigenvalues, inner_vectors = jnp.linalg.eigh(gram)
    inner_root = jnp.sqrt(
        jnp.maximum(inner_eigenvalues, jnp.maximum(eps * inner_eigenvalues[-1], eps**2))
    )
    # X Vᵀ = U K with U = Y W M^(-1/2) orthonormal: the singular values of the small
    # matrix K = M^(1/2) Wᵀ (Λ + shift)^(1/2) are those of X, as with R in X = QR.
    small = inner_root[:, None] * inner_vectors.T * root
    left, singular_values, _ = jnp.linalg.svd(small)
    left = jnp.where(singular_values > rcond * singular_values[0], left, 0)
    inner = jnp.matmul(inner_vectors, left / inner_root[:, None], precision=_HIGHEST)
    return jnp.matmul(whitening, inner, precision=_HIGHEST)


def _gram(rows: jax.Array) -> jax.Array:
    """The Gram matrix of the columns, without the quarter that symmetry gives."""
    half = _half(rows.shape[1])
    upper = jnp.matmul(rows[:, :half].T, rows, precision=_HIGHEST)
    corner = jnp.matmul(rows[:, half:].T, rows[:, half:], precision=_HIGHEST)
    lower = jnp.concatenate([upper[:, half:].T, corner], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


def _half(num_columns: int) -> int:
    """Where to split columns; none in the left part where products are small anyway."""
    return num_columns // 2 if num_columns >= 64 else 0


def _block_size(matrix: jax.Array) -> int:
    # About 4 MiB in float64: a block and its product stay in a cache, and sums over
    # rows are taken in two levels, which keeps their rounding small.
    num_rows, num_columns = matrix.shape
    return min(num_rows, max(256, min(8192, 2**19 // num_columns)))


def _sum_over_blocks(
    matrix: jax.Array, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """The sum of `function` over blocks of rows."""
    size = _block_size(matrix)
    num_blocks = matrix.shape[0] // size
    total = function(matrix[num_blocks * size :])

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + function(lax.dynamic_slice_in_dim(matrix, i * size, size))

    return lax.fori_loop(0, num_blocks, add, total)


def _map_over_blocks(
    matrix: jax.Array, function: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`function`, which gives one number a row, of all rows, block by block."""
    size = _block_size(matrix)
    num_rows = matrix.shape[0]
    num_blocks = -(-num_rows // size)

    def fill(i: jax.Array, values: jax.Array) -> jax.Array:
        # The last block starts early enough to be whole, and repeats some rows.
        start = jnp.minimum(i * size, num_rows - size)
        block = function(lax.dynamic_slice_in_dim(matrix, start, size))
        return lax.dynamic_update_slice_in_dim(values, block, start, 0)

    return lax.fori_loop(0, num_blocks, fill, jnp.zeros(num_rows, matrix.dtype))
