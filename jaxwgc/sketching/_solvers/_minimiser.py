"""Derivatives of the minimiser of a convex loss, independent of the solver."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.implicit import solve_augmented
from jaxwgc.sketching._solvers._newton_problem import (
    Arguments,
    Functions,
    Problem,
    root_factors,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def minimiser(
    functions: Functions,
    unravel: Callable[[Array], Any],
    flat: Array,
    arguments: Arguments,
) -> Array:
    """Returns `flat` with the derivative of the point at which the gradient is zero."""
    del functions, unravel, arguments
    return flat


@minimiser.defjvp
def _minimiser_jvp(functions, unravel, primals, tangents):
    flat, arguments = primals

    def gradient(arguments: Arguments) -> Array:
        problem = Problem(functions, unravel, arguments)
        return jax.grad(problem.objective)(flat)

    _, gradient_change = jax.jvp(gradient, (arguments,), tangents[1:])
    # The Hessian is BᵀB + ridge I. The system is solved as least squares with B, which
    # is more accurate than with the product BᵀB.
    root = Problem(functions, unravel, arguments).root(flat)
    ridge = arguments.ridge
    factors = root_factors(root, ridge)
    zeros = jnp.zeros(root.shape[0], root.dtype)
    _, change = solve_augmented(Dense(root), ridge, factors, zeros, gradient_change)
    return minimiser(functions, unravel, flat, arguments), change
