"""Least squares by conjugate gradients, preconditioned by `Factors`.

Each iteration is one pass over X. It takes a step, recomputes the residual at the end,
and decides what follows: a `Status`.

**Damped steps** follow if rounding of the gradient dominates a solution. Rounding of
Xᵀr changes θ by up to eps ‖X‖ ‖r‖ / s² along a singular vector. If that exceeds ‖θ‖,
each step of conjugate gradients replaces one such change by another, and the rounding
of both remains in Xᵀr. Damped steps minimise ‖r - Xd‖² + ω² ‖d‖² instead, for ω = ‖r‖ /
‖θ‖. Their preconditioner V (s² + ω²)^(-1/2) is that of Karlson and Waldén's estimate of
the backward error. So they lower the backward error, and change θ little along singular
values below ω.
"""

import enum
import functools
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc._common.conjugate_gradients import CGState, cg_start, cg_step, step_length
from jaxwgc.sketching._linalg.factors import Factors, root_of
from jaxwgc.sketching._linalg.matrix import LineProducts, Matrix
from jaxwgc.sketching._linalg.monitor import Monitor, select
from jaxwgc.sketching._linalg.rows import safe, scaled

# Damped steps converge if the backward error is at most this fraction of the tolerance.
_DAMPED_SHARE = 1 / 64


class Problem(NamedTuple):
    """A least-squares problem, in which a ridge counts as rows of the matrix.

    The matrix is X stacked on `root_ridge` I.

    Attributes:
      matrix: X, constant for `jax.grad`.
      target: y, (N,) or (N, c), scaled to size 1.
      root_ridge: √ridge, or None.
      tolerance: Tolerance of the backward error.
    """

    matrix: Matrix
    target: Array
    root_ridge: Array | None
    tolerance: Array

    @classmethod
    def constant(
        cls, matrix: Matrix, target: Array, ridge: Array | None, tolerance: Array
    ) -> Self:
        """Constructs a problem that is constant for `jax.grad`."""
        matrix, target = lax.stop_gradient((matrix, target))
        return cls(matrix, target, root_of(ridge), tolerance)


class Point(NamedTuple):
    """Scaled parameters, gradient and squared residual norm, for each target.

    Scaled parameters are x = θ / scale, and the residual is r = b - Ax. A is
    X diag(scale) stacked on √ridge diag(scale), and b is y padded with zeros.

    Attributes:
      x: (p,) or (p, c).
      gradient: Aᵀr minus its required value, which is zero for least squares.
      squared: ‖r‖², () or (c,).
    """

    x: Array
    gradient: Array
    squared: Array


