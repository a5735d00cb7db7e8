"""Least squares to full accuracy, by preconditioned conjugate gradients."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._linalg.block_matrix import BlockMatrix
from jaxwgc.sketching._linalg.factors import (
    Factors,
    factors_of,
    factors_of_small,
    solver_cutoff,
)
from jaxwgc.sketching._linalg.kinds import (
    MatrixLike,
    OperatorLike,
    compiled,
    system_of,
    warn_of_precision,
)
from jaxwgc.sketching._linalg.linear_operator import Operator
from jaxwgc.sketching._linalg.matrix import Dense, Matrix, RowMatrix
from jaxwgc.sketching._linalg.refinement import Problem, Refinement
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._linalg.scaled_system import (
    ColumnScaling,
    ScaledSystem,
    column_scaling,
)
from jaxwgc.sketching._linalg.sparse import Sparse
from jaxwgc.sketching._solvers._solution import (
    Solution,
    implicit_solution,
    in_units,
    to_unit_size,
)

METHODS = ("auto", "gram", "sketch", "factor", "columns")

# Arrays are sketched if they have more columns and more rows per column than this. For
# ill-conditioned X in float64 on a CPU, two Gram matrices take as long as a sketch and
# its iterations at 200 columns, for any number of rows. For more columns, the
# factorisation of the sketch dominates. At 1,000 columns and 20 rows per column, it
# takes three times as long as the Gram matrices. By counting operations (not timed),
# the two break even at about 64 rows per column. For well-conditioned X, one Gram
# matrix is faster.
_MAX_GRAM_COLUMNS = 256
_MAX_GRAM_RATIO = 64
SKETCH_ROWS_PER_COLUMN = 8
# Largest number of columns of a sparse matrix to sketch. A sketch of more columns takes
# gigabytes. It also takes longer than thousands of iterations, since columns have few
# entries.
_MAX_SKETCHED_COLUMNS = 2048
# Default of `max_iterations` with factors as the preconditioner.
MAX_ITERATIONS = 49
# Default of `max_iterations` with column scales as the preconditioner.
_MAX_SLOW_ITERATIONS = 999
# Time of a sketch and its iterations, in units of one iteration with column scales.
# Measured as 50 to 100 for few columns.
_SKETCH_ITERATIONS = 64
# Time of the factorisation of a sketch, in units of one iteration with column scales,
# for p³ equal to the number of entries.
_FACTOR_ITERATIONS = 0.2


def preconditioned(
    key: Array,
    matrix: "MatrixLike | OperatorLike",
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

    It minimises ‖Xθ - y‖² + ridge ‖θ‖². The preconditioner is a matrix P for which XP
    has nearly orthonormal columns. With P, conjugate gradients take few iterations at
    any condition number of X, and each iteration reads X once. The method computes P;
    `"auto"` chooses it by size:

    - `"gram"`, for N >= 4p, with p <= 256 or N <= 64p: from the Gram matrix XᵀX. If the
      condition number is above a million (in float64; about 30 in float32), a second
      Gram matrix follows: that of X times the inverse square root of the first,
      shifted. It is deterministic. The iterations refine a direct solution, and two to
      five are enough. Iterations are bound by memory, and products by arithmetic. At
      these shapes, the products take no longer than the iterations they save. If X is
      known to be well-conditioned, it is the fastest method at any width.
    - `"sketch"`, for p > 256 with N > 64p and N > 2 sketch_size: from the singular
      value decomposition of the sketch SX, as in Blendenpik and LSRN. With m rows, each
      iteration lowers the error by about √(p / m).
    - `"factor"`, for N < 4p (wide and nearly square matrices): from the QR
      factorisation of X. Also for `Blocks` with p <= 256, chunk by chunk.

    If rows are sharded over devices, the method is `"gram"` or `"sketch"`. `Blocks` are
    read once for P, and once per iteration (three times more with a sketch).

    Sparse matrices and operators are never densified to size N × p. They have two
    methods:

    - `"sketch"`, for a sparse matrix with p <= 2048 and N > 2 sketch_size, in time
      proportional to its entries; and for an operator that has a `sketch`.
    - `"columns"`, otherwise: plain conjugate gradients, with columns scaled to norms
      near 1 (for an operator, by one common factor). The number of iterations grows
      with the condition number, as in LSQR.

    With a ridge, `"auto"` first tries `"columns"` for a sparse matrix that it would
    sketch, for about half the time of the sketch. It is often several times faster.
    The sketch follows only if the iterations have not converged.

    Every iteration computes the residual from X instead of updating it. So the result
    is as backward stable as that of a QR factorisation, at any condition number and
    size of the residual. If rounding of Xᵀr dominates θ, damped steps follow, which
    make the norm of Xᵀr as small as after QR.

    Args:
      key: A PRNG key, for `"sketch"`.
      matrix: X, real, of shape (N, p), of any rank and with columns in any units. It is
        an array (rows may be sharded as in `leverage_scores`), a sparse matrix (a BCOO
        or one of SciPy), `Blocks`, or a `LinearOperator` or one of lineax.
      target: y, of shape (N,), or (N, c) for c systems, which share P.
      sketch_size: m, at least min(N, p); 8p by default.
      embedding: The distribution of S. Either a constructor, which is called with key,
        m and N: `gaussian`, `rademacher`, `srht`, `count_sketch`, `sparse_sign`,
        `sparse_stack` or `row_sampling` (uniform). Or an `Embedding` of shape (m, N),
        which has its own key. Sparse matrices support the last four constructors only,
        which are sparse themselves; `Blocks` and sharded rows support the first three
        of these.
      method: `"auto"`, `"gram"`, `"sketch"`, `"factor"` or `"columns"`, see above. For
        a wide matrix, `"gram"` means `"factor"`. `"columns"` is for sparse matrices and
        operators only, `"gram"` for arrays, `"factor"` for arrays on one device and
        `Blocks`.
      ridge: A non-negative number, may be traced.
      tolerance: Tolerance of the backward error. Iterations stop when the solution is
        the exact one for a matrix that differs from X by at most this share of the
        Frobenius norm. Columns are scaled to norms near 1 for this comparison. By
        default 4 machine epsilons of the dtype. At least two iterations are made.
      max_iterations: The largest number of iterations; by default 49, and 999 for
        `"columns"`.
      rcond: Singular values below `rcond` times the largest are truncated, after the
        columns have been scaled to norms near 1. By default 4 + √min(N, p) machine
        epsilons of the dtype.

    Returns:
      A `Solution`. Its history holds the norms of the residual y - Xθ; with a ridge,
      the roots of the objective. If X is rank-deficient, θ is the minimum-norm
      solution. If `converged` is False, θ is the iterate of the least backward error,
      except with `"columns"`.

      `converged` says that the backward error is within `tolerance`, that the sketch
      has the rank of X, and that the norm of the residual is close to its minimum. The
      excess is at most about 1e-4 of the norm of y in float32 and 1e-8 in float64.
      Sketches of about p rows distort lengths strongly, and the excess may be thirty
      times larger. The rounding error of Xθ counts towards the excess, so that
      `converged` is False for a huge θ. Directions with singular values up to a few
      times `rcond` are ignored, since rounding of X produces them: the minimum is that
      of X without them. `converged` is also False if θ overflows or underflows in its
      dtype, or if products with a very small or large X lose digits (in float32 below
      1e-31 or above 1e35). A NaN in a traced matrix or target gives NaN and False.

      With `"columns"`, no rank is computed and `rank` is None. `converged` says only
      that the backward error is within `tolerance`, as in LSQR. θ has the minimum norm
      in the units of the scaled columns, which are powers of two. If X is
      rank-deficient, 10 X may give another θ.

    Raises:
      ValueError: If shapes do not match, entries are not finite (unless traced), or
        sketch_size is smaller than min(N, p); if method is unknown or does not support
        the kind of matrix; if the embedding has the wrong shape, ridge or tolerance is
        negative, or rcond is outside [0, 1); if the two functions of an operator return
        other shapes or dtypes, or (unless traced; NaN and False otherwise) are not
        adjoint. Four pairs of random vectors detect differences of about 1e-3 of their
        norm in float32 and 1e-7 in float64.
      TypeError: If an array is complex or not numeric, or the embedding is neither a
        constructor nor an `Embedding`.

    Note:
      Unless traced, arrays are checked for lost rank: a warning reports rank lost in
      the conversion from float64 to float32, or to rows of very different norm.

      Derivatives of `solution` are those of the exact solution, in both modes and of
      any order. They are with respect to matrix (entries of a sparse matrix, arrays of
      an operator), target and ridge. They take one further solution with P, or four to
      seven with `"columns"`. If X has a null space, derivatives are along matrices of
      the same rank, and second derivatives are NaN. There are no derivatives along
      other matrices. Neither are there if `rank.is_ambiguous`, which with a sketch
      refers to its distorted singular values. The history is constant. `Blocks` have no
      derivatives.

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
      solvers", 2024, for recomputed residuals and for the estimate of the backward
      error by Karlson and Waldén.
    """
    array_validation.check_key(key)
    checked, target = system_of(key, matrix, target)
    num_rows, num_columns = checked.shape
    validation.check_choice("method", method, METHODS)
    eps = float(jnp.finfo(checked.dtype).eps)
    tolerance = _arguments.stopping_tolerance(tolerance, 4 * eps, checked.dtype)
    default_rcond = solver_cutoff(checked.shape, checked.dtype)
    target, rcond = _arguments.with_cutoff(target, rcond, default_rcond)
    regulariser = _arguments.regulariser(ridge, checked.dtype)
    if sketch_size is None:
        sketch_size = SKETCH_ROWS_PER_COLUMN * num_columns
    sketch_size = _arguments.sketch_size(sketch_size, checked.shape)
    chosen = chosen_method(method, checked, sketch_size)
    if max_iterations is None:
        is_slow = chosen == "columns"
        max_iterations = _MAX_SLOW_ITERATIONS if is_slow else MAX_ITERATIONS
    max_iterations = validation.check_int("max_iterations", max_iterations, minimum=0)
    tries_columns = method == "auto" and chosen == "sketch" and regulariser is not None
    num_tries = 0
    if tries_columns and isinstance(checked, Sparse):
        num_tries = min(_num_tries(checked), max_iterations)
    sketching = None
    if chosen == "sketch":
        sketching = embed(embedding, key, sketch_size, num_rows)
    solution = _solve(
        checked,
        target,
        sketching,
        regulariser,
        tolerance,
        rcond,
        method=chosen,
        max_iterations=max_iterations,
        num_tries=num_tries,
    )
    if regulariser is None and solution.rank is not None:
        warn_of_precision(matrix, checked, solution.rank.rank)
    return solution


