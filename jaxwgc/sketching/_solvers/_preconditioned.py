"""Least squares by conjugate gradients with a preconditioner that nearly solves it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_embeddings import sparse_sign
from jaxwgc.sketching._linalg.blocks import BlockRows
from jaxwgc.sketching._linalg.columns import ScaledSystem, column_scaling
from jaxwgc.sketching._linalg.implicit import implicit_solution
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    compute,
    is_dense,
    sketched,
    system_of,
)
from jaxwgc.sketching._linalg.operator import LinearOperator
from jaxwgc.sketching._linalg.orthonormalise import factors_of, factors_of_small, scaled
from jaxwgc.sketching._linalg.rank import solver_cutoff
from jaxwgc.sketching._linalg.refinement import Refinement
from jaxwgc.sketching._linalg.rows import constant
from jaxwgc.sketching._solvers._solution import Solution, in_units

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
    key: Array,
    matrix: "MatrixLike | LinearOperator",
    target: ArrayLike,
    sketch_size: int | None = None,
    embedding: EmbeddingLike = sparse_sign,
    *,
    method: str = "auto",
    ridge: ArrayLike = 0.0,
    tolerance: ArrayLike | None = None,
    max_iterations: int | None = None,
    rcond: ArrayLike | None = None,
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
    - `"factor"`, for N < 4p, so for wide and nearly square matrices: from the QR
      factorisation of X. For `Blocks` with p <= 256 as well, chunk by chunk.

    If rows are spread over devices, the method is `"gram"` or `"sketch"`. `Blocks` are
    read once for P, and once per iteration (by a sketch, three times more).

    Sparse matrices and operators are never densified: nothing is made of size N × p.
    For them there are two methods:

    - `"sketch"`, for a sparse matrix with p <= 2048 and N > 2 sketch_size, in time of
      its entries; and for an operator that has a `sketch`.
    - `"columns"`, for all others: plain conjugate gradients in columns that were scaled
      to norms next to 1 (those of an operator by one number for all). The number of
      iterations grows with the condition number, as in LSQR.

    Every iteration computes the residual itself, anew. That makes the result as
    backward stable as that of a QR factorisation, at any condition number and size of
    the residual.

    Args:
      key: a PRNG key, for `"sketch"`.
      matrix: X, real, of shape (N, p), of any rank and with columns in any units: an
        array, also with rows that are spread over devices as in `leverage_scores`, a
        sparse matrix (a BCOO or one of SciPy), `Blocks`, or a `LinearOperator`.
      target: y, of shape (N,), or (N, c) for c systems with the same P.
      sketch_size: m, at least min(N, p); 8p by default.
      embedding: how S is drawn: a constructor, such as `gaussian`, `rademacher`,
        `srht`, `count_sketch`, `sparse_sign` or `row_sampling` (uniform), which is
        called with key, m and N; or an `Embedding` of the shape (m, N), whose own key
        is used. Of a sparse matrix the last three only, which are sparse themselves; of
        `Blocks` and sharded rows `count_sketch` and `sparse_sign`.
      method: `"auto"`, `"gram"`, `"sketch"`, `"factor"` or `"columns"`, see above;
        `"gram"` of a wide matrix is `"factor"`. `"columns"` is for sparse matrices and
        operators only, `"gram"` for arrays, `"factor"` for arrays on one device and
        `Blocks`.
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
      saw every direction of X, and that the residual is longer than the least by about
      1e-4 of the norm of y in float32 and 1e-8 in float64 at most, also if what
      rounding of Xθ may hide is counted: so it is False where θ is huge. (Sketches of
      about p rows distort lengths so much that it may be some thirty times that.)
      Directions with singular values up to a few times `rcond` are no part of that,
      since rounding of X makes such: the least residual is then that of X without
      them. It is False if θ overflows or underflows in its dtype, or if X is so small
      or large (in float32 below 1e-31 or above 1e35) that products lose digits. A NaN
      in a traced matrix or target gives NaN and False.

      With `"columns"` no rank is found and `rank` is None: `converged` says that the
      backward error has passed `tolerance`, and that no step along the gradient makes
      the residual shorter by more than was said. θ has the least norm in the units of
      the scaled columns, which are powers of two: if X is rank-deficient, another θ is
      found for 10 X.

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
      A warning says so if X was given in float64 and has lost rank in float32, or has
      lost rank to rows of very different norm (of arrays that are not traced).

      Derivatives of `solution`, in both modes and of any order, are those of the exact
      solution, with respect to matrix (entries of a sparse one, arrays that an operator
      holds), target and ridge; they cost another solution
      with the same P, and four to seven with `"columns"`. Where X has a null space,
      they are those along matrices of the same rank, and second ones are NaN; along
      others there is none, nor where it is open which singular values count as zero,
      as `rank.is_ambiguous` says (of a sketch, as it has distorted them). The history
      is constant. `Blocks` have no derivatives.

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
      solvers", 2024, for computing residuals anew, and for the estimate of the backward
      error, which is that of Karlson and Waldén.
    """
    _validation.check_key(key)
    checked, target = system_of(key, matrix, target)
    num_rows, num_columns = checked.shape
    _validation.check_choice("method", method, METHODS)
    eps = float(jnp.finfo(checked.dtype).eps)
    tolerance = _checks.stopping_tolerance(tolerance, 4 * eps, checked.dtype)
    target, rcond = _checks.with_cutoff(target, rcond, solver_cutoff, checked.shape)
    regulariser = _checks.regulariser(ridge, checked.dtype)
    if sketch_size is None:
        sketch_size = _SKETCH_ROWS_PER_COLUMN * num_columns
    sketch_size = _checks.sketch_size(sketch_size, checked.shape)
    method = _method(method, checked, sketch_size)
    if max_iterations is None:
        is_slow = method == "columns"
        max_iterations = _MAX_SLOW_ITERATIONS if is_slow else _MAX_ITERATIONS
    max_iterations = _validation.check_int("max_iterations", max_iterations, minimum=0)
    embedding = embed(embedding, key, sketch_size, num_rows)
    solution = compute(
        _solve,
        checked,
        embedding if method == "sketch" else None,
        regulariser,
        tolerance,
        rcond,
        along=(target,),
        method=method,
        max_iterations=max_iterations,
    )
    if regulariser is None and solution.rank is not None:
        _checks.warn_of_precision(matrix, checked, solution.rank.rank)
    return solution


