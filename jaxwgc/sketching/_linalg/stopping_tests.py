"""Stopping tests of least squares: the backward error, and the excess of a residual."""

import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.monitor import Criterion
from jaxwgc.sketching._linalg.points import Point
from jaxwgc.sketching._linalg.rows import safe, scaled


def backward_error(factors: Factors, point: Point, s: Array) -> Array:
    """Computes Karlson and Waldén's estimate of the backward error, relative to ‖X‖.

    Args:
      factors: The factors of X or of a sketch.
      point: The point.
      s: Pᵀ times the gradient of the point, where P is the inverse of the factors.
    """
    values = factors.singular_values
    squared_size = jnp.sum(point.x**2, axis=0)
    weight = jnp.multiply.outer(values**2, squared_size) + point.squared
    shares = scaled(values, s) / jnp.sqrt(safe(weight))
    return jnp.linalg.norm(shares, axis=0) / factors.norm


def residual_excess(
    squared: Array, removable: Array, target_norm: Array, tolerance: Array
) -> Criterion:
    """Computes by how much the norm of a residual exceeds that without a part of it.

    If X is at the limits of the precision, this criterion is stricter than a small
    backward error.

    Args:
      squared: ‖r‖².
      removable: The part of ‖r‖² that an exact solution would remove.
      target_norm: ‖y‖. The excess must be small in units of it.
      tolerance: Tolerance of the backward error.
    """
    root_eps = float(jnp.finfo(removable.dtype).eps) ** 0.5
    squared = jnp.maximum(squared, removable)
    norms = jnp.sqrt(squared) + jnp.sqrt(squared - removable)
    return Criterion(
        error=removable / jnp.where(norms > 0, norms, 1),
        tolerance=tolerance * target_norm,
        floor=root_eps / 8 * target_norm,
    )
