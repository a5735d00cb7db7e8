"""The result of every solver."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching._linalg.orthonormalise import scaled
from jaxwgc.sketching._linalg.rank import NumericalRank


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
      rank: The `NumericalRank` of X as computed by the solver. If it is ambiguous,
        rounding or small changes of X decide which singular values are truncated, and
        so solution and derivatives. None if the solver computes no rank.
    """

    solution: Array
    num_iterations: Array
    converged: Array
    residual_history: Array
    rank: NumericalRank | None = None


def every_target(
    solve: Callable[..., Solution], target: Array, scale: Array
) -> Solution:
    """Solves for y, or for every column of y, with the columns as the last axis.

    Each y is scaled to size 1 by a power of two, to avoid overflow of squares.

    Args:
      solve: Solver for one y of size 1, which also takes the power of two.
      target: y, (N,) or (N, c).
      scale: See `in_units`.
    """

    def solve_scaled(target: Array) -> Solution:
        unit = inverse_power_of_two(jnp.max(jnp.abs(lax.stop_gradient(target))))
        return in_units(solve(target * unit, unit), unit, scale)

    if target.ndim == 1:
        return solve_scaled(target)
    return jax.vmap(solve_scaled, in_axes=-1, out_axes=-1)(target)


def in_units(result: Solution, unit: Array, scale: Array) -> Solution:
    """Returns the solution for y from the one for y * `unit`, (N,) or (N, c).

    `converged` becomes False if θ overflows, or if underflow changes θ / `scale` by
    more than rounding; scales bring the columns of X to one size. It also becomes False
    if X is so small or large that products with it lose digits.
    """
    solution = result.solution / unit
    least, bound = jnp.min(scale), jnp.finfo(solution.dtype).maxexp
    is_in_range = (least <= 2.0 ** (bound - 24)) & (least >= 2.0 ** (8 - bound))
    size = jnp.max(jnp.abs(scaled(1 / scale, result.solution)), axis=0)
    lost = jnp.abs(scaled(1 / scale, solution * unit - result.solution))
    is_carried = jnp.all(lost <= jnp.finfo(solution.dtype).eps * size, axis=0)
    rank = jax.tree.map(lambda x: jnp.broadcast_to(x, unit.shape), result.rank)
    return result._replace(
        solution=solution,
        converged=result.converged & is_in_range & is_carried,
        residual_history=result.residual_history / unit,
        rank=rank,
    )
