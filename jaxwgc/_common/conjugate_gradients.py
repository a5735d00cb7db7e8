"""Steps of the conjugate gradient method.

Letters are those of Björck, "Numerical methods for least squares problems" (SIAM,
1996), algorithm 7.4.1 (CGLS), which minimises ‖Ax - b‖ for r = b - Ax:

    α = γ / ‖Ap‖²,  x ← x + αp,  r ← r - αAp,
    s = Aᵀr,  β = ‖s‖² / γ,  γ ← ‖s‖²,  p ← s + βp.

For a system Mx = b with M positive semidefinite, s = b - Mx and ‖Ap‖² is pᵀMp.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import squares


class CGState(NamedTuple):
    """State of the conjugate gradient method, without solution and residual.

    Attributes:
      s: Aᵀr, one vector per system.
      p: The search direction.
      gamma: ‖s‖² of each system, real.
    """

    s: Array
    p: Array
    gamma: Array


def cg_start(s: Array, axis: int = 0) -> CGState:
    """Returns the state before the first step, with search direction s."""
    return CGState(s=s, p=s, gamma=jnp.sum(squares(s), axis=axis))


def step_length(state: CGState, curvature: Array) -> Array:
    """Computes the step length γ / curvature, 0 if the curvature is not positive.

    The length is α for the curvature ‖Ap‖².
    """
    return state.gamma / jnp.where(curvature > 0, curvature, jnp.inf)


def cg_step(state: CGState, s: Array, axis: int = 0) -> CGState:
    """Returns the next state, with the vector s that follows from the step."""
    gamma = jnp.sum(squares(s), axis=axis)
    beta = gamma / jnp.where(state.gamma > 0, state.gamma, jnp.inf)
    return CGState(s=s, p=s + jnp.expand_dims(beta, axis) * state.p, gamma=gamma)


def conjugate_gradients(
    times: Callable[[Array], Array],
    right: Array,
    max_iterations: int,
    tolerance: float = 0.0,
) -> Array:
    """Solves one linear system Mx = b with a positive semidefinite matrix M.

    Iterations start at x = 0.

    Args:
      times: Returns Mx. M is symmetric and positive semidefinite.
      right: b, an array of any shape.
      max_iterations: The largest number of steps.
      tolerance: Iterations stop if ‖b - Mx‖ is at most this multiple of ‖b‖.
    """
    bound = tolerance**2 * jnp.sum(right**2)

    def is_running(carry: tuple[Array, CGState, Array]) -> Array:
        _, state, iteration = carry
        return (state.gamma > bound) & (iteration < max_iterations)

    def step(carry: tuple[Array, CGState, Array]) -> tuple[Array, CGState, Array]:
        x, state, iteration = carry
        image = times(state.p.reshape(right.shape)).reshape(-1)
        alpha = step_length(state, jnp.sum(state.p * image))
        x = x + alpha * state.p
        state = cg_step(state, state.s - alpha * image)
        return x, state, iteration + 1

    start = cg_start(right.reshape(-1))
    zeros = jnp.zeros_like(start.s)
    x, *_ = lax.while_loop(is_running, step, (zeros, start, jnp.int32(0)))
    return x.reshape(right.shape)
