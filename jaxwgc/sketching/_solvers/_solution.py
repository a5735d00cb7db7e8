"""The result of a solver."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.factors import Factors, NumericalRank
from jaxwgc.sketching._linalg.rows import scaled
from jaxwgc.sketching._linalg.scaled_system import ColumnScaling


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


class ScaledSolution(NamedTuple):
    """The result of iterations in scaled columns.

    Attributes:
      solution: θ / scale, (p,) or (p, c).
      squared: The squared norm of the residual. If it is not finite, θ is invalid.
      iteration: The number of iterations.
      converged: See `Solution`.
      history: The `residual_history` of a `Solution`.
      factors: The `Factors` or `ColumnScaling` of the preconditioner.
    """

    solution: Array
    squared: Array
    iteration: Array
    converged: Array
    history: Array
    factors: Factors | ColumnScaling

    def unscaled(self) -> Solution:
        """Returns the `Solution`, with θ NaN if the residual is not finite."""
        solution = scaled(self.factors.scale, self.solution)
        return Solution(
            solution=jnp.where(jnp.isfinite(self.squared), solution, jnp.nan),
            num_iterations=self.iteration,
            converged=self.converged,
            residual_history=self.history,
            rank=self.factors.rank,
        )


def in_units(result: Solution, to_unit: Array, scale: Array) -> Solution:
    """Converts the solution for y * `to_unit` to the solution for y, (N,) or (N, c).

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
