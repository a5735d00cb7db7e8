"""Least squares by conjugate gradients, preconditioned by factors or column scales."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.kinds import LinearOperator, probed
from jaxwgc.sketching._linalg.rows import Products, SparseRows, safe, scaled


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
      error: The backward error over ‖X‖, infinite if the last pass lost its digits.
      best, least: The solution of the least error so far, and this error.
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
    error: Array
    best: Array
    least: Array
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
        """Runs conjugate gradients from θ = 0 until θ is backward stable."""
        factors = self.factors
        row_space = self.factors.row_space()
        if self.at_zero is None:
            gradient = self.rows.transposed_times(self.target)
            squared = self._squares_of_target
        else:
            gradient, squared = self.at_zero
        gradient = scaled(factors.scale, gradient)
        if self.offset is not None:
            gradient -= self.offset
        exact = factors.in_range(gradient)
        none = jnp.zeros_like(squared)
        zeros = jnp.zeros_like(gradient)
        error = jnp.where(jnp.any(exact != 0, axis=0), jnp.inf, none)
        start = State(
            solution=zeros,
            gradient=gradient,
            squared=squared,
            exact=exact,
            in_range=exact,
            search=exact,
            start=jnp.sum(exact**2, axis=0),
            is_fresh=jnp.ones(squared.shape, bool),
            gain=none,
            error=error,
            best=zeros,
            least=error,
            length=jnp.ones_like(squared),
            iteration=none.astype(jnp.int32),
            history=jnp.full((max_iterations + 1, *squared.shape), jnp.sqrt(squared)),
        )

        def is_open(state: State) -> Array:
            is_early = (state.iteration < 2) & jnp.any(state.exact != 0, axis=0)
            # The second step makes a direct solution as accurate as a refined one.
            is_open = is_early | ~self.is_solved(state) | ~state.is_fresh
            is_open &= jnp.isfinite(state.squared)
            return is_open & (state.iteration < max_iterations)

        def step(state: State) -> State:
            is_moving = is_open(state)
            direction = factors.direction(state.search, row_space) * is_moving
            # The pass over X is at a point near the end of the step, so that the
            # residual is recomputed, not updated.
            trial = state.solution + state.length * direction
            gradient, squared, image, curvature = self._look(trial, direction)
            energy = jnp.sum(state.in_range**2, axis=0)
            size = energy / jnp.where(curvature > 0, curvature, jnp.inf)
            more = jnp.where(is_moving, size - state.length, 0)
            ahead = jnp.sum(direction * gradient, axis=0)
            longer = squared
            change = more * (2 * ahead - more * curvature)
            squared = jnp.maximum(squared - change, 0)
            # If `squared` is a small difference of large numbers, it is not valid, and
            # the next pass decides.
            is_lost = longer > 100 * squared
            solution = trial + more * direction
            gradient = gradient - more * image
            exact = factors.in_range(gradient)
            updated = state.in_range - size * factors.in_range(image)
            new_energy = jnp.sum(updated**2, axis=0)
            # Rounding of updates is relative to the residual at the start of the
            # updates. Rounding of gradients also makes directions less conjugate. So
            # updates restart when the residual has fallen by half of its digits.
            is_fresh = new_energy <= jnp.finfo(energy.dtype).eps * state.start
            is_fresh |= self._error(solution, updated, squared) <= self.tolerance / 4
            error = self._error(solution, exact, squared)
            error = jnp.where(is_lost, jnp.inf, error)
            in_range = jnp.where(is_fresh, exact, updated)
            turn = new_energy / jnp.where(energy > 0, energy, jnp.inf)
            turn = jnp.where(is_fresh, 0, turn)
            iteration = state.iteration + is_moving
            new = State(
                solution=solution,
                gradient=gradient,
                squared=squared,
                exact=exact,
                in_range=in_range,
                search=in_range + turn * state.search,
                start=jnp.where(is_fresh, jnp.sum(exact**2, axis=0), state.start),
                is_fresh=is_fresh,
                gain=size * energy,
                error=error,
                best=jnp.where(error < state.least, solution, state.best),
                least=jnp.minimum(error, state.least),
                length=jnp.where(size > 0, size, state.length),
                iteration=iteration,
                history=record(state.history, iteration, jnp.sqrt(squared)),
            )
            return jax.tree.map(functools.partial(jnp.where, is_moving), new, state)

        state = self.rows.while_loop(lambda state: jnp.any(is_open(state)), step, start)
        solution = jnp.where(self.is_solved(state), state.solution, state.best)
        return state._replace(solution=solution)

    @property
    def _squares_of_target(self) -> Array:
        return self.rows.total(jnp.sum(self.target**2, axis=0))

    def _look(self, solution: Array, direction: Array) -> tuple[Array, ...]:
        """Computes gradient and value at θ, and their changes along a direction."""
        scale = self.factors.scale
        solution = scaled(scale, solution)
        direction = scaled(scale, direction)
        gradient, squared, image, curvature = self.rows.residual_products(
            self.target, solution, direction
        )
        if self.root is not None:
            pulled = self.root * solution
            moved = self.root * direction
            gradient -= self.root * pulled
            image += self.root * moved
            squared += jnp.sum(pulled**2, axis=0)
            curvature += jnp.sum(moved**2, axis=0)
        gradient = scaled(scale, gradient)
        image = scaled(scale, image)
        if self.offset is not None:
            gradient -= self.offset
        return gradient, squared, image, curvature

    def _error(self, solution: Array, exact: Array, squared: Array) -> Array:
        """Computes Karlson and Waldén's estimate of the backward error over ‖X‖."""
        values = self.factors.singular_values
        weight = jnp.multiply.outer(values**2, jnp.sum(solution**2, axis=0)) + squared
        shares = scaled(values, exact) / jnp.sqrt(safe(weight))
        return jnp.linalg.norm(shares, axis=0) / self.factors.norm

    def is_solved(self, state: State) -> Array:
        """Tests whether the solution is backward stable, estimated from the factors."""
        is_stable = state.error <= self.tolerance
        if self.offset is not None:
            return is_stable
        # The gain of the last step also counts, since the last step may be the longest
        # one.
        part = jnp.maximum(jnp.sum(state.exact**2, axis=0), state.gain)
        return is_stable & self._is_shortest(jnp.sqrt(part), state)

    def _is_shortest(self, part: Array, state: State) -> Array:
        """Tests whether removing a part of this length hardly shortens the residual.

        If X is at the limits of the precision, this is stricter than a small backward
        error.
        """
        root_eps = float(jnp.finfo(part.dtype).eps) ** 0.5
        squared = jnp.maximum(state.squared, part**2)
        both = jnp.sqrt(squared) + jnp.sqrt(squared - part**2)
        excess = part**2 / jnp.where(both > 0, both, 1)
        norm = jnp.sqrt(self._squares_of_target)
        return excess <= jnp.maximum(root_eps / 8, self.tolerance) * norm

    def is_lowest(self, state: State, is_sketched: bool) -> Array:
        """Tests whether the residual is near its minimum, by a product with X itself.

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
        # If the gradient is rounding alone, a residual longer than y still fails this
        # test.
        growth = 1 + 2 * eps**0.5
        return is_low & (state.squared <= growth * self._squares_of_target)


def record(history: Array, iteration: Array, value: Array) -> Array:
    """Sets a history to `value` from `iteration` on."""
    places = jnp.arange(len(history)).reshape(-1, *[1] * value.ndim)
    return jnp.where(places >= iteration, value, history)


class ColumnScaling(NamedTuple):
    """The scales of columns, which replace `Factors` if X is too wide for them.

    Attributes:
      scale: (p,), powers of two that scale the norms of columns to about 1.
      norm: The Frobenius norm of X diag(scale), with the rows of a ridge.
    """

    scale: Array
    norm: Array
    rank = None


class Iterate(NamedTuple):
    """θ / scale of each system, and the residual with the rows of a ridge.

    Attributes:
      is_check: Whether the next iteration recomputes the residual.
      is_done: Whether such a residual has passed the test.
    """

    solution: Array
    residual: Array
    gradient: Array
    search: Array
    is_check: Array
    is_done: Array
    iteration: Array
    history: Array

    @property
    def squared(self) -> Array:
        """Returns the squared norm of the residual."""
        return jnp.sum(self.residual**2, axis=0)


class ScaledSystem(NamedTuple):
    """Least squares with A = X diag(scale) stacked on `root` diag(scale)."""

    rows: Products
    scaling: ColumnScaling
    tolerance: Array
    root: Array | None = None

    def times(self, vector: Array) -> Array:
        """Returns Av."""
        vector = scaled(self.scaling.scale, vector)
        image = self.rows.times(vector)
        if self.root is None:
            return image
        return jnp.concatenate([image, self.root * vector])

    def transposed_times(self, vector: Array) -> Array:
        """Returns Aᵀu."""
        num_rows = self.rows.shape[0]
        image = self.rows.transposed_times(vector[:num_rows])
        if self.root is not None:
            image += self.root * vector[num_rows:]
        return scaled(self.scaling.scale, image)

    def padded(self, target: Array) -> Array:
        """Pads the right-hand side with zeros for the rows of a ridge."""
        if self.root is None:
            return target
        padding = [(0, self.rows.shape[1])] + [(0, 0)] * (target.ndim - 1)
        return jnp.pad(target, padding)

    def solve(
        self, target: Array, max_iterations: int, is_transposed: bool = False
    ) -> Iterate:
        """Computes the minimum-norm minimiser of ‖Av - target‖ or ‖Aᵀu - target‖.

        Iterations start at zero. The updated residual is as accurate as that of LSQR.
        If it passes the test, the next iteration recomputes the residual, and continues
        if the recomputed one does not pass. See `_error_by_both` for this test.
        """
        times = self.times
        transposed_times = self.transposed_times
        if is_transposed:
            times, transposed_times = transposed_times, times
        gradient = transposed_times(target)
        zeros = jnp.zeros_like(gradient)
        systems = target.shape[1:]
        start = Iterate(
            solution=zeros,
            residual=target,
            gradient=gradient,
            search=gradient,
            is_check=self._backward_error(zeros, gradient, target) <= self.tolerance,
            is_done=jnp.zeros(systems, bool),
            iteration=jnp.zeros(systems, jnp.int32),
            history=jnp.full(
                (max_iterations + 1, *systems), jnp.linalg.norm(target, axis=0)
            ),
        )

        def is_open(state: Iterate) -> Array:
            is_open = ~state.is_done & jnp.isfinite(state.squared)
            return is_open & (state.is_check | (state.iteration < max_iterations))

        def step(state: Iterate) -> Iterate:
            is_moving = is_open(state) & ~state.is_check
            image = times(jnp.where(state.is_check, state.solution, state.search))
            energy = jnp.sum(state.gradient**2, axis=0)
            curvature = jnp.sum(image**2, axis=0)
            size = energy / jnp.where(curvature > 0, curvature, jnp.inf) * is_moving
            residual = state.residual - size * image
            residual = jnp.where(state.is_check, target - image, residual)
            solution = state.solution + size * state.search
            gradient = transposed_times(residual)
            turn = jnp.sum(gradient**2, axis=0) / jnp.where(energy > 0, energy, jnp.inf)
            turn = jnp.where(state.is_check, 0, turn)
            error = self._backward_error(solution, gradient, residual)
            checked = jnp.minimum(error, self._error_by_both(state, residual))
            iteration = state.iteration + is_moving
            length = jnp.linalg.norm(residual, axis=0)
            return Iterate(
                solution=solution,
                residual=residual,
                gradient=gradient,
                search=gradient + turn * state.search,
                # The factor 1/4 is a margin, since the updated residual is an estimate.
                is_check=~state.is_check & (error <= self.tolerance / 4),
                is_done=state.is_done | (state.is_check & (checked <= self.tolerance)),
                iteration=iteration,
                history=record(state.history, iteration, length),
            )

        return lax.while_loop(lambda state: jnp.any(is_open(state)), step, start)

    def _backward_error(
        self, solution: Array, gradient: Array, residual: Array
    ) -> Array:
        """Computes the smaller of two bounds on the backward error, relative to ‖X‖.

        Changes of X by r rᵀX / rᵀr and by r θᵀ / θᵀθ each make θ exact.
        """
        length, size = (jnp.linalg.norm(part, axis=0) for part in (residual, solution))
        by_gradient = jnp.linalg.norm(gradient, axis=0) / safe(length)
        by_residual = length / safe(size)
        by_residual = jnp.where((size > 0) | (length == 0), by_residual, jnp.inf)
        return jnp.minimum(by_gradient, by_residual) / safe(self.scaling.norm)

    def _error_by_both(self, state: Iterate, recomputed: Array) -> Array:
        """Bounds the backward error by the updated and the recomputed residual.

        If the residual r is small against y, the rounding of y - Aθ alone can exceed
        the bound for Aᵀr. Let u be the updated residual, and d = r - u. A change of A
        by d θᵀ / θᵀθ makes u the residual of θ. A further change by u uᵀA / uᵀu, up to
        the same rounding, makes θ exact. Both sizes are known without the condition
        number of A.

        Args:
          state: Iterate with the updated residual and its gradient.
          recomputed: y - Aθ.
        """
        updated = state.residual
        gradient = state.gradient
        size = jnp.linalg.norm(state.solution, axis=0)
        rounding = jnp.linalg.norm(recomputed - updated, axis=0) / safe(size)
        length = safe(jnp.linalg.norm(updated, axis=0))
        slope = jnp.linalg.norm(gradient, axis=0) / length
        return (slope + 2 * rounding) / safe(self.scaling.norm)


def column_scaling(rows: Products, root: Array | None) -> ColumnScaling:
    """Computes powers of two that scale columns to about 1, and the scaled norm of X.

    Rows `root` I count as rows of X. All columns of an operator share one power, and
    its norm is an estimate.
    """
    num_columns = rows.shape[1]
    root = jnp.zeros((), rows.dtype) if root is None else root
    if isinstance(rows, LinearOperator):
        norm, _ = probed(jax.random.key(0), rows)
        norm = jnp.hypot(norm, root * num_columns**0.5)
        scale = inverse_power_of_two(norm)
        return ColumnScaling(jnp.full(num_columns, scale), norm * scale)
    assert isinstance(rows, SparseRows)
    # Columns are scaled in two steps, to avoid overflow of squares.
    scale = inverse_power_of_two(jnp.maximum(rows.largest(), root))
    norms = jnp.sqrt(rows.column_squares(scale) + (root * scale) ** 2)
    unit = inverse_power_of_two(norms)
    return ColumnScaling(scale * unit, jnp.linalg.norm(norms * unit))
