"""Refinement of least squares by preconditioned conjugate gradients, and its end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product
from jaxwgc.sketching._operators import (
    Equilibrated,
    LinearOperator,
    residual_products,
)
from jaxwgc.sketching._solvers._orthonormalisers import ColumnScaling, Orthonormaliser
from jaxwgc.sketching._solvers._solution import is_shortest, record


class State(NamedTuple):
    """At a solution of which the residual itself was computed."""

    solution: jax.Array
    gradient: jax.Array
    in_range: jax.Array
    squared: jax.Array
    iteration: jax.Array
    history: jax.Array


class _Correction(NamedTuple):
    """A correction of a solution in the basis X P, and of its residual."""

    coordinates: jax.Array
    in_range: jax.Array
    search: jax.Array
    squared: jax.Array
    iteration: jax.Array
    history: jax.Array
    # With scales of columns alone: y - Xθ.
    residual: jax.Array | None


class Refinement(NamedTuple):
    """Least squares with an X of columns of norms next to 1.

    With an offset, Xᵀ(y - Xθ) is to be that in the place of zero.
    """

    matrix: Equilibrated | LinearOperator
    factors: Orthonormaliser | ColumnScaling
    tolerance: jax.Array
    target: jax.Array
    offset: jax.Array | None = None

    def solve(self, max_iterations: int) -> State:
        """Corrects a solution, from zero on, until it is stable."""

        def is_open(state: State) -> jax.Array:
            # The second step makes a direct solution as good as a refined one.
            is_early = (state.iteration < 2) & jnp.any(state.in_range != 0)
            # Without factors it would be one along what is left, which is rounding.
            is_early &= not isinstance(self.factors, ColumnScaling)
            is_open = is_early | ~self.is_solved(state)
            return is_open & self._may_go_on(state, max_iterations)

        history = jnp.zeros(max_iterations + 1, self.target.dtype)
        start = jnp.zeros(self.matrix.shape[1], self.target.dtype)
        return lax.while_loop(
            is_open,
            lambda state: self._corrected(state, max_iterations),
            self._state(start, jnp.int32(0), history),
        )

    def _corrected(self, state: State, max_iterations: int) -> State:
        """Returns a solution with half of the digits of what is in the range taken off.

        In exact arithmetic one correction to full accuracy would be all. But rounding
        of updates is relative to the residual that they start from, and directions are
        conjugate for so long only. Restarts from the residual itself mend both.
        """
        unit = float(jnp.finfo(state.solution.dtype).eps)
        bound = unit * jnp.sum(state.in_range**2)
        if isinstance(self.factors, ColumnScaling):
            # So many steps are needed that nothing that they have found may be lost.
            bound = 0 * bound

        def is_open(correction: _Correction) -> jax.Array:
            now = state._replace(
                in_range=correction.in_range, squared=correction.squared
            )
            # The updated residual is an estimate, and so there is a margin.
            is_open = self._backward_error(now) > self.tolerance / 4
            is_open &= jnp.sum(correction.in_range**2) > bound
            is_open |= correction.iteration == state.iteration
            return is_open & self._may_go_on(correction, max_iterations)

        correction = lax.while_loop(
            is_open,
            self._step,
            _Correction(
                coordinates=jnp.zeros_like(state.in_range),
                in_range=state.in_range,
                search=state.in_range,
                squared=state.squared,
                iteration=state.iteration,
                history=state.history,
                # The gradient of a residual has its rounding, which P blows up by the
                # condition number; an updated one has that of the update.
                residual=self.target - self.matrix.matvec(state.solution)
                if isinstance(self.factors, ColumnScaling)
                else None,
            ),
        )
        change = self.factors.shortest_direction(correction.coordinates)
        solution = state.solution + change
        return self._state(solution, correction.iteration, correction.history)

    def _step(self, state: _Correction) -> _Correction:
        """Takes a step of conjugate gradients, which updates the residual."""
        direction = self.factors.direction(state.search)
        energy = jnp.sum(state.in_range**2)
        residual = state.residual
        if residual is None:
            zeros = jnp.zeros_like(self.target)
            change, curvature = residual_products(self.matrix, zeros, direction)
            size = energy / jnp.where(curvature > 0, curvature, jnp.inf)
            in_range = state.in_range + size * self.factors.in_range(change)
        else:
            # As accurate as LSQR, which an updated gradient is not.
            image = self.matrix.matvec(direction)
            curvature = jnp.sum(image**2)
            size = energy / jnp.where(curvature > 0, curvature, jnp.inf)
            residual = residual - size * image
            in_range = self.matrix.rmatvec(residual)
        conjugation = jnp.sum(in_range**2) / jnp.where(energy > 0, energy, 1)
        # Near zero it is a difference of larger numbers.
        squared = jnp.maximum(state.squared - size * energy, 0)
        iteration = state.iteration + 1
        return _Correction(
            coordinates=state.coordinates + size * state.search,
            in_range=in_range,
            search=in_range + conjugation * state.search,
            squared=squared,
            iteration=iteration,
            history=record(state.history, iteration, jnp.sqrt(squared)),
            residual=residual,
        )

    def _state(
        self, solution: jax.Array, iteration: jax.Array, history: jax.Array
    ) -> State:
        gradient, squared = residual_products(self.matrix, self.target, solution)
        if self.offset is not None:
            gradient = gradient - self.offset
        in_range = self.factors.in_range(gradient)
        history = record(history, iteration, jnp.sqrt(squared))
        return State(solution, gradient, in_range, squared, iteration, history)

    def _may_go_on(self, state: State | _Correction, max_iterations: int) -> jax.Array:
        return jnp.isfinite(state.squared) & (state.iteration < max_iterations)

    def _backward_error(self, state: State) -> jax.Array:
        factors, solution = self.factors, state.solution
        return factors.backward_error(solution, state.in_range, state.squared)

    def _is_shortest(self, part: jax.Array, state: State) -> jax.Array:
        norm = jnp.linalg.norm(self.target)
        return is_shortest(part, state.squared, norm, self.tolerance)

    def is_solved(self, state: State) -> jax.Array:
        """Returns whether the solution is exact, as far as P can see."""
        is_stable = self._backward_error(state) <= self.tolerance
        # By scales of columns alone, a gradient says little of lengths.
        is_unknown = isinstance(self.factors, ColumnScaling)
        if self.offset is not None or is_unknown:
            return is_stable
        return is_stable & self._is_shortest(jnp.linalg.norm(state.in_range), state)

    def is_lowest(self, state: State) -> jax.Array:
        """Returns whether no step shortens the residual, by X itself.

        Singular values of a sketch may be far from those of X. So X is applied to the
        direction that matters, that of the gradient.
        """
        direction = self.factors.direction(state.in_range)
        norm = jnp.linalg.norm(direction)
        direction = direction / jnp.where(norm > 0, norm, 1)
        size = jnp.linalg.norm(self.matrix.matvec(direction))
        part = product(direction, state.gradient) / jnp.where(size > 0, size, 1)
        eps = jnp.finfo(part.dtype).eps
        # Below the rounding of Xθ, nothing is known of the residual.
        rounding = 4 * eps * self.factors.norm * jnp.linalg.norm(state.solution)
        # The shortest θ has a part in what was cut off: it may lengthen the residual.
        longer = -2 * product(self.factors.cut_off(state.solution), state.gradient)
        squared = part**2 + rounding**2 + jnp.maximum(longer, 0)
        is_low = self._is_shortest(jnp.sqrt(squared), state)
        # Where the gradient is all rounding, nothing may be left to see but this.
        growth = 1 + 2 * eps**0.5
        return is_low & (state.squared <= growth * jnp.sum(self.target**2))