class State(NamedTuple):
    """State of the conjugate gradient iterations, for each target.

    Attributes:
      point: The current x, and its recomputed residual.
      s: Pᵀ times the gradient of the point, where P is the preconditioner.
      cg: The state of conjugate gradients. Its s is updated, not recomputed.
      replaced_gamma: ‖s‖² at the last replacement of the updated s.
      alpha: The length of the last step, 1 before the first one.
      decrease: The decrease of ‖r‖² in the last step that was not damped.
      damping: ω² of damped steps, 0 until the point is solved.
      is_solved: Whether the point is backward stable, with a residual near its minimum.
      best_x: The x of the smallest backward error.
      least_error: The smallest backward error.
      monitor: Its history holds ‖r‖, from ‖y‖ on.
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


class Step(NamedTuple):
    """Result of one step of conjugate gradients, before its `Status` is decided.

    Attributes:
      point: The point, with its recomputed residual.
      s: Pᵀ times the gradient of the point.
      updated: The state of conjugate gradients, whose s is updated.
      alpha: The length of the step.
      decrease: See `State`.
      error: The backward error of the point, infinite if its ‖r‖² is inaccurate.
      updated_error: The backward error according to the updated s.
      is_solved: See `State`.
      required_damping: ω² of the damped steps that the point needs, or 0.
    """

    point: Point
    s: Array
    updated: CGState
    alpha: Array
    decrease: Array
    error: Array
    updated_error: Array
    is_solved: Array
    required_damping: Array


class Status(enum.IntEnum):
    """Decision after a step, for each target: continue, restart or end."""

    # Continue with the updated gradient.
    GO_ON = 0
    # Restart from the recomputed gradient.
    RESTART = 1
    # Restart with damped steps.
    DAMP = 2
    # End, since the point is accurate.
    DONE = 3
    # Undo this damped step, since it was no improvement, and end.
    UNDO = 4


class Refinement(NamedTuple):
    """Solver of a least-squares problem by preconditioned conjugate gradients.

    The matrix is A = X diag(scale) stacked on `root_ridge` diag(scale). Conjugate
    gradients run on AP, where P is the inverse of the factors. Every step
    recomputes the residual, so that rounding errors of earlier steps do not
    accumulate.

    Attributes:
      problem: X, y, the ridge and the tolerance.
      factors: The factors of X or of a sketch.
      required_gradient: The required value of Xᵀ(y - Xθ) - ridge θ, times scale. None
        stands for zero, which is least squares.
      target_products: Xᵀy and ‖y‖², if known before the first pass.
      is_sketched: Whether the factors may be those of a sketch.
    """

    problem: Problem
    factors: Factors
    required_gradient: Array | None = None
    target_products: list[Array] | None = None
    is_sketched: bool = True

    def solve(self, max_iterations: int) -> State:
        """Runs conjugate gradients from zero, and returns the last state.

        Iterations end when the solution is backward stable. If rounding of Xᵀr
        dominates θ, damped steps follow. If no θ is backward stable, the point of the
        result has the x of the smallest backward error.
        """

        def is_open(state: State) -> Array:
            return jnp.any(state.monitor.is_running(max_iterations))

        row_space = self.factors.row_space()
        advance = functools.partial(self._advanced, row_space, max_iterations)
        state = self._start(max_iterations)
        if self.problem.matrix.is_streamed:
            while is_open(state):
                state = advance(state)
        else:
            state = lax.while_loop(is_open, advance, state)
        x = jnp.where(state.is_solved, state.point.x, state.best_x)
        return state._replace(point=state.point._replace(x=x))

    def _start(self, max_iterations: int) -> State:
        """Computes the state before the first step, in which parameters are zero."""
        if self.target_products is None:
            target = self.problem.target
            gradient = self.problem.matrix.rmv(target)
            squared = jnp.sum(target**2, axis=0)
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
        """Returns the state after one step, which may restart or end the iterations."""
        factors = self.factors
        damping = state.damping
        weights = _damping_weights(factors, damping)
        direction = factors.direction(weights * state.cg.p, row_space)
        # The length of the step is known only after this pass over X. So the pass uses
        # the length of the last step, and `moved_point` corrects the difference.
        trial = state.point.x + state.alpha * direction
        products = self._line_products(trial, direction)
        curvature = products.curvature + damping * jnp.sum(direction**2, axis=0)
        alpha = step_length(state.cg, curvature)
        point, is_lost = moved_point(
            trial, products, direction, alpha - state.alpha, self.required_gradient
        )
        s = product(factors.inverse.T, point.gradient)
        image = products.image + damping * direction
        change = weights * product(factors.inverse.T, image)
        updated = cg_step(state.cg, state.cg.s - alpha * change)
        decrease = jnp.where(damping > 0, state.decrease, alpha * state.cg.gamma)
        error = jnp.where(is_lost, jnp.inf, _backward_error(factors, point, s))
        is_solved = error <= self.problem.tolerance
        if self.required_gradient is None:
            # Estimates how much further steps can lower ‖r‖²: by ‖s‖², or by as much as
            # the last step if that is more. The factor 2 leaves room for the rounding
            # error of Xθ, which `is_lowest` adds.
            removable = 2 * jnp.maximum(jnp.sum(s**2, axis=0), decrease)
            is_solved &= self._is_near_minimum(point.squared, removable, state)
            required_damping = _required_damping(factors, point)
        else:
            required_damping = jnp.zeros_like(damping)
        step = Step(
            point=point,
            s=s,
            updated=updated,
            alpha=alpha,
            decrease=decrease,
            error=error,
            updated_error=_backward_error(factors, point, updated.s / safe(weights)),
            is_solved=is_solved,
            required_damping=required_damping,
        )
        # Targets whose iterations have ended keep their state.
        is_running = state.monitor.is_running(max_iterations)
        return _after(
            state,
            step,
            factors,
            self.problem.tolerance,
            is_running,
            is_sketched=self.is_sketched,
        )

    def _line_products(self, x: Array, direction: Array) -> LineProducts:
        """Computes `LineProducts` of the scaled matrix and its ridge rows, at `x`."""
        scale = self.factors.scale
        solution = scaled(scale, x)
        direction = scaled(scale, direction)
        matrix, target, root_ridge, _ = self.problem
        products = matrix.line_products(target, solution, direction)
        gradient, squared, image, curvature = products
        if root_ridge is not None:
            ridge_solution = root_ridge * solution
            ridge_direction = root_ridge * direction
            gradient -= root_ridge * ridge_solution
            image += root_ridge * ridge_direction
            squared += jnp.sum(ridge_solution**2, axis=0)
            curvature += jnp.sum(ridge_direction**2, axis=0)
        return LineProducts(
            scaled(scale, gradient), squared, scaled(scale, image), curvature
        )

    def is_lowest(self, state: State) -> Array:
        """Tests whether the residual norm is near its minimum, up to rounding errors.

        The singular values of a sketch may differ much from those of X. So for factors
        of a sketch, X is multiplied by the direction of the gradient.
        """
        factors = self.factors
        point = state.point
        decrease = state.decrease
        if self.is_sketched:
            steepest = cg_start(state.s)
            direction = scaled(factors.scale, product(factors.inverse, steepest.p))
            length = jnp.linalg.norm(self.problem.matrix.mv(direction), axis=0)
            decrease_along = (steepest.gamma / safe(length)) ** 2
            decrease = jnp.maximum(decrease, decrease_along)
        eps = jnp.finfo(point.squared.dtype).eps
        # The residual is known only up to the rounding error of Xθ.
        size = factors.norm * jnp.linalg.norm(point.x, axis=0)
        # The part of θ in truncated directions may increase the residual.
        truncated = factors.truncated_part(point.x)
        increase = -2 * jnp.sum(truncated * point.gradient, axis=0)
        removable = decrease + (4 * eps * size) ** 2 + jnp.maximum(increase, 0)
        is_lowest = self._is_near_minimum(point.squared, removable, state)
        # If the gradient is only rounding error, `is_lowest` may be true for a residual
        # that is longer than y. The second condition rejects this residual.
        growth = 1 + 2 * eps**0.5
        return is_lowest & (point.squared <= growth * state.monitor.history[0] ** 2)

    def _is_near_minimum(self, squared: Array, removable: Array, state: State) -> Array:
        """Tests whether the residual norm is close to its minimum, relative to ‖y‖.

        If X is almost singular in its precision, this test is stricter than the test of
        the backward error.

        Args:
          squared: ‖r‖².
          removable: The part of ‖r‖² that an exact solution would remove.
          state: The state.
        """
        root_eps = float(jnp.finfo(removable.dtype).eps) ** 0.5
        squared = jnp.maximum(squared, removable)
        norms = jnp.sqrt(squared) + jnp.sqrt(squared - removable)
        excess = removable / safe(norms)
        largest = jnp.maximum(self.problem.tolerance, root_eps / 8)
        return excess <= largest * state.monitor.history[0]


@functools.partial(jax.jit, static_argnames="is_sketched")
def _after(
    state: State,
    step: Step,
    factors: Factors,
    tolerance: Array,
    is_running: Array,
    *,
    is_sketched: bool,
) -> State:
    """Returns the state after a step, according to the `Status` of each target."""
    is_damped = state.damping > 0
    tolerance = jnp.where(is_damped, _DAMPED_SHARE, 1) * tolerance
    # The factor 1/4 is a margin, since the updated s is an estimate.
    is_replaced = step.updated_error <= tolerance / 4
    if is_sketched:
        # The rounding error of the updated s is proportional to ‖s‖ at the last
        # replacement of s. So half of the digits are lost when ‖s‖ has fallen to √eps
        # times that norm. Conjugate gradients then restart from the recomputed s. See
        # van der Vorst and Ye, "Residual replacement strategies for Krylov subspace
        # iterative methods", SIAM J. Sci. Comput. 22 (2000).
        eps = jnp.finfo(tolerance.dtype).eps
        is_replaced |= step.updated.gamma <= eps * state.replaced_gamma
    else:
        # With factors of X instead of a sketch, a single step reduces ‖s‖ to √eps times
        # its norm. So each step is followed by a restart, as in iterative refinement.
        is_replaced = jnp.ones_like(is_replaced)
    # A second step follows the first, unless the gradient is zero. So a direct solution
    # is refined at least once.
    is_late = (state.monitor.iteration > 0) | jnp.all(step.s == 0, axis=0)
    may_end = is_replaced & is_late & step.is_solved
    status = jnp.where(is_replaced, Status.RESTART, Status.GO_ON)
    status = jnp.where(may_end & (step.error <= tolerance), Status.DONE, status)
    starts_damping = may_end & ~is_damped & (step.required_damping > 0)
    status = jnp.where(starts_damping, Status.DAMP, status)
    is_improved = step.is_solved & (step.error < state.least_error)
    status = jnp.where(is_damped & ~is_improved, Status.UNDO, status)
    # Without this barrier, XLA would compile the decisions above once per array of the
    # state.
    status = lax.optimization_barrier(status)
    starts_damping = status == Status.DAMP
    damping = jnp.where(starts_damping, step.required_damping, state.damping)
    restarted = cg_start(_damping_weights(factors, damping) * step.s)
    goes_on = status == Status.GO_ON
    is_better = step.error < state.least_error
    monitor = state.monitor.update(
        jnp.sqrt(step.point.squared),
        has_converged=status == Status.DONE,
        has_stagnated=status == Status.UNDO,
    )
    moved = State(
        point=step.point,
        s=step.s,
        cg=select(goes_on, step.updated, restarted),
        replaced_gamma=select(goes_on, state.replaced_gamma, restarted.gamma),
        alpha=jnp.where(step.alpha > 0, step.alpha, state.alpha),
        decrease=step.decrease,
        damping=damping,
        is_solved=step.is_solved,
        best_x=jnp.where(is_better, step.point.x, state.best_x),
        least_error=jnp.where(is_better, step.error, state.least_error),
        monitor=state.monitor,
    )
    new_state = select(is_running & (status != Status.UNDO), moved, state)
    return new_state._replace(monitor=select(is_running, monitor, state.monitor))


def moved_point(
    x: Array,
    products: LineProducts,
    direction: Array,
    step: Array,
    required_gradient: Array | None,
) -> tuple[Point, Array]:
    """Returns the point after a step, and whether its ‖r‖² is inaccurate.

    ‖r‖² is inaccurate if it is the small difference of large numbers.

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


@jax.jit
def _backward_error(factors: Factors, point: Point, s: Array) -> Array:
    """Estimates the relative backward error by the formula of Karlson and Waldén.

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


@jax.jit
def _required_damping(factors: Factors, point: Point) -> Array:
    """Computes the damping that further steps from a point need, or 0 for none.

    The damping is ω² of `_damping_weights`.
    """
    values = factors.singular_values
    smallest = jnp.min(jnp.where(values > 0, values, jnp.inf))
    squared = point.squared / safe(jnp.sum(point.x**2, axis=0))
    rounding = jnp.finfo(values.dtype).eps * factors.norm
    is_needed = smallest**2 <= rounding * jnp.sqrt(squared)
    return jnp.where(is_needed, squared, 0)


def _damping_weights(factors: Factors, damping: Array) -> Array:
    """Computes weights that damp steps along small singular values.

    They are s / √(s² + ω²) for singular values s and damping ω². P times these
    weights is the preconditioner of damped steps, V (s² + ω²)^(-1/2).
    """
    values = factors.singular_values
    squares = jnp.add.outer(values**2, damping)
    return scaled(values, 1 / jnp.sqrt(safe(squares)))