def chosen_method(method: str, matrix: Matrix, sketch_size: int) -> str:
    """Returns the method for a matrix; raises ValueError if a method is unsupported.

    `"auto"` chooses by the kind and the size.
    """
    num_rows, num_columns = matrix.shape
    is_long = num_rows > 2 * sketch_size
    is_sketched = is_long and num_columns > _MAX_GRAM_COLUMNS
    if isinstance(matrix, Operator):
        has_sketch = matrix.functions.sketch is not None
        supported = ("sketch", "columns") if has_sketch else ("columns",)
        default = supported[0]
    elif isinstance(matrix, Sparse):
        supported = ("columns", "sketch")
        is_sketched = is_long and num_columns <= _MAX_SKETCHED_COLUMNS
        default = "sketch" if is_sketched else "columns"
    elif isinstance(matrix, BlockMatrix):
        supported = ("factor", "sketch")
        default = "sketch" if is_sketched else "factor"
    else:
        is_dense = isinstance(matrix, Dense)
        supported = ("gram", "sketch", "factor") if is_dense else ("gram", "sketch")
        default = "gram"
        if is_sketched and num_rows > _MAX_GRAM_RATIO * num_columns:
            default = "sketch"
        elif is_dense and num_rows < 4 * num_columns:
            default = "factor"
        if is_dense and num_rows < num_columns and method == "gram":
            return "factor"
    if method == "auto":
        return default
    if method not in supported:
        quoted = " or ".join(repr(name) for name in supported)
        raise ValueError(
            f"method must be {quoted} for {matrix.description}; got {method!r}"
        )
    return method


