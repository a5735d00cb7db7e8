"""The result of every solver."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc.sketching._scores._numerical_rank import NumericalRank


class Solution(NamedTuple):
    """The result of an iterative solver, of fixed shapes, so that it passes `jax.jit`.

    For least squares with a target (N, c), the c columns are solved as c systems:
    every field has them as its last axis.

    Attributes:
      solution: θ, of shape (p,), or a pytree like the parameters.
      num_iterations: how many iterations were made: int32.
      converged: whether the solver's own test was passed; the docstring of the solver
        says which. False wherever the result is not finite.
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


def every_target(solve: Callable[..., Solution], *targets: jax.Array) -> Solution:
    """Solves for y, or for every column of y, with the columns as the last axis."""
    if targets[0].ndim == 1:
        return solve(*targets)
    return jax.vmap(solve, in_axes=-1, out_axes=-1)(*targets)


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
