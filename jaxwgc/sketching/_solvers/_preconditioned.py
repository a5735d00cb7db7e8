"""Least squares by conjugate gradients with a preconditioner that nearly solves it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._operators import (
    Equilibrated,
    LinearOperator,
    Matrix,
    MatrixLike,
    SparseMatrix,
    any_system,
    column_norms,
    sketched,
)
from jaxwgc.sketching._solvers._implicit import implicit_solution
from jaxwgc.sketching._solvers._orthonormalisers import (
    ColumnScaling,
    from_factors,
    from_gram,
)
from jaxwgc.sketching._solvers._refinement import Refinement
from jaxwgc.sketching._solvers._rounded_input import mind_rounding
from jaxwgc.sketching._solvers._solution import Solution, every_target

METHODS = ("auto", "gram", "sketch", "factor", "columns")

# For ill-conditioned X in float64, on a CPU, two Gram matrices cost as much as a sketch
# and its iterations at 200 columns, whatever the number of rows. For more columns, the
# factorisation of the sketch dominates: at 1,000 columns and 20 rows a column it takes
# three times as long as the Gram matrices; by counting operations (not timed) they are
# even at some 64 rows a column. For well-conditioned X, one Gram matrix is cheaper.
_MAX_GRAM_COLUMNS = 256
_MAX_GRAM_RATIO = 64
_SKETCH_ROWS_PER_COLUMN = 8
# A sparse matrix has few entries a column, and the sketch of more columns than this
# takes longer than thousands of iterations, and gigabytes.
_MAX_SKETCHED_COLUMNS = 2048
_MAX_ITERATIONS, _MAX_SLOW_ITERATIONS = 49, 999


def preconditioned(
    key: jax.Array,
    matrix: MatrixLike,
    target: jax.typing.ArrayLike,
    sketch_size: int | None = None,
    embedding: EmbeddingLike = sparse_sign,
    *,
    method: str = "auto",
    ridge: jax.typing.ArrayLike = 0.0,
    tolerance: jax.typing.ArrayLike | None = None,
    max_iterations: int | None = None,
    rcond: jax.typing.ArrayLike | None = None,
) -> Solution:
    """Solves least squares to full accuracy, by preconditioned conjugate gradients.

    Minimises ‖Xθ - y‖² + ridge ‖θ‖². A matrix P is found for which XP has nearly
    orthonormal columns; with it, conjugate gradients need few iterations, whatever the
    condition number of X, and each reads X once. How P is found is the method, chosen
    by size with `"auto"`:

    - `"gram"`, for N >= 4p, with p <= 256 or N <= 64p: from the Gram matrix XᵀX, and,
      where the condition number is beyond a million (in float64; about 30 in float32),
      from one more Gram matrix of X times the inverse square root of the first,
      shifted. No randomness. The iterations are then refinements of a direct solution,
      and two to five are enough. Iterations are bound by memory, and products by
      arithmetic: at these shapes the products are as cheap as what they save. Where X
      is known to be well-conditioned, it is the fastest method at any width.
    - `"sketch"`, for p > 256 with N > 64p and N > 2 sketch_size: from the singular
      value decomposition of the sketch SX, as in Blendenpik and LSRN. With m rows the
      error falls by about √(p / m) in every iteration.
    - `"factor"`, for N < 4p, so for wide and nearly square matrices: from the singular
      value decomposition of X.

    Sparse matrices and operators are never filled up: nothing is made of size N × p.
    For them there are two methods:

    - `"sketch"`, for a sparse matrix with p <= 2048 and N > 2 sketch_size, in time of
      its entries; and for an operator that has a `sketch`.
    - `"columns"`, for all others: plain conjugate gradients in columns that were scaled
      to norms next to 1 (those of an operator by one number for all). The number of
      iterations grows with the condition number, as in LSQR.

    Iterations start anew from the residual itself after half of its digits, at least
    once. That makes the result as backward stable as that of a QR factorisation, at any
    condition number and size of the residual.

    Args:
      key: a PRNG key, for `"sketch"`.
      matrix: X, real, of shape (N, p), of any rank and with columns in any units: an
        array, a sparse matrix (a BCOO or one of SciPy), or a `LinearOperator`.
      target: y, of shape (N,), or (N, c) for c systems with the same P.
      sketch_size: m, at least min(N, p); 8p by default.
      embedding: how S is drawn: a constructor, such as `gaussian`, `rademacher`,
        `srht`, `count_sketch`, `sparse_sign` or `row_sampling` (uniform), which is
        called with key, m and N; or an `Embedding` of the shape (m, N), whose own key
        is used. Of a sparse matrix the last three only, which are sparse themselves.
      method: `"auto"`, `"gram"`, `"sketch"`, `"factor"` or `"columns"`, see above;
        `"gram"` of a wide matrix is `"factor"`. `"columns"` is for sparse matrices and
        operators only, `"gram"` and `"factor"` are for arrays.
      ridge: a non-negative number, may be traced.
      tolerance: of the backward error: iterations end when the solution is the exact
        one of a system whose matrix differs from X, with columns scaled to norms next
        to 1, by no more than this share of the Frobenius norm. By default 4 times the
        rounding unit of the dtype. At least two iterations are made in any case.
      max_iterations: the largest number of iterations; by default 49, and 999 for
        `"columns"`.
      rcond: singular values below `rcond` times the largest, after the columns have
        been scaled to norms next to 1, count as zero. By default 4 + √min(N, p) times
        the rounding unit of the dtype.

    Returns:
      `Solution`, with norms of the residual: of y - Xθ, and with a ridge the root of
      what is minimised. Where X is rank-deficient, the θ of the least norm.
      `converged` says that the backward error has passed `tolerance`, that the sketch
      saw every direction of X, that no heavy rows hide others, and that the residual is
      longer than the least by about 1e-4 of the norm of y in float32 and 1e-8 in
      float64 at most, also if what rounding of Xθ may hide is counted: so it is False
      where θ is huge. (Sketches of about p rows distort lengths so much that it may be
      some thirty times that.)
      Directions with singular values up to a few times `rcond` are no part of that,
      since rounding of X makes such: the least residual is then that of X without
      them. It is False if θ overflows or underflows in its dtype, or if X is so small
      or large (in float32 below 1e-31 or above 1e35) that products lose digits. A NaN
      in a traced matrix or target gives NaN and False.

      With `"columns"` no rank is found and `rank` is None: `converged` says that the
      backward error has passed `tolerance`, and that no step along the gradient makes
      the residual shorter by more than was said. θ has the least norm in the units of
      the scaled columns, which are powers of two: if X is rank-deficient, another θ is
      found for 10 X. Heavy rows of an operator are not looked at.

    Raises:
      ValueError: for an operator whose two functions return other shapes or dtypes, or
        (where not traced; NaN and False otherwise) are not adjoint, as four pairs of
        random vectors tell where they differ by more than about 1e-3 of their norm in
        float32 and 1e-7 in float64; for a method that is not for a matrix of this kind;
        for a sketch smaller than min(N, p), shapes that do not match, entries
        that are not finite (where not traced), an unknown method, an embedding of the
        wrong shape, a negative ridge or tolerance, or an rcond outside [0, 1).
      TypeError: for complex arrays or anything but numbers, or an embedding that is
        neither a constructor nor an `Embedding`, such as a name.

    Note:
      Derivatives of `solution`, in both modes and of any order, are those of the exact
      solution, with respect to matrix (entries of a sparse one, arrays that an operator
      holds), target and ridge; they cost another solution
      with the same P, and four to seven with `"columns"`. Where X has a null space,
      they are those along matrices of the same rank, and second ones are NaN; along
      others there is none, nor where it is open which singular values count as zero,
      as `rank.is_ambiguous` says (of a sketch, as it has distorted them). The history
      is constant.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> target = matrix @ jnp.array([1.0, -2.0])
      >>> result = sketching.preconditioned(jax.random.key(1), matrix, target)
      >>> print(result.solution.round(3), result.converged)
      [ 1. -2.] True

    References:
      Avron, Maymounkov and Toledo, "Blendenpik: supercharging LAPACK's least-squares
      solver", SIAM J. Sci. Comput. 32 (2010). Meng, Saunders and Mahoney, "LSRN: a
      parallel iterative solver for strongly over- or underdetermined systems", SIAM J.
      Sci. Comput. 36 (2014). Fukaya et al., "Shifted Cholesky QR for computing the QR
      factorization of ill-conditioned matrices", SIAM J. Sci. Comput. 42 (2020), for
      the second Gram matrix. Epperly, Meier and Nakatsukasa, "Fast randomized
      least-squares solvers can be just as accurate and stable as classical direct
      solvers", 2024, for starting anew, and for the estimate of the backward error,
      which is that of Karlson and Waldén.
    """
    given = matrix, target
    _validation.check_key(key)
    linear_map, target = any_system(key, matrix, target)
    is_array = isinstance(linear_map, jax.Array)
    num_rows, num_columns = linear_map.shape
    _validation.check_choice("method", method, METHODS)
    eps = float(jnp.finfo(linear_map.dtype).eps)
    tolerance = _checks.stopping_tolerance(tolerance, 4 * eps, linear_map.dtype)
    target, rcond = _checks.with_cutoff(
        target, rcond, _checks.solver_cutoff, linear_map.shape
    )
    regulariser = _checks.regulariser(ridge, linear_map.dtype)
    if sketch_size is None:
        sketch_size = _SKETCH_ROWS_PER_COLUMN * num_columns
    sketch_size = _checks.sketch_size(sketch_size, linear_map.shape)
    if not is_array:
        method = _method_without_rows(method, linear_map, sketch_size)
    elif method == "columns":
        raise ValueError(
            "method must not be 'columns' for an array, which has better ones; got it"
        )
    elif method == "auto":
        is_long = num_rows > max(_MAX_GRAM_RATIO * num_columns, 2 * sketch_size)
        if num_rows < 4 * num_columns:
            method = "factor"
        else:
            is_sketched = is_long and num_columns > _MAX_GRAM_COLUMNS
            method = "sketch" if is_sketched else "gram"
    elif method == "gram" and num_rows < num_columns:
        method = "factor"
    if max_iterations is None:
        max_iterations = (
            _MAX_SLOW_ITERATIONS if method == "columns" else _MAX_ITERATIONS
        )
    max_iterations = _validation.check_int("max_iterations", max_iterations, minimum=0)
    embedding = embed(embedding, key, sketch_size, num_rows)
    solution = _solve(
        linear_map,
        target,
        embedding if method == "sketch" else None,
        regulariser,
        tolerance,
        rcond,
        method,
        max_iterations,
    )
    return mind_rounding(solution, *given, ridge)


def _method_without_rows(
    method: str, matrix: SparseMatrix | LinearOperator, sketch_size: int
) -> str:
    """Returns the method for a matrix that is never there as an array."""
    if method in ("gram", "factor"):
        raise ValueError(
            "method must be 'sketch' or 'columns' for a sparse matrix or an operator, "
            f"which others would fill up; got {method!r}"
        )
    is_operator = isinstance(matrix, LinearOperator)
    has_sketch = not is_operator or matrix.sketch is not None
    if method == "sketch" and not has_sketch:
        raise ValueError(
            "method must be 'columns' for an operator without a sketch; got 'sketch'"
        )
    if method == "auto":
        num_rows, num_columns = matrix.shape
        is_small = num_columns <= _MAX_SKETCHED_COLUMNS and num_rows > 2 * sketch_size
        is_sketched = is_small or is_operator
        method = "sketch" if has_sketch and is_sketched else "columns"
    return method


@functools.partial(jax.jit, static_argnames=("method", "max_iterations"))
def _solve(
    matrix: Matrix,
    target: jax.Array,
    embedding: Embedding | None,
    ridge: jax.Array | None,
    tolerance: jax.Array,
    rcond: jax.Array,
    method: str,
    max_iterations: int,
) -> Solution:
    # The derivative is that of the solution, not of the way to it.
    constant, weight = lax.stop_gradient((matrix, ridge))
    root = 0 if weight is None else jnp.sqrt(weight)
    is_complete = jnp.bool_(True)
    if method == "columns":
        factors = ColumnScaling(*column_norms(constant, root))
    else:
        if method == "gram":
            assert isinstance(constant, jax.Array)
            factors = from_gram(constant, weight, rcond)
        else:
            small: Any = constant
            if embedding is not None:
                small = sketched(constant, embedding)
            factors = from_factors(small, weight, rcond)
        factors, are_hidden = factors.beside(constant, rcond)
        is_complete = ~are_hidden
        if embedding is not None:
            probe_key = jax.random.fold_in(embedding.key, 1)
            is_complete &= factors.is_complete(constant, probe_key, rcond)
    scale = factors.scale
    scaled = Equilibrated(constant, scale, root)

    def solve(target: jax.Array, _: jax.Array) -> Solution:
        padded = jnp.pad(lax.stop_gradient(target), (0, scale.size))
        problem = Refinement(scaled, factors, tolerance, padded)
        state = problem.solve(max_iterations)
        solution = jnp.where(
            jnp.isfinite(state.squared), scale * state.solution, jnp.nan
        )
        converged = problem.is_solved(state) & problem.is_lowest(state) & is_complete
        solution = implicit_solution(solution, matrix, target, ridge, factors)
        history = state.history
        return Solution(solution, state.iteration, converged, history, factors.rank)

    return every_target(solve, target, scale)