def _method(method: str, matrix: Any, sketch_size: int) -> str:
    """Returns the method for a matrix of this kind and size."""
    num_rows, num_columns = matrix.shape
    is_long = num_rows > 2 * sketch_size
    if isinstance(matrix, LinearOperator):
        kind, choices = "an operator", ("columns",)
        if matrix.sketch is not None:
            kind, choices = "an operator with a sketch", ("sketch", "columns")
    elif _checks.is_sparse(matrix):
        kind, choices = "a sparse matrix", ("columns", "sketch")
        if num_columns <= _MAX_SKETCHED_COLUMNS and is_long:
            choices = "sketch", "columns"
    elif isinstance(matrix, BlockRows):
        kind, choices = "Blocks", ("sketch", "factor")
        if num_columns <= _MAX_GRAM_COLUMNS or not is_long:
            choices = "factor", "sketch"
    else:
        is_long &= num_rows > _MAX_GRAM_RATIO * num_columns
        kind, choices = "an array", ("gram", "sketch", "factor")
        if is_long and num_columns > _MAX_GRAM_COLUMNS:
            choices = "sketch", "gram", "factor"
        if not is_dense(matrix):
            kind, choices = "sharded rows", choices[:2]
        elif num_rows < num_columns or method == "auto" and num_rows < 4 * num_columns:
            choices = "factor", "sketch", "factor"
            method = "factor" if method == "gram" else method
    if method == "auto":
        return choices[0]
    if method not in choices:
        raise ValueError(
            f"method must be {' or '.join(map(repr, choices))} for {kind}; got "
            f"{method!r}"
        )
    return method


def _solve(
    rows: Any,
    target: Array,
    embedding: Embedding | None,
    ridge: Array | None,
    tolerance: Array,
    rcond: Array,
    method: str,
    max_iterations: int,
) -> Solution:
    # The derivative is that of the solution, not of the way to it.
    fixed, weight, right = constant(rows), *lax.stop_gradient((ridge, target))
    root = None if weight is None else jnp.sqrt(weight)
    # Brought to size 1 by powers of two, against overflow of squares.
    unit = inverse_power_of_two(rows.maximum(jnp.max(jnp.abs(right), axis=0)))
    right = right * unit
    if method == "columns":
        factors = column_scaling(fixed, root)
        system = ScaledSystem(fixed, factors, tolerance, root)
        right = system.padded(right)
        state = system.solve(right, max_iterations)
        converged = state.is_done & system.is_lowest(state, right)
    else:
        converged, at_zero = jnp.bool_(True), None
        if embedding is None and rows.is_on_host:
            # R of [X y] has Xᵀy as well, which saves a pass.
            num_columns = rows.shape[1]
            joined = rows.triangle(jnp.ones(num_columns, rows.dtype), right)
            small, rest = joined[:, :num_columns], joined[:, num_columns:]
            factors = factors_of_small(small, rcond, root=root)
            rest = rest.reshape(len(rest), *right.shape[1:])
            at_zero = product(small.T, rest), jnp.sum(rest**2, axis=0)
        elif embedding is None:
            threshold = 1e4 * jnp.finfo(rows.dtype).eps
            way = "gram" if method == "gram" else "qr"
            factors = factors_of(fixed, root, rcond, way, threshold)
        else:
            (small,) = sketched(fixed, embedding)
            factors = factors_of_small(small, rcond, root=root)
            probe = factors.null_vector(jax.random.fold_in(embedding.key, 1))
            image = fixed.length(factors.scale * probe)
            converged = factors.sees_all(probe, image, rcond)
        problem = Refinement(fixed, factors, tolerance, right, root, at_zero=at_zero)
        state = problem.solve(max_iterations)
        is_lowest = problem.is_lowest(state, embedding is not None)
        converged &= problem.is_solved(state) & is_lowest
    solution = scaled(factors.scale, state.solution)
    solution = jnp.where(jnp.isfinite(state.squared), solution, jnp.nan)
    if not rows.is_on_host:
        solution = implicit_solution(solution, rows, target * unit, ridge, factors)
    result = Solution(solution, state.iteration, converged, state.history, factors.rank)
    return in_units(result, unit, factors.scale)
