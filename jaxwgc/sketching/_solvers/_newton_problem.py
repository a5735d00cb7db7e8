"""Descent direction and line search of one Newton step with a sketched Hessian."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

from jaxwgc._common.arrays import product
from jaxwgc._common.conjugate_gradients import conjugate_gradients
from jaxwgc.sketching._linalg.factors import (
    Factors,
    factors_of_small,
    factors_of_unit_columns,
    root_of,
    solver_cutoff,
    unit_columns,
)
from jaxwgc.sketching._linalg.monitor import select
from jaxwgc.sketching._linalg.rows import diagonal, gram

# Armijo's constant: the share of the linear decrease that a step must reach.
_SUFFICIENT = 0.1
# Largest number of halvings of a step.
_MAX_HALVINGS = 40


class Point(NamedTuple):
    """Flat parameters, and the value and gradient of the objective at them."""

    flat: Array
    value: Array
    gradient: Array


class Problem(NamedTuple):
    """A loss plus a ridge as functions of flat parameters, and a root of the Hessian.

    Attributes:
      loss: `loss(params, *args) -> scalar`.
      square_root_hessian: `square_root_hessian(params, *args)`, B with BᵀB the Hessian.
      unravel: Converts flat parameters to `params`.
      args: Further arguments of the two functions.
      ridge: The ridge, or None.
    """

    loss: Callable[..., Array]
    square_root_hessian: Callable[..., Any]
    unravel: Callable[[Array], Any]
    args: tuple[Any, ...]
    ridge: Array | None

    def objective(self, flat: Array) -> Array:
        """Computes the loss plus half of the ridge times the squared norm."""
        loss = self.loss(self.unravel(flat), *self.args)
        weight = 0 if self.ridge is None else self.ridge
        return jnp.asarray(loss, flat.dtype) + weight / 2 * jnp.sum(flat**2)

    def at(self, flat: Array) -> Point:
        """Computes value and gradient of the objective at flat parameters."""
        value, gradient = jax.value_and_grad(self.objective)(flat)
        return Point(flat, value, gradient)

    def root(self, flat: Array) -> Array:
        """Returns a square root of the Hessian of the loss, without the ridge.

        The root is B (N, p), and BᵀB is the Hessian.
        """
        tree = self.square_root_hessian(self.unravel(flat), *self.args)
        columns = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate(columns, axis=1).astype(flat.dtype)

    def hessian(self, root: Array, vector: Array) -> Array:
        """Multiplies a vector by the Hessian with the ridge."""
        image = product(product(root, vector), root)
        return image if self.ridge is None else image + self.ridge * vector

    def direction(
        self, root: Array, small: Array, gradient: Array, num_steps: int
    ) -> tuple[Array, Array]:
        """Computes a descent direction from a sketched Hessian, then refines it.

        Also returns the norm of the part of the gradient outside of the row space of
        the sketch.
        """
        inverse = _inverse_root(small, self.ridge)
        preconditioned_gradient = product(gradient, inverse)
        change = -product(inverse, preconditioned_gradient)
        null_norm = jnp.linalg.norm(gradient + self.hessian(small, change))
        if num_steps:

            def preconditioned_hessian(vector: Array) -> Array:
                image = self.hessian(root, product(inverse, vector))
                return product(image, inverse)

            refined = conjugate_gradients(
                preconditioned_hessian,
                -preconditioned_gradient,
                max_iterations=num_steps,
                tolerance=float(jnp.finfo(gradient.dtype).eps),
            )
            refined = product(inverse, refined)
            # Squares of a very large or small gradient overflow or underflow. The
            # direction is then not refined.
            is_usable = jnp.isfinite(refined).all() & (refined != 0).any()
            change = jnp.where(is_usable, refined, change)
        return change, null_norm

    def line_search(
        self, point: Point, change: Array, slope: Array, rounding: Array
    ) -> tuple[Point, Array]:
        """Returns the next point, and whether the search failed.

        A step is accepted by Armijo's rule. If values differ only by rounding errors,
        the slope after the step decides: Hager and Zhang, "A new conjugate gradient
        method with guaranteed descent and an efficient line search", SIAM J. Optim. 16
        (2005), equation 4.1. For a quadratic function, this is Armijo's rule.
        """
        magnitude = jnp.abs(point.value)
        noise = 4 * jnp.finfo(change.dtype).eps * magnitude
        noise += jnp.sqrt(2 * magnitude) * rounding
        steepest = (2 * _SUFFICIENT - 1) * slope

        def is_too_long(search: _Search) -> Array:
            value = search.point.value
            is_lower = value <= point.value + _SUFFICIENT * search.size * slope
            is_flat = product(change, search.point.gradient) <= steepest
            is_lower |= (value <= point.value + noise) & is_flat
            # A step to a value of NaN counts as too long.
            return ~is_lower & (search.num_halvings < _MAX_HALVINGS)

        def halve(search: _Search) -> _Search:
            size = search.size / 2
            new_point = self.at(point.flat + size * change)
            return _Search(new_point, size, search.num_halvings + 1)

        # The search starts at twice the full step, with a value of NaN. The first
        # iteration takes the full step. So the loss is compiled once, in the loop.
        before = point._replace(value=jnp.full_like(point.value, jnp.nan))
        start = _Search(before, jnp.full((), 2, change.dtype), jnp.int32(-1))
        end = lax.while_loop(is_too_long, halve, start)
        has_failed = end.num_halvings == _MAX_HALVINGS
        has_failed |= ~jnp.isfinite(end.point.value)
        return select(has_failed, point, end.point), has_failed


class _Search(NamedTuple):
    """State of the line search: the point after a step, and the size of the step."""

    point: Point
    size: Array
    num_halvings: Array


def root_factors(root: Array, ridge: Array | None) -> Factors:
    """Computes singular values and vectors of a Hessian root stacked on √ridge I."""
    rcond = solver_cutoff(root.shape, root.dtype)
    return factors_of_small(root, rcond, root_ridge=root_of(ridge))


def _inverse_root(small: Array, ridge: Array | None) -> Array:
    """Returns a square root of the inverse of a sketched Hessian with its ridge.

    Returns W for which W Wᵀ is (BᵀB + ridge I)⁺, with a sketch B.
    """
    # Both factorisations below start from columns scaled to norms near 1.
    columns = unit_columns(small, root_ridge=root_of(ridge))

    def robust(_: None) -> Array:
        rcond = solver_cutoff(small.shape, small.dtype)
        factors = factors_of_unit_columns(columns, rcond)
        return factors.scale[:, None] * factors.inverse

    # A Cholesky factor is several times faster, and accurate enough for a direction
    # unless the matrix is nearly singular.
    lower = jnp.linalg.cholesky(gram(columns.array))
    smallest = jnp.min(diagonal(lower)) ** 2
    is_regular = smallest > 1e4 * jnp.finfo(small.dtype).eps

    def cheap(_: None) -> Array:
        identity = jnp.eye(small.shape[1], dtype=small.dtype)
        inverse = solve_triangular(lower, identity, lower=True)
        return columns.scale[:, None] * inverse.T

    # If there is no Cholesky factor, `smallest` is NaN, which counts as singular.
    return lax.cond(is_regular, cheap, robust, None)
