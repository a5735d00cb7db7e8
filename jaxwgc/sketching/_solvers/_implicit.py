"""The derivative of a least-squares solution, independent of the solver."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching._derivatives import without_derivative
from jaxwgc.sketching._operators import (
    Equilibrated,
    LinearOperator,
    Matrix,
    change_of,
    times,
    transposed_times,
)
from jaxwgc.sketching._solvers._orthonormalisers import ColumnScaling, Orthonormaliser
from jaxwgc.sketching._solvers._refinement import Refinement

_MAX_ITERATIONS = 99
# With the scales of columns for all preconditioning.
_MAX_SLOW_ITERATIONS = 999


@jax.custom_jvp
def implicit_solution(
    solution: jax.Array,
    matrix: Matrix,
    target: jax.Array,
    ridge: jax.Array | None,
    factors: Orthonormaliser | ColumnScaling,
) -> jax.Array:
    """Returns `solution`, the shortest θ of Xᵀ(y - Xθ) = ridge θ, with its derivative.

    With r = y - Xθ it is [I X; Xᵀ -ridge I] [dr; dθ] = [dy - dX θ; dridge θ - dXᵀ r].
    `factors` are those of X or of a sketch of it, which precondition this, and are
    constants, as is `solution`. With the scales of columns alone, it is θ / scale that
    is the shortest.

    Where X is rank-deficient, this is the derivative along matrices of the same rank,
    to which the null space of X adds its part of dXᵀ (Xᵀ)⁺ θ: Golub and Pereyra, "The
    differentiation of pseudo-inverses and nonlinear least squares problems whose
    variables separate", SIAM J. Numer. Anal. 10 (1973), equation 4.12. Second
    derivatives are NaN there.
    """
    del matrix, target, ridge, factors
    return solution


@implicit_solution.defjvp
def _implicit_solution_jvp(primals, tangents):
    solution = implicit_solution(*primals)
    _, matrix, target, ridge, factors = primals
    _, matrix_change, target_change, ridge_change, _ = tangents
    residual = target - times(matrix, solution)
    moved = change_of(times, matrix, matrix_change, solution)
    right_hand_side = target_change - moved
    offset = -change_of(transposed_times, matrix, matrix_change, residual)
    if ridge is not None:
        offset += ridge_change * solution
    system = matrix, ridge, factors
    _, change = solve_augmented(*system, right_hand_side, offset)

    def null_part(vector: jax.Array) -> jax.Array:
        image = times(matrix, vector)
        offset = 0 * vector if ridge is None else -ridge * vector
        return vector - solve_augmented(*system, image, offset)[1]

    # The solution is the shortest in these units.
    if isinstance(factors, Orthonormaliser):
        unit = 1 / inverse_power_of_two(jnp.max(jnp.abs(solution)))
        has_null_space = factors.has_null_space
    else:
        unit = factors.scale
        draw = jax.random.normal(jax.random.key(0), unit.shape, unit.dtype)
        # What is left of it is in the null space, or rounding, of which less is left.
        once = null_part(unit * draw)
        lengths = [jnp.linalg.norm(part / unit) for part in (once, null_part(once))]
        has_null_space = lengths[1] > lengths[0] / 2

    def of_null_space() -> jax.Array:
        offset = -solution / unit / unit
        image, _ = solve_augmented(*system, jnp.zeros_like(target), offset)
        image = without_derivative(-image)
        pulled = change_of(transposed_times, matrix, matrix_change, image)
        return null_part(unit * (unit * pulled))

    part = lax.cond(has_null_space, of_null_space, lambda: jnp.zeros_like(solution))
    return solution, change + part


def solve_augmented(
    matrix: Matrix,
    ridge: jax.Array | None,
    factors: Orthonormaliser | ColumnScaling,
    target: jax.Array,
    offset: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns r and θ of r + Xθ = target and Xᵀr - ridge θ = offset, linear in both.

    Where X is rank-deficient, by the pseudo-inverse: what there is of offset in the
    null space of X counts as zero.
    """
    num_rows = matrix.shape[0]

    def apply(unknowns: jax.Array) -> jax.Array:
        residual, solution = jnp.split(unknowns, [num_rows])
        gradient = transposed_times(matrix, residual)
        if ridge is not None:
            gradient -= ridge * solution
        return jnp.concatenate([residual + times(matrix, solution), gradient])

    def solve(_, right_hand_side: jax.Array) -> jax.Array:
        target, offset = jnp.split(right_hand_side, [num_rows])
        scale, most = factors.scale, _MAX_ITERATIONS
        root = 0 if ridge is None else jnp.sqrt(ridge)
        scaled = Equilibrated(matrix, scale, root)
        tolerance = jnp.asarray(4 * jnp.finfo(matrix.dtype).eps, matrix.dtype)
        if isinstance(factors, Orthonormaliser):
            # The pseudo-inverse ignores the part in the null space.
            offset = factors.shortest(offset)
        offset = scale * offset
        largest = jnp.maximum(jnp.max(jnp.abs(target)), jnp.max(jnp.abs(offset)))
        unit = inverse_power_of_two(largest)
        padded, offset = jnp.pad(target * unit, (0, scale.size)), offset * unit
        if isinstance(factors, ColumnScaling):
            # Of any offset, least squares with Xᵀ take the part in the range of that.
            shape, most = (scale.size, padded.size), _MAX_SLOW_ITERATIONS
            transposed = LinearOperator(scaled.rmatvec, scaled.matvec, shape)
            problem = Refinement(transposed, factors, tolerance, offset)
            padded, offset = padded - problem.solve(most).solution, None
        problem = Refinement(scaled, factors, tolerance, padded, offset)
        solution = scale * problem.solve(most).solution / unit
        return jnp.concatenate([target - times(matrix, solution), solution])

    # One vector, since JAX transposes where all of the right-hand side is linear.
    right_hand_side = jnp.concatenate([target, offset])
    unknowns = lax.custom_linear_solve(apply, right_hand_side, solve, symmetric=True)
    residual, solution = jnp.split(unknowns, [num_rows])
    return residual, solution
