"""The result of a solver (`Solution`): its units and its derivatives."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc.sketching._linalg.factors import Factors, NumericalRank, root_of
from jaxwgc.sketching._linalg.matrix import Matrix
from jaxwgc.sketching._linalg.projector import without_derivative
from jaxwgc.sketching._linalg.refinement import Problem, Refinement
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._linalg.scaled_system import ColumnScaling, ScaledSystem


class Solution(NamedTuple):
    """The result of a solver, with fixed shapes under `jax.jit`.

    For least squares with a target (N, c), the c columns are c systems, and every field
    has c as its last axis.

    Attributes:
      solution: θ, of shape (p,), or a pytree like the parameters.
      num_iterations: int32, the number of iterations.
      converged: Whether the solver's test was passed. See the docstring of the solver.
        False if the result is not finite, and for least squares also if θ underflows in
        its dtype.
      residual_history: (max_iterations + 1,), from the starting point on: the norm of
        the residual, or the value of the objective if the docstring of the solver says
        so. After the last iteration, its value is repeated.
      rank: The `numerical_rank` of X as computed by the solver. If it is ambiguous,
        rounding or small changes of X decide which singular values are truncated, and
        so solution and derivatives. None if the solver computes no rank.

    Example:
      Least squares without noise:

      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> x = jax.random.normal(jax.random.key(0), (1000, 5))
      >>> y = x @ jnp.arange(5.0)
      >>> result = sketching.preconditioned(jax.random.key(1), x, y)
      >>> print(result.solution.round(), bool(result.converged), result.rank.rank)
      [0. 1. 2. 3. 4.] True 5
    """

    solution: Array
    num_iterations: Array
    converged: Array
    residual_history: Array
    rank: NumericalRank | None = None


def to_unit_size(target: Array) -> Array:
    """Returns powers of two that scale targets to size 1.

    Squares of scaled targets do not overflow.
    """
    return inverse_power_of_two(jnp.max(jnp.abs(lax.stop_gradient(target)), axis=0))


def in_units(result: Solution, to_unit: Array, scale: Array) -> Solution:
    """Converts the result for scaled targets to the units of the given targets.

    `converged` becomes False if θ overflows, or if underflow changes θ / `scale` by
    more than rounding; scales bring the columns of X to one size. It also becomes False
    if X is so small or large that products with it lose digits.
    """
    solution = result.solution / to_unit
    smallest = jnp.min(scale)
    maxexp = jnp.finfo(solution.dtype).maxexp
    is_in_range = (smallest <= 2.0 ** (maxexp - 24)) & (smallest >= 2.0 ** (8 - maxexp))
    size = jnp.max(jnp.abs(scaled(1 / scale, result.solution)), axis=0)
    lost = jnp.abs(scaled(1 / scale, solution * to_unit - result.solution))
    is_carried = jnp.all(lost <= jnp.finfo(solution.dtype).eps * size, axis=0)
    rank = jax.tree.map(lambda x: jnp.broadcast_to(x, to_unit.shape), result.rank)
    return Solution(
        solution=solution,
        num_iterations=result.num_iterations,
        converged=result.converged & is_in_range & is_carried,
        residual_history=result.residual_history / to_unit,
        rank=rank,
    )


# Largest number of iterations for a derivative, with factors as the preconditioner.
_MAX_ITERATIONS = 99
# Largest number of iterations for a derivative, with column scales.
_MAX_SLOW_ITERATIONS = 999


@jax.custom_jvp
def implicit_solution(
    solution: Array,
    matrix: Matrix,
    target: Array,
    ridge: Array | None,
    factors: Factors | ColumnScaling,
) -> Array:
    """Returns `solution` unchanged, with the derivatives of the exact solution.

    The exact solution is the minimum-norm θ of Xᵀ(y - Xθ) = ridge θ. With r = y -
    Xθ, the derivative solves [I X; Xᵀ -ridge I] [dr; dθ] = [dy - dX θ; dridge θ -
    dXᵀ r]. `Factors` of X or of a sketch precondition this system. They are
    constants, as is the value of `solution`. With a `ColumnScaling`, θ / scale has
    the minimum norm.

    If X is rank-deficient, this is the derivative along matrices of the same rank. The
    null space of X adds its part of dXᵀ (Xᵀ)⁺ θ; see Golub and Pereyra, SIAM J. Numer.
    Anal. 10 (1973), equation 4.12. Second derivatives are then NaN.
    """
    del matrix, target, ridge, factors
    return solution


@implicit_solution.defjvp
def _implicit_solution_jvp(primals, tangents):
    solution = implicit_solution(*primals)
    _, matrix, target, ridge, factors = primals
    _, matrix_change, target_change, ridge_change, _ = tangents

    def change_of(function: Callable[[Matrix], Array]) -> Array:
        _, change = jax.jvp(function, (matrix,), (matrix_change,))
        return change

    residual = target - matrix.mv(solution)
    right_hand_side = target_change - change_of(lambda matrix: matrix.mv(solution))
    required_gradient = -change_of(lambda matrix: matrix.rmv(residual))
    if ridge is not None:
        required_gradient += ridge_change * solution
    solve = functools.partial(solve_augmented, matrix, ridge, factors)
    _, change = solve(right_hand_side, required_gradient)

    def null_part(vector: Array) -> Array:
        required_gradient = 0 * vector if ridge is None else -ridge * vector
        return vector - solve(matrix.mv(vector), required_gradient)[1]

    # θ has the minimum norm of θ / `unit`. With `Factors`, all units are equal. With a
    # `ColumnScaling`, they are the column scales.
    if isinstance(factors, Factors):
        unit = 1 / inverse_power_of_two(jnp.max(jnp.abs(solution)))
        unit = jnp.full(factors.scale.shape, unit)
        has_null_space = factors.has_null_space
    else:
        unit = factors.scale
        draw = jax.random.normal(jax.random.key(0), solution.shape, unit.dtype)
        # `once` is a vector of the null space, or rounding errors. A second projection
        # keeps a vector of the null space, and reduces rounding errors.
        once = null_part(scaled(unit, draw))
        length = jnp.linalg.norm(scaled(1 / unit, once))
        second_length = jnp.linalg.norm(scaled(1 / unit, null_part(once)))
        has_null_space = second_length > length / 2

    def of_null_space() -> Array:
        required_gradient = -scaled(1 / unit, scaled(1 / unit, solution))
        image, _ = solve(jnp.zeros_like(target), required_gradient)
        image = without_derivative(-image)
        pulled = change_of(lambda matrix: matrix.rmv(image))
        return null_part(scaled(unit, scaled(unit, pulled)))

    part = lax.cond(has_null_space, of_null_space, lambda: jnp.zeros_like(solution))
    return solution, change + part


def solve_augmented(
    matrix: Matrix,
    ridge: Array | None,
    factors: Factors | ColumnScaling,
    target: Array,
    required_gradient: Array,
) -> tuple[Array, Array]:
    """Solves the augmented system of least squares for residual and parameters.

    The equations are r + Xθ = target and Xᵀr - ridge θ = required_gradient. If X is
    rank-deficient, it applies the pseudo-inverse, which ignores the part of
    `required_gradient` in the null space of X.
    """

    def apply(unknowns: tuple[Array, Array]) -> tuple[Array, Array]:
        residual, solution = unknowns
        gradient = matrix.rmv(residual)
        if ridge is not None:
            gradient -= ridge * solution
        return residual + matrix.mv(solution), gradient

    def solve(_, right_hand_sides: tuple[Array, Array]) -> tuple[Array, Array]:
        target, required_gradient = right_hand_sides
        scale = factors.scale
        if isinstance(factors, Factors):
            # The pseudo-inverse ignores the part in the null space of X.
            required_gradient = factors.in_row_space(
                required_gradient, factors.row_space()
            )
        scaled_gradient = scaled(scale, required_gradient)
        largest_target = jnp.max(jnp.abs(target))
        largest_gradient = jnp.max(jnp.abs(scaled_gradient))
        unit = inverse_power_of_two(jnp.maximum(largest_target, largest_gradient))
        scaled_target = target * unit
        scaled_gradient = scaled_gradient * unit
        x = _scaled_solution(matrix, ridge, factors, scaled_target, scaled_gradient)
        solution = scaled(scale, x) / unit
        return target - matrix.mv(solution), solution

    # JAX can transpose a linear solve only if all parts of its right-hand side are
    # differentiated. So a zero that depends on the other part is added to each part.
    linked_target = target + jnp.where(False, jnp.sum(required_gradient, axis=0), 0)
    linked_gradient = required_gradient + jnp.where(False, jnp.sum(target, axis=0), 0)
    right_hand_sides = (linked_target, linked_gradient)
    return lax.custom_linear_solve(apply, right_hand_sides, solve, symmetric=True)


def _scaled_solution(
    matrix: Matrix,
    ridge: Array | None,
    factors: Factors | ColumnScaling,
    target: Array,
    required_gradient: Array,
) -> Array:
    """Solves the equations of `solve_augmented` for scaled parameters."""
    root_ridge = root_of(ridge)
    tolerance = jnp.asarray(4 * jnp.finfo(matrix.dtype).eps, matrix.dtype)
    if isinstance(factors, Factors):
        problem = Problem(matrix, target, root_ridge, tolerance)
        refinement = Refinement(problem, factors, required_gradient)
        return refinement.solve(_MAX_ITERATIONS).point.x
    system = ScaledSystem(matrix, factors, tolerance, root_ridge)
    # The least-squares solution ignores the part of the required gradient outside of
    # the range of Xᵀ.
    pulled = system.solve(required_gradient, _MAX_SLOW_ITERATIONS, is_transposed=True).x
    right_hand_side = system.padded(target) - pulled
    return system.solve(right_hand_side, _MAX_SLOW_ITERATIONS).x
