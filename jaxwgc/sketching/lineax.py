"""A solver for lineax, of the extra `lineax`.

It is imported on request: `
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import inverse_power_of_two, promoted
from jaxwgc._common.pytrees import Static, register
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._linalg.factors import solver_cutoff
from jaxwgc.sketching._linalg.linear_operator import (
    Operator,
    check_real,
    operator_from_lineax,
)
from jaxwgc.sketching._linalg.matrix import Dense, Matrix
from jaxwgc.sketching._linalg.refinement import Problem, Refinement
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._solvers._preconditioned import (
    MAX_ITERATIONS,
    SKETCH_ROWS_PER_COLUMN,
    chosen_method,
)
from jaxwgc.sketching._solvers._preconditioners import (
    Preconditioner,
    preconditioner_of,
    refined,
)
from jaxwgc.sketching._solvers._solution import Solution, in_units

try:
    import lineax as lx
    from lineax.internal import (
        pack_structures,
        ravel_vector,
        transpose_packed_structures,
        unravel_solution,
    )
except ImportError as error:
    raise ImportError(
        "lineax is missing: pip install 'jaxwgc[lineax]', or in a checkout "
        "pip install '.[lineax]'"
    ) from error

__all__ = ["SketchPreconditioned"]

METHODS = ("auto", "gram", "sketch", "factor")


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """The matrix with at least as many rows as columns, and its preconditioner.

    Attributes:
      matrix: A or Aᵀ, whichever has more rows.
      preconditioner: The `Preconditioner` of `matrix`.
      structures: The pytrees of the system, as lineax packs them.
      is_transposed: Whether the system is that of the transpose of `matrix`.
    """

    matrix: Matrix
    preconditioner: Preconditioner
    structures: Any
    is_transposed: Static[bool]


class SketchPreconditioned(lx.AbstractLinearSolver[_State]):
    """A lineax solver of least squares, by preconditioned conjugate gradients.

    `lx.linear_solve(operator, vector, SketchPreconditioned(key))` returns the
    pseudoinverse solution, as `lx.SVD` does: the least-squares solution of a tall
    operator, the minimum-norm solution of a wide one, at any rank. The operator must be
    real. Method and accuracy are those of `sketching.preconditioned`. The
    preconditioner is computed in `init`. It serves the transposed system as well, so
    that all solves of a derivative share it.

    A `lx.MatrixLinearOperator` is used as its matrix. If another operator has more than
    2 `sketch_size` rows (or columns, if it is wide), it is never materialised: the
    preconditioner takes one product per column, and is that of a sketch.

    Attributes:
      key: A PRNG key, for `"sketch"`.
      sketch_size: The number of rows of the sketch, at least min(N, p) for an operator
        (N, p); 8 min(N, p) by default.
      embedding: The distribution of the sketch, see `sketching.preconditioned`.
      method: `"auto"`, `"gram"`, `"sketch"` or `"factor"`, see
        `sketching.preconditioned`; `"auto"` or `"sketch"` if it is not materialised.
      tolerance: Tolerance of the backward error, by default 4 machine epsilons.
      max_iterations: The largest number of iterations, 49 by default.
      rcond: Singular values below `rcond` times the largest are truncated, after the
        columns have been scaled to norms near 1 (the rows, if the operator is wide). By
        default 4 + √min(N, p) machine epsilons.

    The result is `lx.RESULTS.successful` if `preconditioned` converged. Otherwise it is
    `max_steps_reached` or `stagnation`. The error message of lineax for the former asks
    to increase `max_steps`, which is `max_iterations` here. The statistics are
    `num_steps`, `max_steps` and `rank`, the numerical rank.

    Raises:
      ValueError: If an attribute is out of range; in `init`, if `sketch_size`,
        `embedding` or `method` do not fit the operator.
      TypeError: If an attribute has the wrong type; in `init`, if the operator is
        complex.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import lineax as lx
      >>> from jaxwgc.sketching.lineax import SketchPreconditioned
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> operator = lx.MatrixLinearOperator(matrix)
      >>> vector = matrix @ jnp.array([1.0, -2.0])
      >>> solver = SketchPreconditioned(jax.random.key(1))
      >>> print(lx.linear_solve(operator, vector, solver).value.round(3))
      [ 1. -2.]
    """

    key: Array
    sketch_size: int | None = None
    embedding: EmbeddingLike = sparse_sign
    method: str = "auto"
    tolerance: float | None = None
    max_iterations: int = MAX_ITERATIONS
    rcond: float | None = None

    def __check_init__(self):
        array_validation.check_key(self.key)
        validation.check_choice("method", self.method, METHODS)
        if self.sketch_size is not None:
            validation.check_int("sketch_size", self.sketch_size, minimum=1)
        if self.tolerance is not None:
            array_validation.check_number("tolerance", self.tolerance, minimum=0)
        validation.check_int("max_iterations", self.max_iterations, minimum=0)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]):
        """Computes the preconditioner."""
        del options
        structures = pack_structures(operator)
        is_wide = operator.out_size() < operator.in_size()
        tall = operator.transpose() if is_wide else operator
        sketch_size = self.sketch_size
        if sketch_size is None:
            sketch_size = SKETCH_ROWS_PER_COLUMN * tall.in_size()
        matrix = _matrix_of(tall, sketch_size)
        sketch_size = _arguments.sketch_size(sketch_size, matrix.shape)
        method = self._method_for(matrix, sketch_size)
        embedding = None
        if method == "sketch":
            num_rows = matrix.shape[0]
            embedding = embed(self.embedding, self.key, sketch_size, num_rows)
        default_rcond = solver_cutoff(matrix.shape, matrix.dtype)
        matrix, rcond = _arguments.with_cutoff(matrix, self.rcond, default_rcond)
        preconditioner = preconditioner_of(
            matrix, embedding, rcond, method, root_ridge=None
        )
        return _State(matrix, preconditioner, structures, is_transposed=is_wide)

    def compute(self, state: _State, vector: Any, options: dict[str, Any]):
        """Solves the system."""
        del options
        dtype = state.matrix.dtype
        flat = ravel_vector(vector, state.structures).astype(dtype)
        default = 4 * float(jnp.finfo(dtype).eps)
        tolerance = _arguments.stopping_tolerance(self.tolerance, default, dtype)
        solve = _minimum_norm if state.is_transposed else _least_squares
        solved = solve(state, flat, tolerance, self.max_iterations)
        failure = lx.RESULTS.where(
            solved.num_iterations >= self.max_iterations,
            lx.RESULTS.max_steps_reached,
            lx.RESULTS.stagnation,
        )
        # lineax itself reports a solution that is not finite.
        is_finite = jnp.all(jnp.isfinite(solved.solution))
        result = lx.RESULTS.where(
            solved.converged | ~is_finite, lx.RESULTS.successful, failure
        )
        stats = {
            "num_steps": solved.num_iterations,
            "max_steps": self.max_iterations,
            "rank": state.preconditioner.factors.rank.rank,
        }
        return unravel_solution(solved.solution, state.structures), result, stats

    def transpose(self, state: _State, options: dict[str, Any]):
        """Returns the state of the transposed operator."""
        del options
        transposed = dataclasses.replace(
            state,
            structures=transpose_packed_structures(state.structures),
            is_transposed=not state.is_transposed,
        )
        return transposed, {}

    def conj(self, state: _State, options: dict[str, Any]):
        """Returns the state of the conjugate, which is real, too."""
        del options
        return state, {}

    def assume_full_rank(self):
        """Returns False: operators may have any rank."""
        return False

    def _method_for(self, matrix: Matrix, sketch_size: int) -> str:
        if not isinstance(matrix, Operator):
            return chosen_method(self.method, matrix, sketch_size)
        if self.method not in ("auto", "sketch"):
            raise ValueError(
                "method must be 'auto' or 'sketch' for an operator of more than 2 "
                f"sketch_size rows that is no MatrixLinearOperator; got "
                f"{self.method!r}. Convert it with "
                "lineax.MatrixLinearOperator(operator.as_matrix())"
            )
        return "sketch"


def _matrix_of(operator: lx.AbstractLinearOperator, sketch_size: int) -> Matrix:
    """Returns the matrix of a tall operator, materialised if it is small."""
    check_real(operator)
    is_small = operator.out_size() <= 2 * sketch_size
    if is_small or isinstance(operator, lx.MatrixLinearOperator):
        return Dense(promoted(operator.as_matrix()))
    return Operator(operator_from_lineax(lx.linearise(operator)))


def _least_squares(
    state: _State, vector: Array, tolerance: Array, max_iterations: int
) -> Solution:
    """Minimises ‖Xθ - vector‖."""
    to_unit = inverse_power_of_two(jnp.max(jnp.abs(vector)))
    problem = Problem(
        matrix=state.matrix,
        target=vector * to_unit,
        root_ridge=None,
        tolerance=tolerance,
    )
    result = refined(problem, state.preconditioner, max_iterations)
    return in_units(result.unscaled(), to_unit, result.factors.scale)


def _minimum_norm(
    state: _State, vector: Array, tolerance: Array, max_iterations: int
) -> Solution:
    """Computes the minimum-norm minimiser u of ‖Xᵀu - vector‖.

    It is u = -Xθ for the θ with Xᵀ(-Xθ) = vector. Iterations recompute u = -Xθ as a
    residual, so that the error of u does not grow with the square of the condition
    number.
    """
    matrix = state.matrix
    factors = state.preconditioner.factors
    in_row_space = factors.in_row_space(vector, factors.row_space())
    required_gradient = scaled(factors.scale, in_row_space)
    to_unit = inverse_power_of_two(jnp.max(jnp.abs(required_gradient)))
    problem = Problem(
        matrix=matrix,
        target=jnp.zeros(matrix.shape[0], matrix.dtype),
        root_ridge=None,
        tolerance=tolerance,
    )
    refinement = Refinement(problem, factors, required_gradient * to_unit)
    solved = refinement.solve(max_iterations)
    is_finite = jnp.isfinite(solved.point.squared) & factors.finite
    solution = -matrix.mv(scaled(factors.scale, solved.point.x)) / to_unit
    return Solution(
        solution=jnp.where(is_finite, solution, jnp.nan),
        num_iterations=solved.monitor.iteration,
        converged=solved.is_solved & state.preconditioner.has_all_directions,
        residual_history=solved.monitor.history,
        rank=factors.rank,
    )