def _num_tries(matrix: Sparse) -> int:
    """Returns how many iterations without a sketch to try first.

    They take about half the time of the sketch. If they do not converge, the solution
    takes 1.5 times as long as by the sketch alone.
    """
    num_rows, num_columns = matrix.shape
    num_entries = matrix.num_entries + num_rows + num_columns
    factor_time = _FACTOR_ITERATIONS * num_columns**3 / num_entries
    time_in_iterations = _SKETCH_ITERATIONS + factor_time
    return min(int(time_in_iterations / 2), _MAX_SLOW_ITERATIONS)


@compiled("method", "max_iterations", "num_tries")
def _solve(
    matrix: Matrix,
    target: Array,
    embedding: Embedding | None,
    ridge: Array | None,
    tolerance: Array,
    rcond: Array,
    *,
    method: str,
    max_iterations: int,
    num_tries: int,
) -> Solution:
    # Derivatives come from `implicit_solution` instead of the iterations.
    to_unit = to_unit_size(target)
    scaled_target = target * to_unit
    problem = Problem.constant(matrix, scaled_target, ridge, tolerance)

    def by_factors() -> tuple[Solution, Factors]:
        preconditioner = preconditioner_of(problem, embedding, rcond, method)
        solution = refined(problem, preconditioner, max_iterations)
        return solution, preconditioner.factors

    if method == "columns":
        solution, factors = _by_columns(problem, max_iterations)
    elif num_tries:
        solution, factors = _by_columns_first(
            problem, num_tries, max_iterations, by_factors
        )
    else:
        solution, factors = by_factors()
    differentiable = implicit_solution(
        solution.solution, matrix, scaled_target, ridge, factors
    )
    solution = solution._replace(solution=differentiable)
    return in_units(solution, to_unit, factors.scale)


