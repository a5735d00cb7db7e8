"""The result of every solver."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching._scores._numerical_rank import NumericalRank


class Solution(NamedTuple):
    """The result of an iterative solver, of fixed shapes, so that it passes `jax.jit`.

    For least squares with a target (N, c), the c columns are solved as c systems:
    every field has them as its last axis.

    Attributes:
      solution: θ, of shape (p,), or a pytree like the parameters.
      num_iterations: how many iterations were made: int32.
      converged: whether the solver's own test was passed; the docstring of the solver
        says which. False if the result is not finite, and for least squares also if θ
        underflows in its dtype.
      residual_history: (max_iterations + 1,), from the starting point on: the norm of
        the residual, or the value of the objective where the docstring says so. After
        the last iteration its value is repeated.
      rank: the `NumericalRank` of X as the solver has seen it. Where it is ambiguous,
        rounding decides which singular values are cut off, and with it solution and
        derivatives; so it is where rows so heavy that all others are rounding hide
        directions, which `numerical_rank` counts. None from solvers that do not say.
    """

    solution: jax.Array
    num_iterations: jax.Array
    converged: jax.Array
    residual_history: jax.Array
    rank: NumericalRank | None = None


def every_target(
    solve: Callable[..., Solution], target: jax.Array, scale: jax.Array
) -> Solution:
    """Solves for y, or for every column of y, with the columns as the last axis.

    Each is brought to size 1 by a power of two, against overflow of squares.

    Args:
      solve: solves for one y of size 1, and takes the power of two as well.
      target: y, (N,) or (N, c).
      scale: as in `in_units`.
    """

    def scaled(target: jax.Array) -> Solution:
        unit = inverse_power_of_two(jnp.max(jnp.abs(lax.stop_gradient(target))))
        return in_units(solve(target * unit, unit), unit, scale)

    if target.ndim == 1:
        return scaled(target)
    return jax.vmap(scaled, in_axes=-1, out_axes=-1)(target)


def in_units(result: Solution, unit: jax.Array, scale: jax.Array) -> Solution:
    """Returns the solution for y from the one for y * `unit`.

    `converged` becomes False if θ overflows, or if what underflows is more than
    rounding of θ / `scale`, where scales bring the columns of X to one size. Also if X
    is so small or large that products with it lose digits.
    """
    solution = result.solution / unit
    least, bound = jnp.min(scale), jnp.finfo(solution.dtype).maxexp
    is_in_range = (least <= 2.0 ** (bound - 24)) & (least >= 2.0 ** (8 - bound))
    rounding = jnp.finfo(solution.dtype).eps * jnp.max(jnp.abs(result.solution) / scale)
    is_carried = jnp.abs(solution * unit - result.solution) / scale <= rounding
    return result._replace(
        solution=solution,
        converged=result.converged & is_in_range & is_carried.all(),
        residual_history=result.residual_history / unit,
    )


def is_shortest(
    part: jax.Array, squared: jax.Array, norm: jax.Array, tolerance: jax.Array | float
) -> jax.Array:
    """Returns whether a residual without this part of it would be hardly shorter.

    Where X is at the limits of the precision, this asks for more than a small backward
    error.

    Args:
      part: the length of the part.
      squared: the squared length of the residual.
      norm: that of y.
      tolerance: of the backward error.
    """
    unit = float(jnp.finfo(part.dtype).eps)
    squared = jnp.maximum(squared, part**2)
    both = jnp.sqrt(squared) + jnp.sqrt(squared - part**2)
    excess = part**2 / jnp.where(both > 0, both, 1)
    return excess <= jnp.maximum(unit**0.5 / 8, tolerance) * norm


def record(history: jax.Array, iteration: jax.Array, value: jax.Array) -> jax.Array:
    """Returns a history with this value from that iteration on."""
    return jnp.where(jnp.arange(history.size) >= iteration, value, history)
