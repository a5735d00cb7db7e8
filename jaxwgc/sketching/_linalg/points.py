"""A point of least squares, with its residual updated along a line."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxwgc.sketching._linalg.matrix import LineProducts


class Point(NamedTuple):
    """x = θ / scale of each system, and its residual r = b - Ax.

    A is X diag(scale) stacked on √ridge diag(scale), and b is y padded with zeros.

    Attributes:
      x: (p,) or (p, c).
      gradient: Aᵀr minus its required value, which is zero for least squares.
      squared: ‖r‖², () or (c,).
    """

    x: Array
    gradient: Array
    squared: Array


def moved_point(
    x: Array,
    products: LineProducts,
    direction: Array,
    step: Array,
    required_gradient: Array | None,
) -> tuple[Point, Array]:
    """Returns the point at x + step * direction, from the products at x.

    Also returns whether its ‖r‖² has lost its digits, as the small difference of large
    numbers.

    Args:
      x: The x of the products.
      products: `LineProducts` with A.
      direction: The direction of the products.
      step: The length of the step.
      required_gradient: The required value of Aᵀr, or None for zero.
    """
    slope = jnp.sum(direction * products.gradient, axis=0)
    decrease = step * (2 * slope - step * products.curvature)
    squared = jnp.maximum(products.squared - decrease, 0)
    gradient = products.gradient
    if required_gradient is not None:
        gradient = gradient - required_gradient
    point = Point(
        x=x + step * direction,
        gradient=gradient - step * products.image,
        squared=squared,
    )
    return point, products.squared > 100 * squared