def _by_columns(
    problem: Problem, max_iterations: int
) -> tuple[Solution, ColumnScaling]:
    """Solves with column scales as the preconditioner; also returns the scales."""
    matrix, target, root_ridge, tolerance = problem
    assert isinstance(matrix, Operator | Sparse)
    scaling = column_scaling(matrix, root_ridge)
    system = ScaledSystem(matrix, scaling, tolerance, root_ridge)
    state = system.solve(system.padded(target), max_iterations)
    is_valid = jnp.isfinite(jnp.sum(state.r**2, axis=0))
    solution = Solution(
        solution=jnp.where(is_valid, scaled(scaling.scale, state.x), jnp.nan),
        num_iterations=state.monitor.iteration,
        converged=state.monitor.has_converged,
        residual_history=state.monitor.history,
    )
    return solution, scaling


def _by_columns_first(
    problem: Problem,
    num_tries: int,
    max_iterations: int,
    by_factors: Callable[[], tuple[Solution, Factors]],
) -> tuple[Solution, Factors]:
    """Solves with column scales; if the iterations do not converge, with factors.

    With a ridge, X stacked on √ridge I has full rank, unless the ridge is as small as
    the rounding errors of X. In this case, the solution is by factors.
    """
    tried, scaling = _by_columns(problem, num_tries)
    assert problem.root_ridge is not None
    rounding = 100 * jnp.finfo(problem.matrix.dtype).eps * scaling.norm
    has_full_rank = problem.root_ridge * jnp.min(scaling.scale) > rounding
    # Both branches of `lax.cond` must return arrays of equal shapes, in equal fields.
    factors = Factors.of_orthonormal_columns(scaling.scale)
    padding = [(0, 0)] * tried.residual_history.ndim
    padding[0] = (0, max_iterations - num_tries)
    padded = tried._replace(
        residual_history=jnp.pad(tried.residual_history, padding, mode="edge"),
        rank=factors.rank,
    )
    is_enough = jnp.all(tried.converged) & has_full_rank
    return lax.cond(is_enough, lambda: (padded, factors), by_factors)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Preconditioner:
    """Factors of a matrix or of its sketch, for conjugate gradients.

    Attributes:
      factors: The factors, with the rows of a ridge.
      has_all_directions: Whether the factors contain all directions of X above the
        cutoff.
      target_products: Xᵀy and ‖y‖², if the factorisation has computed them.
      is_sketched: Whether the factors are computed from a sketch.
    """

    factors: Factors
    has_all_directions: Array
    target_products: list[Array] | None
    is_sketched: Static[bool]


