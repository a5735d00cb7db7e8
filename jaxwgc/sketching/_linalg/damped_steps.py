"""Damped steps, which follow if rounding of the gradient dominates a solution.

Rounding of Xᵀr changes θ by up to eps ‖X‖ ‖r‖ / s² along a singular vector. If that
exceeds ‖θ‖, each step of conjugate gradients replaces one such change by another, and
the rounding of both remains in Xᵀr. Damped steps minimise ‖r - Xd‖² + ω² ‖d‖² instead,
for ω = ‖r‖ / ‖θ‖. Their preconditioner V (s² + ω²)^(-1/2) is that of Karlson and
Waldén's estimate of the backward error. So they lower the backward error, and change θ
little along singular values below ω.
"""

import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.points import Point
from jaxwgc.sketching._linalg.rows import safe, scaled

# Share of the tolerance of the backward error that damped steps have to reach.
DAMPED_SHARE = 1 / 64


def required_damping(factors: Factors, point: Point) -> Array:
    """Computes ω² for damped steps from a solved point, or 0 if none are needed."""
    values = factors.singular_values
    smallest = jnp.min(jnp.where(values > 0, values, jnp.inf))
    squared = point.squared / safe(jnp.sum(point.x**2, axis=0))
    rounding = jnp.finfo(values.dtype).eps * factors.norm
    is_needed = smallest**2 <= rounding * jnp.sqrt(squared)
    return jnp.where(is_needed, squared, 0)


def damping_weights(factors: Factors, damping: Array) -> Array:
    """Computes s / √(s² + ω²), (p,) or (p, c).

    P times these weights is the preconditioner of damped steps, V (s² + ω²)^(-1/2).
    """
    values = factors.singular_values
    squares = jnp.add.outer(values**2, damping)
    return scaled(values, 1 / jnp.sqrt(safe(squares)))
