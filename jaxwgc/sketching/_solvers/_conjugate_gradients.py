"""Conjugate gradients for least squares with a preconditioner, and when they end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._product import product
from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._solvers._orthonormalisers import Orthonormaliser
from jaxwgc.sketching._solvers._residuals import residual_products
from jaxwgc.sketching._solvers._solution import Solution, record


class _State(NamedTuple):
    solution: jax.Array
    gradient: jax.Array
    in_range: jax.Array
    direction: jax.Array
    squared: jax.Array
    iteration: jax.Array
    history: jax.Array


class _Problem(NamedTuple):
    """In the scaled unknowns θ / scale; in these, the ridge is `root` squared."""

    matrix: jax.Array
    target: jax.Array
    factors: Orthonormaliser
    root: jax.typing.ArrayLike
    tolerance: jax.Array

    def evaluate(self, solution: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Half of the negative gradient of what is minimised, and its value."""
        scale = self.factors.scale
        theta = scale * solution
        gradient, squared = residual_products(self.matrix, self.target, theta)
        pulled = self.root * solution
        return scale * gradient - self.root * pulled, squared + jnp.sum(pulled**2)

    def in_range(self, gradient: jax.Array) -> jax.Array:
        """The part of the residual in the range of X, in the basis X P."""
        return product(gradient, self.factors.matrix)

    def direction(self, in_range: jax.Array) -> jax.Array:
        """The step that takes this part off the residual, if X P is orthonormal."""
        return product(self.factors.matrix, in_range)

    def step(self, state: _State) -> _State:
        """One iteration.

        The gradient is that of the residual y - Xθ itself at the trial point, not one
        that is updated: rounding errors do not pile up, and the solution becomes as
        good as that of iterative refinement.
        """
        trial = state.solution + state.direction
        trial_gradient, trial_squared = self.evaluate(trial)
        curved = state.gradient - trial_gradient
        curvature = product(state.direction, curved)
        slope = product(state.direction, state.gradient)
        is_curved = curvature > 0
        rest = jnp.where(is_curved, 1 - slope / jnp.where(is_curved, curvature, 1), 0)
        solution = trial - rest * state.direction
        gradient = trial_gradient + rest * curved
        trial_slope = product(state.direction, trial_gradient)
        squared = trial_squared + rest * (2 * trial_slope + rest * curvature)
        # Near zero it is a difference of larger numbers.
        squared = jnp.maximum(squared, 0)
        in_range = self.in_range(gradient)
        change = product(in_range, in_range - state.in_range)
        last = jnp.sum(state.in_range**2)
        conjugation = jnp.maximum(change, 0) / jnp.where(last > 0, last, 1)
        direction = self.direction(in_range) + conjugation * state.direction
        iteration = state.iteration + 1
        history = record(state.history, iteration, jnp.sqrt(squared))
        return _State(
            solution, gradient, in_range, direction, squared, iteration, history
        )

    def slack(self, state: _State) -> jax.Array:
        """How much of the residual may be left in the range of X, as a length.

        As much as makes it longer by half the root of the rounding unit, as a share of
        it. Where the target is in the range, all that is left is rounding of X θ, which
        must not excuse a θ that is far too large.
        """
        unit = float(jnp.finfo(state.solution.dtype).eps)
        norm = jnp.linalg.norm(self.factors.singular_values)
        rounding = self.tolerance * norm * jnp.linalg.norm(state.solution)
        most = jnp.maximum(unit**0.5, self.tolerance) * jnp.linalg.norm(self.target)
        share = jnp.maximum(unit**0.25, self.tolerance)
        return share * jnp.sqrt(state.squared) + jnp.minimum(rounding, most)

    def is_solved(self, state: _State) -> jax.Array:
        """Whether the backward error is small, and the residual next to the least."""
        values = self.factors.singular_values
        weight = values**2 * jnp.sum(state.solution**2) + state.squared
        share = values * state.in_range / jnp.sqrt(jnp.where(weight > 0, weight, 1))
        is_stable = jnp.linalg.norm(share) <= self.tolerance * jnp.linalg.norm(values)
        return is_stable & (jnp.linalg.norm(state.in_range) <= self.slack(state))

    def is_lowest(self, state: _State, rcond: jax.Array) -> jax.Array:
        """Whether no step shortens the residual, seen by X itself.

        P may come from a sketch that misses a direction of X, or stretches one. So X is
        applied to the two directions that matter: that of the gradient as P sees it,
        and what P does not see of it at all, unless that is one that is cut off.
        """
        factors = self.factors
        seen = self.direction(self.in_range(state.gradient))
        unseen = factors.unseen(state.gradient)

        # A singular value of a sketch may be far from that of X.
        directions = jnp.stack([seen, unseen, factors.vectors[:, 0]])
        norms = jnp.linalg.norm(directions, axis=1, keepdims=True)
        directions = directions / jnp.where(norms > 0, norms, 1)
        images = product(directions * factors.scale, self.matrix.T)
        pulls = jnp.linalg.norm(directions * self.root, axis=1)
        sizes = jnp.hypot(jnp.linalg.norm(images, axis=1), pulls)
        is_low = product(directions, state.gradient) <= self.slack(state) * sizes
        is_cut_off = sizes[1] <= 2 * rcond * sizes[2]
        # Where the gradient is all rounding, nothing may be left to see but this.
        growth = 1 + 2 * jnp.finfo(sizes.dtype).eps ** 0.5
        is_worse = state.squared > growth * jnp.sum(self.target**2)
        return is_low[0] & (is_low[1] | is_cut_off) & ~is_worse


