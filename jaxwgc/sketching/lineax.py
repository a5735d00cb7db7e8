"""A least-squares solver for lineax. The extra `jaxwgc[lineax]` installs lineax.

`jaxwgc.sketching` does not import this module, since lineax is optional.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import promoted
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
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.refinement import Problem, Refinement
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._solvers._preconditioned import (
    MAX_ITERATIONS,
    SKETCH_ROWS_PER_COLUMN,
    Preconditioner,
    chosen_method,
    preconditioner_of,
    refined,
)
from jaxwgc.sketching._solvers._solution import Solution, in_units, to_unit_size

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
        "lineax is missing: pip install 'jaxwgc[lineax]', or in a checkout of jaxwgc "
        "pip install '.[lineax]'"
    ) from error

__all__ = ["SketchPreconditioned"]

METHODS = ("auto", "gram", "sketch", "factor")


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _State:
    """State of the solver: a matrix that is not wide, and its preconditioner.

    Attributes:
      problem: Least squares with A or Aᵀ, whichever has more rows, and a target of 0.
      preconditioner: The `Preconditioner` of the problem.
      structures: The pytrees of the system, as lineax packs them.
      is_transposed: Whether the system is that of the transpose of the matrix.
    """

    problem: Problem
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
        """Computes the preconditioner of an operator; returns the solver's state."""
        del options
        structures = pack_structures(operator)
        is_wide = operator.out_size() < operator.in_size()
        tall = operator.transpose() if is_wide else operator
        sketch_size = self.sketch_size
        if sketch_size is None:
            sketch_size = SKETCH_ROWS_PER_COLUMN * tall.in_size()
        check_real(tall)
        is_small = tall.out_size() <= 2 * sketch_size
        if is_small or isinstance(tall, lx.MatrixLinearOperator):
            matrix = Dense(promoted(tall.as_matrix()))
            method = chosen_method(self.method, matrix, sketch_size)
        elif self.method in ("auto", "sketch"):
            matrix = Operator(operator_from_lineax(lx.linearise(tall)))
            method = "sketch"
        else:
            raise ValueError(
                f"method={self.method!r} needs a matrix; got a {type(tall).__name__}. "
                "Use method='auto' or 'sketch', or convert it by "
                "lineax.MatrixLinearOperator(operator.as_matrix())"
            )
        sketch_size = _arguments.sketch_size(sketch_size, matrix.shape)
        embedding = None
        if method == "sketch":
            num_rows = matrix.shape[0]
            embedding = embed(self.embedding, self.key, sketch_size, num_rows)
        default_rcond = solver_cutoff(matrix.shape, matrix.dtype)
        matrix, rcond = _arguments.with_cutoff(matrix, self.rcond, default_rcond)
        default = 4 * float(jnp.finfo(matrix.dtype).eps)
        problem = Problem(
            matrix=matrix,
            target=jnp.zeros(matrix.shape[0], matrix.dtype),
            root_ridge=None,
            tolerance=_arguments.stopping_tolerance(
                self.tolerance, default, matrix.dtype
            ),
        )
        preconditioner = preconditioner_of(problem, embedding, rcond, method)
        return _State(problem, preconditioner, structures, is_transposed=is_wide)

    def compute(self, state: _State, vector: Any, options: dict[str, Any]):
        """Solves the system for one right-hand side."""
        del options
        dtype = state.problem.matrix.dtype
        flat = ravel_vector(vector, state.structures).astype(dtype)
        if state.is_transposed:
            solved = _minimum_norm(state, flat, self.max_iterations)
        else:
            to_unit = to_unit_size(flat)
            problem = state.problem._replace(target=flat * to_unit)
            solved = refined(problem, state.preconditioner, self.max_iterations)
            solved = in_units(solved, to_unit, state.preconditioner.factors.scale)
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
        """Returns the state unchanged, since operators are real."""
        del options
        return state, {}

    def assume_full_rank(self):
        """Returns False: operators may have any rank."""
        return False


def _minimum_norm(state: _State, vector: Array, max_iterations: int) -> Solution:
    """Computes the minimum-norm solution for the transposed matrix.

    It minimises ‖Xᵀu - vector‖. It is u = -Xθ for the θ with Xᵀ(-Xθ) = vector.
    Iterations recompute u = -Xθ as a residual, so that the error of u does not grow
    with the square of the condition number.
    """
    factors = state.preconditioner.factors
    in_row_space = factors.in_row_space(vector, factors.row_space())
    required_gradient = scaled(factors.scale, in_row_space)
    to_unit = to_unit_size(required_gradient)
    refinement = Refinement(state.problem, factors, required_gradient * to_unit)
    solved = refinement.solve(max_iterations)
    is_finite = jnp.isfinite(solved.point.squared) & factors.finite
    image = state.problem.matrix.mv(scaled(factors.scale, solved.point.x))
    solution = -image / to_unit
    return Solution(
        solution=jnp.where(is_finite, solution, jnp.nan),
        num_iterations=solved.monitor.iteration,
        converged=solved.is_solved & state.preconditioner.has_all_directions,
        residual_history=solved.monitor.history,
        rank=factors.rank,
    )
