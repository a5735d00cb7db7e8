"""Least squares by conjugate gradients, preconditioned by factors."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxwgc._common.arrays import product
from jaxwgc._common.conjugate_gradients import CGState, cg_start, cg_step, step_length
from jaxwgc.sketching._linalg.damped_steps import (
    DAMPED_SHARE,
    damping_weights,
    required_damping,
)
from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.matrix import LineProducts, Matrix
from jaxwgc.sketching._linalg.monitor import Criterion, Monitor, select
from jaxwgc.sketching._linalg.points import Point, moved_point
from jaxwgc.sketching._linalg.refinement_state import Outcome, State, Step
from jaxwgc.sketching._linalg.rows import safe, scaled
from jaxwgc.sketching._linalg.stopping_tests import backward_error, residual_excess


class Refinement(NamedTuple):
    """Least squares with A = X diag(scale) stacked on `root_ridge` diag(scale).

    Conjugate gradients run on AP, where P is the inverse of the factors. Each iteration
    is one pass over X. It takes a step and recomputes the residual, so that rounding
    errors of earlier steps do not accumulate.

    Attributes:
      matrix: X.
      factors: The factors of X or of a sketch.
      tolerance: Tolerance of the backward error.
      target: y, (N,) or (N, c).
      root_ridge: √ridge, or None.
      required_gradient: The required value of Xᵀ(y - Xθ) - ridge θ, times scale. None
        stands for zero, which is least squares.
      target_products: Xᵀy and ‖y‖², if known before the first pass.
      is_sketched: Whether the factors may be those of a sketch.
    """

    matrix: Matrix
    factors: Factors
    tolerance: Array
    target: Array
    root_ridge: Array | None = None
    required_gradient: Array | None = None
    target_products: tuple[Array, Array] | None = None
    is_sketched: bool = True

    def solve(self, max_iterations: int) -> State:
        """Runs conjugate gradients from θ = 0 until θ is backward stable.

        If rounding of Xᵀr dominates θ, damped steps follow. If no θ is backward stable,
        the point of the result has the x of the smallest backward error.
        """
        row_space = self.factors.row_space()

        def is_open(state: State) -> Array:
            return jnp.any(state.monitor.is_running(max_iterations))

        start = self._start(max_iterations)
        advance = functools.partial(self._advanced, row_space, max_iterations)
        state = self.matrix.while_loop(is_open, advance, start)
        x = jnp.where(state.is_solved, state.point.x, state.best_x)
        return state._replace(point=state.point._replace(x=x))

    def is_lowest(self, state: State) -> Array:
        """Tests whether the residual is near its minimum, by a product with X itself.

        The singular values of a sketch may differ much from those of X. So X is applied
        to the direction of the gradient.
        """
        factors = self.factors
        point = state.point
        decrease = state.decrease
        if self.is_sketched:
            steepest = cg_start(state.s)
            direction = scaled(factors.scale, product(factors.inverse, steepest.p))
            length = jnp.linalg.norm(self.matrix.mv(direction), axis=0)
            decrease_along = (steepest.gamma / jnp.where(length > 0, length, 1)) ** 2
            decrease = jnp.maximum(decrease, decrease_along)
        eps = jnp.finfo(point.squared.dtype).eps
        # The residual is known only up to the rounding error of Xθ.
        size = factors.norm * jnp.linalg.norm(point.x, axis=0)
        # The part of θ in truncated directions may increase the residual.
        truncated = factors.truncated_part(point.x)
        increase = -2 * jnp.sum(truncated * point.gradient, axis=0)
        removable = decrease + (4 * eps * size) ** 2 + jnp.maximum(increase, 0)
        target_norm = _target_norm(state)
        excess = residual_excess(point.squared, removable, target_norm, self.tolerance)
        # If the gradient is only rounding error, the first test may pass for a residual
        # longer than y. The second test rejects it.
        growth = 1 + 2 * eps**0.5
        return excess.is_met & (point.squared <= growth * target_norm**2)

    def _start(self, max_iterations: int) -> State:
        """Computes the state at θ = 0."""
        if self.target_products is None:
            gradient = self.matrix.rmv(self.target)
            squared = jnp.sum(self.target**2, axis=0)
        else:
            gradient, squared = self.target_products
        gradient = scaled(self.factors.scale, gradient)
        if self.required_gradient is not None:
            gradient -= self.required_gradient
        s = product(self.factors.inverse.T, gradient)
        cg = cg_start(s)
        zeros = jnp.zeros_like(gradient)
        is_solved = jnp.all(s == 0, axis=0)
        return State(
            point=Point(x=zeros, gradient=gradient, squared=squared),
            s=s,
            cg=cg,
            replaced_gamma=cg.gamma,
            alpha=jnp.ones_like(squared),
            decrease=jnp.zeros_like(squared),
            damping=jnp.zeros_like(squared),
            is_solved=is_solved,
            best_x=zeros,
            least_error=jnp.where(is_solved, jnp.zeros_like(squared), jnp.inf),
            monitor=Monitor.init(jnp.sqrt(squared), max_iterations, is_solved),
        )

    def _advanced(self, row_space: Array, max_iterations: int, state: State) -> State:
        """Returns the state after a step of conjugate gradients.

        Systems whose iterations have ended keep their state.
        """
        step = self._step(row_space, state)
        outcome = self._outcome(state, step)
        new_state = self._moved(state, step, outcome)
        undone = state._replace(monitor=new_state.monitor)
        new_state = select(outcome.is_kept, new_state, undone)
        return select(state.monitor.is_running(max_iterations), new_state, state)

    def _step(self, row_space: Array, state: State) -> Step:
        """Takes a step of conjugate gradients, and computes its backward errors."""
        factors = self.factors
        damping = state.damping
        weights = damping_weights(factors, damping)
        direction = factors.direction(weights * state.cg.p, row_space)
        # The residual is computed at a point near the end of the step, whose length is
        # not yet known. It is then updated by the difference of the lengths.
        trial = state.point.x + state.alpha * direction
        products = self._line_products(trial, direction)
        curvature = products.curvature + damping * jnp.sum(direction**2, axis=0)
        alpha = step_length(state.cg, curvature)
        point, is_lost = moved_point(
            trial,
            products,
            direction,
            alpha - state.alpha,
            self.required_gradient,
        )
        s = product(factors.inverse.T, point.gradient)
        image = products.image + damping * direction
        change = weights * product(factors.inverse.T, image)
        updated = cg_step(state.cg, state.cg.s - alpha * change)
        error = jnp.where(is_lost, jnp.inf, backward_error(factors, point, s))
        undamped_s = updated.s / safe(weights)
        return Step(
            point=point,
            s=s,
            updated=updated,
            alpha=alpha,
            error=error,
            updated_error=backward_error(factors, point, undamped_s),
        )

    def _outcome(self, state: State, step: Step) -> Outcome:
        """Tests a step: its accuracy, and whether it is kept and iterations may end."""
        is_damped = state.damping > 0
        tolerance = jnp.where(is_damped, DAMPED_SHARE, 1) * self.tolerance
        # The factor 1/4 is a margin, since the updated s is an estimate.
        is_replaced = (step.updated_error <= tolerance / 4) | self._has_lost_digits(
            step.updated, state.replaced_gamma
        )
        is_better = step.error < state.least_error
        decrease = jnp.where(is_damped, state.decrease, step.alpha * state.cg.gamma)
        is_solved = step.error <= self.tolerance
        # Unless s is zero, a second step follows the first one. It makes a direct
        # solution as accurate as a refined one.
        is_late = (state.monitor.iteration > 0) | jnp.all(step.s == 0, axis=0)
        may_stop = is_replaced & is_late
        damping = state.damping
        if self.required_gradient is None:
            # The decrease of the last step also counts, since the last step may be the
            # longest one. The factor 2 leaves room for the rounding error of Xθ, which
            # `is_lowest` adds.
            removable = 2 * jnp.maximum(jnp.sum(step.s**2, axis=0), decrease)
            is_solved &= residual_excess(
                step.point.squared, removable, _target_norm(state), self.tolerance
            ).is_met
            starts_damping = may_stop & is_solved & ~is_damped
            new_damping = required_damping(self.factors, step.point)
            damping = jnp.where(starts_damping, new_damping, damping)
            may_stop &= is_damped | (damping == 0)
        return Outcome(
            tolerance=tolerance,
            decrease=decrease,
            damping=damping,
            is_solved=is_solved,
            is_replaced=is_replaced,
            is_better=is_better,
            # A damped step is kept only if it lowers the backward error.
            is_kept=~is_damped | (is_better & is_solved),
            may_stop=may_stop & is_solved,
        )

    def _moved(self, state: State, step: Step, outcome: Outcome) -> State:
        """Returns the state after a step that is kept."""
        weights = damping_weights(self.factors, outcome.damping)
        restarted = cg_start(weights * step.s)
        is_replaced = outcome.is_replaced
        is_better = outcome.is_better
        return State(
            point=step.point,
            s=step.s,
            cg=select(is_replaced, restarted, step.updated),
            replaced_gamma=select(is_replaced, restarted.gamma, state.replaced_gamma),
            alpha=jnp.where(step.alpha > 0, step.alpha, state.alpha),
            decrease=outcome.decrease,
            damping=outcome.damping,
            is_solved=outcome.is_solved,
            best_x=jnp.where(is_better, step.point.x, state.best_x),
            least_error=jnp.where(is_better, step.error, state.least_error),
            monitor=state.monitor.update(
                jnp.sqrt(step.point.squared),
                [Criterion(step.error, outcome.tolerance)],
                may_stop=outcome.may_stop,
                has_stagnated=~outcome.is_kept,
            ),
        )

    def _has_lost_digits(self, updated: CGState, replaced_gamma: Array) -> Array:
        """Returns whether the recomputed s must replace the updated one.

        The rounding error of the updated s is relative to s at the last replacement.
        Rounding also makes directions less conjugate. So conjugate gradients restart
        when ‖s‖ has fallen to √eps of its norm at the last replacement, and half of its
        digits are lost. See van der Vorst and Ye, "Residual replacement strategies for
        Krylov subspace iterative methods", SIAM J. Sci. Comput. 22 (2000).

        With factors of X, one step makes s that small. Each step is then one of
        iterative refinement.
        """
        if not self.is_sketched:
            return jnp.ones(updated.gamma.shape, bool)
        eps = jnp.finfo(updated.gamma.dtype).eps
        return updated.gamma <= eps * replaced_gamma

    def _line_products(self, x: Array, direction: Array) -> LineProducts:
        """Computes products with A, for the residual of x and a direction."""
        scale = self.factors.scale
        solution = scaled(scale, x)
        direction = scaled(scale, direction)
        products = self.matrix.line_products(self.target, solution, direction)
        gradient, squared, image, curvature = products
        if self.root_ridge is not None:
            ridge_solution = self.root_ridge * solution
            ridge_direction = self.root_ridge * direction
            gradient -= self.root_ridge * ridge_solution
            image += self.root_ridge * ridge_direction
            squared += jnp.sum(ridge_solution**2, axis=0)
            curvature += jnp.sum(ridge_direction**2, axis=0)
        return LineProducts(
            scaled(scale, gradient), squared, scaled(scale, image), curvature
        )


def _target_norm(state: State) -> Array:
    """Returns ‖y‖, which is the norm of the residual at θ = 0."""
    return state.monitor.history[0]