def conjugate_gradients(
    matrix: jax.Array,
    factors: Orthonormaliser,
    ridge: jax.Array | None,
    tolerance: jax.Array,
    rcond: jax.Array,
    max_iterations: int,
    target: jax.Array,
) -> Solution:
    """Conjugate gradients from zero, and on from where they end if that is not enough.

    At their end the change is made the shortest one, and the residual computed anew. In
    exact arithmetic that is all. It is not where columns of X depend on each other in
    units that are far apart, or where X is at the limits of the precision.
    """
    scale = factors.scale
    unit = inverse_power_of_two(jnp.max(jnp.abs(target)))
    root = 0 if ridge is None else jnp.sqrt(ridge) * scale
    problem = _Problem(matrix, target * unit, factors, root, tolerance)

    def start(solution: jax.Array, iteration: jax.Array, history: jax.Array) -> _State:
        gradient, squared = problem.evaluate(solution)
        in_range = problem.in_range(gradient)
        direction = problem.direction(in_range)
        history = record(history, iteration, jnp.sqrt(squared))
        return _State(
            solution, gradient, in_range, direction, squared, iteration, history
        )

    def is_open(state: _State) -> jax.Array:
        # The second step makes a direct solution as good as a refined one.
        is_early = (state.iteration < 2) & jnp.any(state.in_range != 0)
        is_open = jnp.isfinite(state.squared) & (is_early | ~problem.is_solved(state))
        return is_open & (state.iteration < max_iterations)

    def restart(state: _State) -> _State:
        done = lax.while_loop(is_open, problem.step, state)
        change = scale * (done.solution - state.solution)
        solution = state.solution + factors.shortest(change) / scale
        return start(solution, done.iteration, done.history)

    history = jnp.zeros(max_iterations + 1, scale.dtype)
    state = start(jnp.zeros_like(scale), jnp.int32(0), history)
    state = lax.while_loop(is_open, restart, state)
    solution = jnp.where(jnp.isfinite(state.squared), scale * state.solution, jnp.nan)
    converged = problem.is_solved(state) & problem.is_lowest(state, rcond)
    converged &= jnp.isfinite(solution).all()
    history = state.history / unit
    return Solution(solution / unit, state.iteration, converged, history)