def preconditioner_of(
    problem: Problem,
    embedding: Embedding | None,
    rcond: Array,
    method: str,
    threshold: float = 0.0,
) -> Preconditioner:
    """Computes a preconditioner from a matrix or from its sketch.

    Args:
      problem: The problem.
      embedding: S, for `method` "sketch".
      rcond: The cutoff of singular values, as a share of the largest.
      method: "gram", "factor" or "sketch".
      threshold: See `factors_of`. Raised to 1e4 machine epsilons, which are enough for
        a preconditioner.
    """
    matrix, target, root_ridge, _ = problem
    if method == "sketch":
        assert embedding is not None
        (sketch,) = matrix.sketch(embedding)
        factors = factors_of_small(sketch, rcond, root_ridge=root_ridge)
        probe = factors.null_vector()
        image = jnp.linalg.norm(matrix.mv(factors.scale * probe))
        return Preconditioner(
            factors=factors,
            has_all_directions=factors.has_all_directions(probe, image, rcond),
            target_products=None,
            is_sketched=True,
        )
    target_products = None
    if isinstance(matrix, BlockMatrix):
        # One pass over the blocks computes both R and the products with the target.
        small, *target_products = matrix.triangle_and_products(target)
        factors = factors_of_small(small, rcond, root_ridge=root_ridge)
    else:
        assert isinstance(matrix, RowMatrix)
        least = 1e4 * float(jnp.finfo(matrix.dtype).eps)
        factors = factors_of(matrix, root_ridge, rcond, method, max(threshold, least))
    return Preconditioner(factors, jnp.bool_(True), target_products, is_sketched=False)


def refined(
    problem: Problem, preconditioner: Preconditioner, max_iterations: int
) -> Solution:
    """Solves by conjugate gradients with a preconditioner."""
    factors = preconditioner.factors
    refinement = Refinement(
        problem=problem,
        factors=factors,
        target_products=preconditioner.target_products,
        is_sketched=preconditioner.is_sketched,
    )
    state = refinement.solve(max_iterations)
    is_solved = state.is_solved & refinement.is_lowest(state) & factors.finite
    # With a ridge of NaN, θ stays at 0, and the residual is finite. Only
    # `factors.finite` is False.
    is_valid = factors.finite & jnp.isfinite(state.point.squared)
    return Solution(
        solution=jnp.where(is_valid, scaled(factors.scale, state.point.x), jnp.nan),
        num_iterations=state.monitor.iteration,
        converged=preconditioner.has_all_directions & is_solved,
        residual_history=state.monitor.history,
        rank=factors.rank,
    )
