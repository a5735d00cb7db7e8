"""Least squares by conjugate gradients, preconditioned by factors."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc._arrays import product
from jaxwgc.sketching._linalg.orthonormalise import Factors, scaled
from jaxwgc.sketching._linalg.rows import Products


class State(NamedTuple):
    """θ / scale of each system, its residual, and the next search direction.

    Attributes:
      solution, gradient: (p,) or (p, c), in the units of scaled columns.
      squared: () or (c,), the squared norm of the residual, including the ridge.
      exact: The part of the residual in the range of X, in the basis X P.
      in_range: The part in the range of X, as updated by conjugate gradients.
      search: The direction of the next step in that basis.
      start: The squared norm of the part that updates started from.
      is_fresh: Whether updates restart.
      gain: The decrease of the squared norm in the last step.
      length: The length of the last step, 1 if the factors are exact.
      iteration: int32, () or (c,).
      history: (max_iterations + 1,) or (max_iterations + 1, c), norms of the residual.
    """

    solution: Array
    gradient: Array
    squared: Array
    exact: Array
    in_range: Array
    search: Array
    start: Array
    is_fresh: Array
    gain: Array
    length: Array
    iteration: Array
    history: Array


class Refinement(NamedTuple):
    """Least squares with X diag(scale) stacked on `root` diag(scale).

    Each iteration is one pass over X. It takes a step and recomputes the residual, so
    that rounding of earlier steps does not accumulate.

    Attributes:
      rows: X.
      factors: The factors of X or a sketch.
      tolerance: Tolerance of the backward error.
      target: y, (N,) or (N, c).
      root: √ridge, or None.
      offset: The required value of Xᵀ(y - Xθ) in scaled columns, instead of zero.
      at_zero: Xᵀy and yᵀy, if known before the first pass.
    """

    rows: Products
    factors: Factors
    tolerance: Array
    target: Array
    root: Array | None = None
    offset: Array | None = None
    at_zero: tuple[Array, Array] | None = None

    def solve(self, max_iterations: int) -> State:
        """Refines θ = 0 until it is backward stable."""
        factors, row_space = self.factors, self.factors.row_space()
        shape = factors.scale.shape + self.target.shape[1:]
        systems, dtype = shape[1:], self.target.dtype
        zeros = jnp.zeros(shape, dtype)
        coordinates = jnp.zeros((factors.vectors.shape[1], *systems), dtype)
        # The first pass stays at zero, so that the program has one copy of a pass.
        start = State(
            solution=zeros,
            gradient=zeros,
            squared=jnp.zeros(systems, dtype),
            exact=coordinates,
            in_range=coordinates,
            search=coordinates,
            start=jnp.zeros(systems, dtype),
            is_fresh=jnp.ones(systems, bool),
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
                exact=in_range,
                in_range=in_range,
                search=in_range,
                start=jnp.sum(in_range**2, axis=0),
                iteration=start.iteration + 1,
                history=start.history + jnp.sqrt(squared),
            )

        def is_open(state: State) -> Array:
            is_early = (state.iteration < 2) & jnp.any(state.exact != 0, axis=0)
            # The second step makes a direct solution as accurate as a refined one.
            is_open = is_early | ~self.is_solved(state) | ~state.is_fresh
            is_open &= jnp.isfinite(state.squared) & (state.iteration < max_iterations)
            return is_open | (state.iteration < 0)

        def step(state: State) -> State:
            is_moving = is_open(state)
            direction = factors.direction(state.search, row_space) * is_moving
            # The pass is near the end of the step, so that the residual is recomputed,
            # not updated.
            trial = state.solution + state.length * direction
            gradient, squared, image, curvature = self._look(trial, direction)
            energy = jnp.sum(state.in_range**2, axis=0)
            size = energy / jnp.where(curvature > 0, curvature, jnp.inf)
            more = jnp.where(is_moving, size - state.length, 0)
            ahead = jnp.sum(direction * gradient, axis=0)
            longer, change = squared, more * (2 * ahead - more * curvature)
            squared = jnp.maximum(squared - change, 0)
            # A small difference of large numbers is no valid length: the next pass
            # decides.
            is_lost = longer > 100 * squared
            gain = jnp.where(is_lost, jnp.inf, size * energy)
            gradient = gradient - more * image
            exact = factors.in_range(gradient)
            updated = state.in_range - size * factors.in_range(image)
            new_energy = jnp.sum(updated**2, axis=0)
            # Rounding of updates is relative to the residual at their start. Rounding
            # of a gradient reduces the conjugacy of directions. So updates restart
            # after half of the digits.
            is_fresh = new_energy <= jnp.finfo(energy.dtype).eps * state.start
            is_fresh |= self._backward_error(
                state._replace(exact=updated, squared=squared)
            ) <= (self.tolerance / 4)
            in_range = jnp.where(is_fresh, exact, updated)
            turn = new_energy / jnp.where(energy > 0, energy, jnp.inf)
            turn = jnp.where(is_fresh, 0, turn)
            iteration = state.iteration + is_moving
            new = State(
                solution=trial + more * direction,
                gradient=gradient,
                squared=squared,
                exact=exact,
                in_range=in_range,
                search=in_range + turn * state.search,
                start=jnp.where(is_fresh, jnp.sum(exact**2, axis=0), state.start),
                is_fresh=is_fresh,
                gain=gain,
                length=jnp.where(size > 0, size, state.length),
                iteration=iteration,
                history=record(state.history, iteration, jnp.sqrt(squared)),
            )
            return jax.tree.map(functools.partial(jnp.where, is_moving), new, state)

        return self.rows.while_loop(lambda state: jnp.any(is_open(state)), step, start)

    def _look(self, solution: Array, direction: Array) -> tuple[Array, ...]:
        """Computes gradient and value at θ, and their changes along a direction."""
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
        """Computes Karlson and Waldén's estimate of the backward error over ‖X‖."""
        values = self.factors.singular_values
        weight = jnp.sum(state.solution**2, axis=0)
        weight = jnp.multiply.outer(values**2, weight) + state.squared
        shares = scaled(values, state.exact)
        shares = shares / jnp.sqrt(jnp.where(weight > 0, weight, 1))
        return jnp.linalg.norm(shares, axis=0) / self.factors.norm

    def is_solved(self, state: State) -> Array:
        """Tests whether the solution is exact, measured by the factors."""
        is_stable = self._backward_error(state) <= self.tolerance
        is_stable &= jnp.isfinite(state.gain)
        if self.offset is not None:
            return is_stable
        # The last step of conjugate gradients may be the longest one.
        part = jnp.maximum(jnp.sum(state.exact**2, axis=0), state.gain)
        return is_stable & self._is_shortest(jnp.sqrt(part), state)

    def _is_shortest(self, part: Array, state: State) -> Array:
        squares = self.rows.total(jnp.sum(self.target**2, axis=0))
        return is_shortest(part, state.squared, jnp.sqrt(squares), self.tolerance)

    def is_lowest(self, state: State, is_sketched: bool) -> Array:
        """Tests whether the residual is near its minimum, measured by X.

        Singular values of a sketch may be far from those of X. So X is applied to the
        direction of the gradient.
        """
        gain = state.gain
        if is_sketched:
            energy = jnp.sum(state.exact**2, axis=0)
            direction = product(self.factors.matrix, state.exact)
            size = self.rows.length(scaled(self.factors.scale, direction))
            gain = jnp.maximum(gain, (energy / jnp.where(size > 0, size, 1)) ** 2)
        eps = jnp.finfo(state.squared.dtype).eps
        # The residual is unknown below the rounding of Xθ.
        size = self.factors.norm * jnp.linalg.norm(state.solution, axis=0)
        # The part of θ in truncated directions may lengthen the residual.
        hidden = self.factors.cut_off(state.solution)
        longer = -2 * jnp.sum(hidden * state.gradient, axis=0)
        part = gain + (4 * eps * size) ** 2 + jnp.maximum(longer, 0)
        is_low = self._is_shortest(jnp.sqrt(part), state)
        # If the gradient is rounding alone, only this part remains.
        growth = 1 + 2 * eps**0.5
        squares = self.rows.total(jnp.sum(self.target**2, axis=0))
        return is_low & (state.squared <= growth * squares)


def is_shortest(
    part: Array, squared: Array, norm: Array, tolerance: Array | float
) -> Array:
    """Tests whether removing a part of the residual would hardly shorten it.

    If X is at the limits of the precision, this is stricter than a small backward
    error.

    Args:
      part: The length of the part.
      squared: The squared length of the residual.
      norm: The norm of y.
      tolerance: Tolerance of the backward error.
    """
    unit = float(jnp.finfo(part.dtype).eps)
    squared = jnp.maximum(squared, part**2)
    both = jnp.sqrt(squared) + jnp.sqrt(squared - part**2)
    excess = part**2 / jnp.where(both > 0, both, 1)
    return excess <= jnp.maximum(unit**0.5 / 8, tolerance) * norm


def record(history: Array, iteration: Array, value: Array) -> Array:
    """Sets a history to `value` from `iteration` on."""
    places = jnp.arange(len(history)).reshape(-1, *[1] * value.ndim)
    return jnp.where(places >= iteration, value, history)
