"""Least squares by conjugate gradients, preconditioned by factors."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxwgc._arrays import product
from jaxwgc._conjugate_gradients import CGState, cg_start, cg_step, step_length
from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.matrix import LineProducts, Matrix
from jaxwgc.sketching._linalg.monitor import Criterion, Monitor, select
from jaxwgc.sketching._linalg.rows import safe, scaled

# Share of the tolerance of the backward error that damped steps have to reach.
_DAMPED_SHARE = 1 / 64


class Point(NamedTuple):
    """x = θ / scale of each system, and its residual r = b - Ax.

    A is X diag(scale), stacked on the rows of a ridge.

    Attributes:
      x: (p,) or (p, c).
      gradient: Aᵀr, less the offset.
      squared: ‖r‖², () or (c,).
    """

    x: Array
    gradient: Array
    squared: Array


class State(NamedTuple):
    """State of the iterations of each system.

    Attributes:
      point: The current x, and its recomputed residual.
      s: Pᵀ times the gradient of the point, where P is the preconditioner.
      cg: The state of conjugate gradients. Its s is updated, not recomputed.
      replaced_gamma: ‖s‖² at the last replacement of the updated s.
      alpha: The length of the last step, 1 before the first one.
      decrease: The decrease of ‖r‖² in the last step that was not damped.
      damping: ω² of `Refinement.damping`, 0 until the point is solved.
      is_solved: Whether the point is backward stable and its residual is the least.
      best_x: The x of the smallest backward error.
      least_error: The smallest backward error.
      monitor: Its history holds ‖r‖.
    """

    point: Point
    s: Array
    cg: CGState
    replaced_gamma: Array
    alpha: Array
    decrease: Array
    damping: Array
    is_solved: Array
    best_x: Array
    least_error: Array
    monitor: Monitor


class _Move(NamedTuple):
    """The end of a step of conjugate gradients.

    Attributes:
      point: The point, with its recomputed residual.
      s: Pᵀ times the gradient of the point.
      updated: The state of conjugate gradients, whose s is updated.
      alpha: The length of the step.
      error: The backward error of the point, infinite if its residual is lost.
      updated_error: Its estimate by the updated s.
    """

    point: Point
    s: Array
    updated: CGState
    alpha: Array
    error: Array
    updated_error: Array


class Refinement(NamedTuple):
    """Least squares with A = X diag(scale) stacked on `root` diag(scale).

    Conjugate gradients run on AP, where P are the factors. Each iteration is one pass
    over X. It takes a step and recomputes the residual, so that rounding of earlier
    steps does not accumulate.

    Attributes:
      matrix: X.
      factors: The factors of X or a sketch.
      tolerance: Tolerance of the backward error.
      target: y, (N,) or (N, c).
      root: √ridge, or None.
      offset: The required value of Xᵀ(y - Xθ) in scaled columns, instead of zero.
      at_zero: Xᵀy and yᵀy, if known before the first pass.
      is_sketched: Whether the factors may be those of a sketch.
    """

    matrix: Matrix
    factors: Factors
    tolerance: Array
    target: Array
    root: Array | None = None
    offset: Array | None = None
    at_zero: tuple[Array, Array] | None = None
    is_sketched: bool = True

    def solve(self, max_iterations: int) -> State:
        """Runs conjugate gradients from θ = 0 until θ is backward stable.

        If rounding of Xᵀr dominates θ, damped steps follow, see `damping`. If no θ is
        backward stable, the point of the result has the x of the smallest backward
        error.
        """
        row_space = self.factors.row_space()

        def is_open(state: State) -> Array:
            return jnp.any(state.monitor.is_running(max_iterations))

        start = self._start(max_iterations)
        step = functools.partial(self._step, row_space, max_iterations)
        state = self.matrix.while_loop(is_open, step, start)
        x = jnp.where(state.is_solved, state.point.x, state.best_x)
        return state._replace(point=state.point._replace(x=x))

    def _start(self, max_iterations: int) -> State:
        """Computes the state at θ = 0."""
        if self.at_zero is None:
            gradient = self.matrix.rmv(self.target)
            squared = jnp.sum(self.target**2, axis=0)
        else:
            gradient, squared = self.at_zero
        gradient = scaled(self.factors.scale, gradient)
        if self.offset is not None:
            gradient -= self.offset
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

    def _step(self, row_space: Array, max_iterations: int, state: State) -> State:
        """Takes a step of conjugate gradients from a recomputed residual.

        Systems whose iterations have ended keep their state.
        """
        move = self._move(row_space, state)
        is_damped = state.damping > 0
        tolerance = jnp.where(is_damped, _DAMPED_SHARE, 1) * self.tolerance
        # The factor 1/4 is a margin, since the updated s is an estimate.
        is_replaced = (move.updated_error <= tolerance / 4) | self._has_lost_digits(
            move.updated, state.replaced_gamma
        )
        is_better = move.error < state.least_error
        decrease = jnp.where(is_damped, state.decrease, move.alpha * state.cg.gamma)
        is_solved = move.error <= self.tolerance
        # The second step makes a direct solution as accurate as a refined one.
        is_late = (state.monitor.iteration > 0) | jnp.all(move.s == 0, axis=0)
        may_stop = is_replaced & is_late
        damping = state.damping
        if self.offset is None:
            # The decrease of the last step also counts, since the last step may be the
            # longest one. The factor 2 leaves room for the rounding of Xθ, which
            # `is_lowest` adds.
            part = 2 * jnp.maximum(jnp.sum(move.s**2, axis=0), decrease)
            is_solved &= self._excess(move.point, part, state.monitor).is_met
            starts_damping = may_stop & is_solved & ~is_damped
            damping = jnp.where(starts_damping, self.damping(move.point), damping)
            may_stop &= is_damped | (damping == 0)
        # A damped step that does not help is taken back, and ends the iterations.
        is_kept = ~is_damped | (is_better & is_solved)
        restarted = cg_start(self._weights(damping) * move.s)
        moved = State(
            point=move.point,
            s=move.s,
            cg=select(is_replaced, restarted, move.updated),
            replaced_gamma=select(is_replaced, restarted.gamma, state.replaced_gamma),
            alpha=jnp.where(move.alpha > 0, move.alpha, state.alpha),
            decrease=decrease,
            damping=damping,
            is_solved=is_solved,
            best_x=jnp.where(is_better, move.point.x, state.best_x),
            least_error=jnp.where(is_better, move.error, state.least_error),
            monitor=state.monitor.update(
                jnp.sqrt(move.point.squared),
                [Criterion(move.error, tolerance)],
                may_stop=may_stop & is_solved,
                has_stagnated=~is_kept,
            ),
        )
        moved = select(is_kept, moved, state._replace(monitor=moved.monitor))
        return select(state.monitor.is_running(max_iterations), moved, state)

    def _move(self, row_space: Array, state: State) -> _Move:
        """Computes the end of a step of conjugate gradients, and its errors."""
        factors = self.factors
        damping = state.damping
        weights = self._weights(damping)
        direction = factors.direction(weights * state.cg.p, row_space)
        # The pass over X is at a point near the end of the step, so that the residual
        # is recomputed, not updated.
        trial = state.point.x + state.alpha * direction
        products = self._line_products(trial, direction)
        curvature = products.curvature + damping * jnp.sum(direction**2, axis=0)
        alpha = step_length(state.cg, curvature)
        point, is_lost = _moved(trial, products, direction, alpha - state.alpha)
        s = product(factors.inverse.T, point.gradient)
        image = products.image + damping * direction
        change = weights * product(factors.inverse.T, image)
        updated = cg_step(state.cg, state.cg.s - alpha * change)
        error = jnp.where(is_lost, jnp.inf, self._backward_error(point, s))
        return _Move(
            point=point,
            s=s,
            updated=updated,
            alpha=alpha,
            error=error,
            updated_error=self._backward_error(point, updated.s / safe(weights)),
        )

    def damping(self, point: Point) -> Array:
        """Returns ω² for damped steps from a solved point, 0 if none are needed.

        Rounding of Xᵀr changes θ by up to eps ‖X‖ ‖r‖ / s² along a singular vector. If
        that exceeds ‖θ‖, each step replaces one such change by another, and leaves the
        rounding of both in Xᵀr. Damped steps minimise ‖r - Xd‖² + ω² ‖d‖² instead, for
        ω = ‖r‖ / ‖θ‖. Their preconditioner V (s² + ω²)^(-1/2) is that of Karlson and
        Waldén's estimate, so that they lower the backward error, and leave θ as it is
        along singular values below ω.
        """
        values = self.factors.singular_values
        smallest = jnp.min(jnp.where(values > 0, values, jnp.inf))
        squared = point.squared / safe(jnp.sum(point.x**2, axis=0))
        rounding = jnp.finfo(values.dtype).eps * self.factors.norm
        is_needed = smallest**2 <= rounding * jnp.sqrt(squared)
        return jnp.where(is_needed, squared, 0)

    def _weights(self, damping: Array) -> Array:
        """Returns s / √(s² + ω²), (p,) or (p, c), from P to the damped one."""
        values = self.factors.singular_values
        squares = jnp.add.outer(values**2, damping)
        return scaled(values, 1 / jnp.sqrt(safe(squares)))

    def _has_lost_digits(self, updated: CGState, replaced_gamma: Array) -> Array:
        """Returns whether the recomputed s must replace the updated one.

        Rounding of the updated s is relative to s at the last replacement. Rounding
        also makes directions less conjugate. So conjugate gradients restart when s has
        fallen by half of its digits. See van der Vorst and Ye, "Residual replacement
        strategies for Krylov subspace iterative methods", SIAM J. Sci. Comput. 22
        (2000).

        With factors of X, one step lowers s that far, and each step is one of iterative
        refinement.
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
        if self.root is not None:
            ridge_solution = self.root * solution
            ridge_direction = self.root * direction
            gradient -= self.root * ridge_solution
            image += self.root * ridge_direction
            squared += jnp.sum(ridge_solution**2, axis=0)
            curvature += jnp.sum(ridge_direction**2, axis=0)
        gradient = scaled(scale, gradient)
        if self.offset is not None:
            gradient -= self.offset
        return LineProducts(gradient, squared, scaled(scale, image), curvature)

    def _backward_error(self, point: Point, s: Array) -> Array:
        """Computes Karlson and Waldén's estimate of the backward error over ‖X‖."""
        values = self.factors.singular_values
        squared_size = jnp.sum(point.x**2, axis=0)
        weight = jnp.multiply.outer(values**2, squared_size) + point.squared
        shares = scaled(values, s) / jnp.sqrt(safe(weight))
        return jnp.linalg.norm(shares, axis=0) / self.factors.norm

    def _excess(self, point: Point, part: Array, monitor: Monitor) -> Criterion:
        """Returns by how much the residual exceeds its norm without a part of it.

        If X is at the limits of the precision, this criterion is stricter than a small
        backward error.

        Args:
          point: The point of the residual.
          part: The squared norm of the part.
          monitor: Its history starts with ‖y‖, in units of which the excess is small.
        """
        root_eps = float(jnp.finfo(part.dtype).eps) ** 0.5
        squared = jnp.maximum(point.squared, part)
        norms = jnp.sqrt(squared) + jnp.sqrt(squared - part)
        # At θ = 0, the residual is y.
        target_norm = monitor.history[0]
        return Criterion(
            error=part / jnp.where(norms > 0, norms, 1),
            tolerance=self.tolerance * target_norm,
            floor=root_eps / 8 * target_norm,
        )

    def is_lowest(self, state: State) -> Array:
        """Tests whether the residual is near its minimum, by a product with X itself.

        Singular values of a sketch may be far from those of X. So X is applied to the
        direction of the gradient.
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
        # The residual is unknown below the rounding of Xθ.
        size = factors.norm * jnp.linalg.norm(point.x, axis=0)
        # The part of θ in truncated directions may lengthen the residual.
        truncated = factors.cut_off(point.x)
        increase = -2 * jnp.sum(truncated * point.gradient, axis=0)
        part = decrease + (4 * eps * size) ** 2 + jnp.maximum(increase, 0)
        is_low = self._excess(point, part, state.monitor).is_met
        # If the gradient is rounding alone, a residual longer than y still fails this
        # test.
        growth = 1 + 2 * eps**0.5
        target_norm = state.monitor.history[0]
        return is_low & (point.squared <= growth * target_norm**2)


def _moved(
    x: Array, products: LineProducts, direction: Array, step: Array
) -> tuple[Point, Array]:
    """Returns the point at x + step * direction, and its updated residual.

    Also returns whether ‖r‖² has lost its digits: it is a small difference of large
    numbers.

    Args:
      x: The point of the products.
      products: `LineProducts` with A.
      direction: The direction of the products.
      step: The length of the step.
    """
    slope = jnp.sum(direction * products.gradient, axis=0)
    decrease = step * (2 * slope - step * products.curvature)
    squared = jnp.maximum(products.squared - decrease, 0)
    point = Point(
        x=x + step * direction,
        gradient=products.gradient - step * products.image,
        squared=squared,
    )
    return point, products.squared > 100 * squared
