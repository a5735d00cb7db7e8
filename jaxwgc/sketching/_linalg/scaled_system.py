"""Least squares by conjugate gradients, preconditioned by column scales alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc._common.conjugate_gradients import CGState, cg_start, cg_step, step_length
from jaxwgc.sketching._linalg.linear_operator import Operator, probed
from jaxwgc.sketching._linalg.matrix import Matrix
from jaxwgc.sketching._linalg.monitor import Monitor, select
from jaxwgc.sketching._linalg.rows import padded_with_zeros, safe, scaled
from jaxwgc.sketching._linalg.sparse import Sparse


class ColumnScaling(NamedTuple):
    """Column scales for a matrix too wide for `Factors`, and its norm after scaling.

    Attributes:
      scale: (p,), powers of two that scale the norms of columns to about 1.
      norm: The Frobenius norm of X diag(scale), with the rows of a ridge.
    """

    scale: Array
    norm: Array
    rank = None


class Iterate(NamedTuple):
    """State of the conjugate gradient iterations, for each target.

    The scaled parameters are x = θ / scale.

    Attributes:
      x: The solution so far.
      r: The residual, with the rows of a ridge.
      cg: The state of conjugate gradients.
      is_check: Whether the next iteration recomputes the residual.
      monitor: Has converged if a recomputed residual has passed the test.
    """

    x: Array
    r: Array
    cg: CGState
    is_check: Array
    monitor: Monitor


class ScaledSystem(NamedTuple):
    """Solver of least squares by conjugate gradients on scaled columns and ridge rows.

    The matrix is A = X diag(scale) stacked on `root_ridge` diag(scale).
    """

    matrix: Matrix
    scaling: ColumnScaling
    tolerance: Array
    root_ridge: Array | None = None

    def times(self, vector: Array) -> Array:
        """Multiplies vectors by A, the scaled matrix stacked on ridge rows."""
        vector = scaled(self.scaling.scale, vector)
        image = self.matrix.mv(vector)
        if self.root_ridge is None:
            return image
        return jnp.concatenate([image, self.root_ridge * vector])

    def transposed_times(self, vector: Array) -> Array:
        """Multiplies vectors by Aᵀ, the transpose of the matrix in `times`."""
        num_rows = self.matrix.shape[0]
        image = self.matrix.rmv(vector[:num_rows])
        if self.root_ridge is not None:
            image += self.root_ridge * vector[num_rows:]
        return scaled(self.scaling.scale, image)

    def padded(self, target: Array) -> Array:
        """Appends a zero to targets for each ridge row, if there is a ridge."""
        if self.root_ridge is None:
            return target
        return padded_with_zeros(target, self.matrix.shape[1])

    def solve(
        self, target: Array, max_iterations: int, is_transposed: bool = False
    ) -> Iterate:
        """Solves least squares for A or its transpose, and returns the last `Iterate`.

        Iterations start at zero, so that the solution has minimum norm. The updated
        residual is as accurate as in LSQR. If it passes the test of the backward error,
        the next iteration recomputes the residual. Iterations continue if the
        recomputed residual does not pass. See `_error_by_both` for its test.
        """
        if is_transposed:
            times = self.transposed_times
            transposed_times = self.times
        else:
            times = self.times
            transposed_times = self.transposed_times
        s = transposed_times(target)
        zeros = jnp.zeros_like(s)
        start = Iterate(
            x=zeros,
            r=target,
            cg=cg_start(s),
            is_check=self._backward_error(zeros, s, target) <= self.tolerance,
            monitor=Monitor.init(jnp.linalg.norm(target, axis=0), max_iterations),
        )

        def is_running(state: Iterate) -> Array:
            # A residual that passed in the last allowed iteration is still recomputed.
            is_unchecked = state.is_check & ~state.monitor.has_ended
            return state.monitor.is_running(max_iterations) | is_unchecked

        def step(state: Iterate) -> Iterate:
            is_check = state.is_check
            is_open = is_running(state)
            is_moving = is_open & ~is_check
            image = times(jnp.where(is_check, state.x, state.cg.p))
            alpha = step_length(state.cg, jnp.sum(image**2, axis=0)) * is_moving
            x = state.x + alpha * state.cg.p
            r = jnp.where(is_check, target - image, state.r - alpha * image)
            s = transposed_times(r)
            cg = select(is_check, cg_start(s), cg_step(state.cg, s))
            error = self._backward_error(x, s, r)
            checked_error = jnp.minimum(error, self._error_by_both(state, r))
            monitor = state.monitor.update(
                jnp.linalg.norm(r, axis=0),
                is_check & (checked_error <= self.tolerance),
                num_iterations=is_moving,
            )
            monitor = select(is_open, monitor, state.monitor)
            # The factor 1/4 is a margin, since the updated residual is an estimate.
            is_check = ~is_check & (error <= self.tolerance / 4)
            return Iterate(x=x, r=r, cg=cg, is_check=is_check, monitor=monitor)

        return lax.while_loop(lambda state: jnp.any(is_running(state)), step, start)

    def _backward_error(
        self, solution: Array, gradient: Array, residual: Array
    ) -> Array:
        """Computes the smaller of two bounds on the relative backward error.

        Changes of X by r rᵀX / rᵀr and by r θᵀ / θᵀθ each make θ exact.
        """
        length = jnp.linalg.norm(residual, axis=0)
        size = jnp.linalg.norm(solution, axis=0)
        by_gradient = jnp.linalg.norm(gradient, axis=0) / safe(length)
        by_residual = length / safe(size)
        by_residual = jnp.where((size > 0) | (length == 0), by_residual, jnp.inf)
        return jnp.minimum(by_gradient, by_residual) / safe(self.scaling.norm)

    def _error_by_both(self, state: Iterate, recomputed: Array) -> Array:
        """Computes a backward error bound from the updated and recomputed residuals.

        If the residual r is small against y, the rounding error of y - Aθ can exceed
        the bound for Aᵀr. Let u be the updated residual, and d = r - u. A change of A
        by d θᵀ / θᵀθ makes u the residual of θ. A further change by u uᵀA / uᵀu, up to
        the same rounding, makes θ exact. Both sizes are known without the condition
        number of A.

        Args:
          state: Iterate with the updated residual and its gradient.
          recomputed: y - Aθ.
        """
        updated = state.r
        size = jnp.linalg.norm(state.x, axis=0)
        rounding = jnp.linalg.norm(recomputed - updated, axis=0) / safe(size)
        length = safe(jnp.linalg.norm(updated, axis=0))
        slope = jnp.sqrt(state.cg.gamma) / length
        return (slope + 2 * rounding) / safe(self.scaling.norm)


def column_scaling(
    matrix: Operator | Sparse, root_ridge: Array | None
) -> ColumnScaling:
    """Computes powers of two that scale columns, and the norm after scaling.

    Rows `root_ridge` I count as rows of X. All columns of an operator share one power,
    and its norm is an estimate.
    """
    num_columns = matrix.shape[1]
    root_ridge = jnp.zeros((), matrix.dtype) if root_ridge is None else root_ridge
    if isinstance(matrix, Operator):
        norm, _ = probed(jax.random.key(0), matrix)
        norm = jnp.hypot(norm, root_ridge * num_columns**0.5)
        scale = inverse_power_of_two(norm)
        return ColumnScaling(jnp.full(num_columns, scale), norm * scale)
    # Columns are scaled in two steps, to avoid overflow of squares.
    scale = inverse_power_of_two(jnp.maximum(matrix.column_maxima(), root_ridge))
    norms = jnp.sqrt(matrix.column_squares(scale) + (root_ridge * scale) ** 2)
    unit = inverse_power_of_two(norms)
    return ColumnScaling(scale * unit, jnp.linalg.norm(norms * unit))
