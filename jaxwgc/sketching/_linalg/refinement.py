"""Least squares by conjugate gradients with factors that nearly solve them."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxwgc._arrays import product
from jaxwgc.sketching._linalg.orthonormalise import Factors, scaled
from jaxwgc.sketching._linalg.rows import Products


class State(NamedTuple):
    """θ / scale of each system, the residual there, and where to go next.

    Attributes:
      solution, gradient: (p,) or (p, c), in the units of scaled columns.
      squared: () or (c,), the squared norm of the residual, with the ridge.
      in_range: The part of the residual in the range of X, in the basis X P.
      search: The direction of the next step in that basis.
      gain: By how much the last step shortened the squared norm.
      length: That of a step, 1 if the factors are exact.
      iteration: int32, () or (c,).
      history: (max_iterations + 1,) or (max_iterations + 1, c), norms of the residual.
    """

    solution: Array
    gradient: Array
    squared: Array
    in_range: Array
    search: Array
    gain: Array
    length: Array
    iteration: Array
    history: Array


class Refinement(NamedTuple):
    """Least squares with X diag(scale) on top of `root` diag(scale).

    Each iteration is one pass over X, which takes a step and computes the residual
    there anew: so rounding of earlier steps does no harm.

    Attributes:
      rows: X.
      factors: Of X or a sketch.
      tolerance: Of the backward error.
      target: y, (N,) or (N, c).
      root: √ridge, or None.
      offset: What Xᵀ(y - Xθ), in scaled columns, is to be in the place of zero.
      at_zero: Xᵀy and yᵀy, if they are known before the first pass.
    """

    rows: Products
    factors: Factors
    tolerance: Array
    target: Array
    root: Array | None = None
    offset: Array | None = None
    at_zero: tuple[Array, Array] | None = None

    def solve(self, max_iterations: int) -> State:
        """Improves θ = 0 until it is stable."""
        factors, row_space = self.factors, self.factors.row_space()
        shape = factors.scale.shape + self.target.shape[1:]
        systems, dtype = shape[1:], self.target.dtype
        zeros = jnp.zeros(shape, dtype)
        coordinates = jnp.zeros((factors.vectors.shape[1], *systems), dtype)
        # The first pass stays at zero, so that the loop has the only copy of a pass.
        start = State(
            solution=zeros,
            gradient=zeros,
            squared=jnp.zeros(systems, dtype),
            in_range=coordinates,
            search=coordinates,
            gain=jnp.zeros(systems, dtype),
            length=jnp.ones(systems, dtype),
            iteration=jnp.full(systems, -1),
            history=jnp.zeros((max_iterations + 1, *systems), dtype),
        )

        if self.at_zero is not None:
            gradient, squared = self.at_zero
            gradient = scaled(factors.scale, gradient)
            in_range = factors.in_range(gradient)
            start = start._replace(
                gradient=gradient,
                squared=squared,
                in_range=in_range,
                search=in_range,
                iteration=start.iteration + 1,
                history=start.history + jnp.sqrt(squared),
            )

        def is_open(state: State) -> Array:
            is_early = (state.iteration < 2) & jnp.any(state.in_range != 0, axis=0)
            # The second step makes a direct solution as good as a refined one.
            is_open = is_early | ~self.is_solved(state)
            is_open &= jnp.isfinite(state.squared) & (state.iteration < max_iterations)
            return is_open | (state.iteration < 0)

        def step(state: State) -> State:
            is_moving = is_open(state)
            direction = factors.direction(state.search, row_space)
            direction = direction * (state.length * is_moving)
            # The full step is right but for what the factors miss. The pass looks where
            # it ends, so that the residual there is not an update of another one.
            trial = state.solution + direction
            gradient, squared, image, curvature = self._look(trial, direction)
            ahead = jnp.sum(direction * gradient, axis=0)
            more = ahead / jnp.where(curvature > 0, curvature, jnp.inf)
            # Below rounding, the place that was looked at is as good.
            more = jnp.where(jnp.abs(more) > 1e-3, more, 0)
            gradient = gradient - more * image
            longer, change = squared, more * (2 * ahead - more * curvature)
            squared = jnp.maximum(squared - change, 0)
            in_range = factors.in_range(gradient)
            energy = jnp.sum(state.in_range**2, axis=0)
            turn = jnp.sum(in_range * (in_range - state.in_range), axis=0)
            turn = jnp.maximum(turn / jnp.where(energy > 0, energy, jnp.inf), 0)
            # A small difference of large numbers is no length: the next pass will tell.
            is_lost = longer > 100 * squared
            gain = jnp.where(is_lost, jnp.inf, (1 + more) ** 2 * curvature)
            length = jnp.where(more > -1, state.length * (1 + more), state.length)
            iteration = state.iteration + is_moving
            return State(
                solution=trial + more * direction,
                gradient=gradient,
                squared=squared,
                in_range=in_range,
                search=in_range + turn * state.search,
                gain=jnp.where(is_moving, gain, state.gain),
                length=jnp.where(is_moving, length, state.length),
                iteration=iteration,
                history=record(state.history, iteration, jnp.sqrt(squared)),
            )

        return self.rows.while_loop(lambda state: jnp.any(is_open(state)), step, start)

    def _look(self, solution: Array, direction: Array) -> tuple[Array, ...]:
        """Returns gradient and value at θ, and what a direction changes of both."""
        scale = self.factors.scale
        pair = scaled(scale, solution), scaled(scale, direction)
        gradient, squared, image, curvature = self.rows.residual_products(
            self.target, *pair
        )
        if self.root is not None:
            pulled, moved = (self.root * part for part in pair)
            gradient -= self.root * pulled
            image += self.root * moved
            squared += jnp.sum(pulled**2, axis=0)
            curvature += jnp.sum(moved**2, axis=0)
        gradient, image = scaled(scale, gradient), scaled(scale, image)
        if self.offset is not None:
            gradient -= self.offset
        return gradient, squared, image, curvature

    def _backward_error(self, state: State) -> Array:
        """Returns Karlson and Waldén's estimate of it, as a share of the norm of X."""
        values = self.factors.singular_values
        weight = jnp.sum(state.solution**2, axis=0)
        weight = jnp.multiply.outer(values**2, weight) + state.squared
        shares = scaled(values, state.in_range)
        shares = shares / jnp.sqrt(jnp.where(weight > 0, weight, 1))
        return jnp.linalg.norm(shares, axis=0) / self.factors.norm

    def is_solved(self, state: State) -> Array:
        """Returns whether the solution is exact, as far as the factors can see."""
        is_stable = self._backward_error(state) <= self.tolerance
        is_stable &= jnp.isfinite(state.gain)
        if self.offset is not None:
            return is_stable
        # Of conjugate gradients, the last step may be the longest one.
        part = jnp.maximum(jnp.sum(state.in_range**2, axis=0), state.gain)
        return is_stable & self._is_shortest(jnp.sqrt(part), state)

    def _is_shortest(self, part: Array, state: State) -> Array:
        squares = self.rows.total(jnp.sum(self.target**2, axis=0))
        return is_shortest(part, state.squared, jnp.sqrt(squares), self.tolerance)

    def is_lowest(self, state: State, is_sketched: bool) -> Array:
        """Returns whether the residual can hardly be shorter, by X itself.

        Singular values of a sketch may be far from those of X. So X is applied to the
        direction that matters, that of the gradient.
        """
        gain = state.gain
        if is_sketched:
            energy = jnp.sum(state.in_range**2, axis=0)
            direction = product(self.factors.matrix, state.in_range)
            size = self.rows.length(scaled(self.factors.scale, direction))
            gain = jnp.maximum(gain, (energy / jnp.where(size > 0, size, 1)) ** 2)
        eps = jnp.finfo(state.squared.dtype).eps
        # Below the rounding of Xθ, nothing is known of the residual.
        size = self.factors.norm * jnp.linalg.norm(state.solution, axis=0)
        # The shortest θ has a part in what was cut off: it may lengthen the residual.
        hidden = self.factors.cut_off(state.solution)
        longer = -2 * jnp.sum(hidden * state.gradient, axis=0)
        part = gain + (4 * eps * size) ** 2 + jnp.maximum(longer, 0)
        is_low = self._is_shortest(jnp.sqrt(part), state)
        # If the gradient is all rounding, nothing may be left to see but this.
        growth = 1 + 2 * eps**0.5
        squares = self.rows.total(jnp.sum(self.target**2, axis=0))
        return is_low & (state.squared <= growth * squares)


def is_shortest(
    part: Array, squared: Array, norm: Array, tolerance: Array | float
) -> Array:
    """Returns whether a residual without this part of it would be hardly shorter.

    If X is at the limits of the precision, this asks for more than a small backward
    error.

    Args:
      part: The length of the part.
      squared: The squared length of the residual.
      norm: That of y.
      tolerance: Of the backward error.
    """
    unit = float(jnp.finfo(part.dtype).eps)
    squared = jnp.maximum(squared, part**2)
    both = jnp.sqrt(squared) + jnp.sqrt(squared - part**2)
    excess = part**2 / jnp.where(both > 0, both, 1)
    return excess <= jnp.maximum(unit**0.5 / 8, tolerance) * norm


def record(history: Array, iteration: Array, value: Array) -> Array:
    """Returns a history with this value from that iteration on."""
    places = jnp.arange(len(history)).reshape(-1, *[1] * value.ndim)
    return jnp.where(places >= iteration, value, history)
