"""Least squares by conjugate gradients in scaled columns, for any width."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._arrays import inverse_power_of_two
from jaxwgc.sketching._linalg.operator import LinearOperator, probed
from jaxwgc.sketching._linalg.orthonormalise import scaled
from jaxwgc.sketching._linalg.refinement import is_shortest, record
from jaxwgc.sketching._linalg.rows import Products, SparseRows


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
        if the recomputed one does not pass.
        """
        times, transposed_times = self.times, self.transposed_times
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
            iteration = state.iteration + is_moving
            length = jnp.linalg.norm(residual, axis=0)
            return Iterate(
                solution=solution,
                residual=residual,
                gradient=gradient,
                search=gradient + turn * state.search,
                # A margin, since the updated residual is an estimate.
                is_check=~state.is_check & (error <= self.tolerance / 4),
                is_done=state.is_done | (state.is_check & (error <= self.tolerance)),
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
        by_gradient = jnp.linalg.norm(gradient, axis=0) / _safe(length)
        by_residual = length / _safe(size)
        by_residual = jnp.where((size > 0) | (length == 0), by_residual, jnp.inf)
        return jnp.minimum(by_gradient, by_residual) / _safe(self.scaling.norm)

    def is_lowest(self, state: Iterate, target: Array) -> Array:
        """Tests whether a step along the gradient hardly shortens the residual."""
        norm = jnp.linalg.norm(target, axis=0)
        eps = jnp.finfo(norm.dtype).eps
        rounding = 4 * eps * self.scaling.norm * jnp.linalg.norm(state.solution, axis=0)
        length = jnp.linalg.norm(self.times(state.gradient), axis=0)
        gain = jnp.sum(state.gradient**2, axis=0) / _safe(length)
        part = jnp.hypot(gain, rounding)
        is_low = is_shortest(part, state.squared, norm, self.tolerance)
        return is_low & (state.squared <= (1 + 2 * eps**0.5) * norm**2)


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
    # Twice, to avoid overflow of squares.
    scale = inverse_power_of_two(jnp.maximum(rows.largest(), root))
    norms = jnp.sqrt(rows.column_squares(scale) + (root * scale) ** 2)
    unit = inverse_power_of_two(norms)
    return ColumnScaling(scale * unit, jnp.linalg.norm(norms * unit))


def _safe(value: Array) -> Array:
    """Replaces values that are not positive by 1, for divisions."""
    return jnp.where(value > 0, value, 1)
