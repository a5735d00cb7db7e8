"""Derivatives of the minimiser of a convex loss, independent of the solver."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.implicit import solve_augmented
from jaxwgc.sketching._solvers._newton_problem import Problem, root_factors


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def minimiser(functions: Any, unravel: Any, flat: Array, given: Any) -> Array:
    """Returns `flat` with the derivative of the point at which the gradient is zero."""
    del functions, unravel, given
    return flat


@minimiser.defjvp
def _minimiser_jvp(functions, unravel, primals, tangents):
    flat, given = primals
    loss, root_of_hessian = functions

    def problem_of(given):
        args, ridge = given
        return Problem(unravel, loss, root_of_hessian, args, ridge)

    def gradient(given):
        return jax.grad(problem_of(given).objective)(flat)

    _, change = jax.jvp(gradient, (given,), tangents[1:])
    # The Hessian is BᵀB, so that this is a least-squares system. It is solved with the
    # accuracy of least squares.
    root = problem_of(given).root(flat)
    _, ridge = given
    factors = root_factors(root, ridge)
    zeros = jnp.zeros(root.shape[0], root.dtype)
    flat = minimiser(functions, unravel, flat, given)
    return flat, solve_augmented(Dense(root), ridge, factors, zeros, change)[1]
