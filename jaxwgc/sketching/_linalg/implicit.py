"""The derivative of a least-squares solution, independent of the solver."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.matrix import Matrix
from jaxwgc.sketching._linalg.projector import without_derivative
from jaxwgc.sketching._linalg.refinement import Refinement
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._linalg.scaled_system import ColumnScaling, ScaledSystem

# Largest number of iterations with factors as the preconditioner.
_MAX_ITERATIONS = 99
# Largest number of iterations with column scales as the preconditioner.
_MAX_SLOW_ITERATIONS = 999


@jax.custom_jvp
def implicit_solution(
    solution: Array,
    matrix: Matrix,
    target: Array,
    ridge: Array | None,
    factors: Factors | ColumnScaling,
) -> Array:
    """Returns `solution` with its derivative as minimum-norm θ of Xᵀ(y - Xθ) = ridge θ.

    With r = y - Xθ, the derivative solves [I X; Xᵀ -ridge I] [dr; dθ] = [dy - dX θ;
    dridge θ - dXᵀ r]. `Factors` of X or of a sketch precondition this system. They are
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

    # θ / `unit` has the minimum norm.
    if isinstance(factors, Factors):
        unit = 1 / inverse_power_of_two(jnp.max(jnp.abs(solution)))
        unit = jnp.full(factors.scale.shape, unit)
        has_null_space = factors.has_null_space
    else:
        unit = factors.scale
        draw = jax.random.normal(jax.random.key(0), solution.shape, unit.dtype)
        # `once` is in the null space, or it is rounding error. A second projection
        # keeps the former, and reduces the latter.
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
    """Solves r + Xθ = target and Xᵀr - ridge θ = required_gradient for r and θ.

    If X is rank-deficient, it applies the pseudo-inverse, which ignores the part of
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
    """Solves the equations of `solve_augmented` for θ, in scaled columns."""
    root_ridge = None if ridge is None else jnp.sqrt(ridge)
    tolerance = jnp.asarray(4 * jnp.finfo(matrix.dtype).eps, matrix.dtype)
    if isinstance(factors, Factors):
        problem = Refinement(
            matrix=matrix,
            factors=factors,
            tolerance=tolerance,
            target=target,
            root_ridge=root_ridge,
            required_gradient=required_gradient,
        )
        return problem.solve(_MAX_ITERATIONS).point.x
    system = ScaledSystem(matrix, factors, tolerance, root_ridge)
    # The least-squares solution ignores the part of the required gradient outside of
    # the range of Xᵀ.
    pulled = system.solve(required_gradient, _MAX_SLOW_ITERATIONS, is_transposed=True).x
    right_hand_side = system.padded(target) - pulled
    return system.solve(right_hand_side, _MAX_SLOW_ITERATIONS).x
