"""Newton steps with sketched Hessians for constrained least squares."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._linalg.factors import Factors, factors_of_small, solver_cutoff
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.rows import gram, scaled
from jaxwgc.sketching._solvers._solution import Solution

Projection = Callable[[Array], Array]


class FactoredSketch(NamedTuple):
    """A sketch for steps without a projection."""

    factors: Factors
    row_space: Array


class SketchedHessian(NamedTuple):
    """A sketch for steps with a projection: its Hessian, and the largest eigenvalue."""

    hessian: Array
    largest: Array


class _State(NamedTuple):
    """State of the iterations for one target.

    Attributes:
      solution: θ.
      last: θ before the last step.
      gradient: Xᵀ(y - Xθ) - ridge θ.
      prepared: The sketch of the last step.
    """

    solution: Array
    last: Array
    gradient: Array
    prepared: FactoredSketch | SketchedHessian


class Steps(NamedTuple):
    """The steps for one target, with X and y scaled to size 1.

    Attributes:
      matrix: X.
      ridge: The ridge, or None.
      target: y.
      embedding: S. Each step replaces its key.
      step_size: See `iterative_hessian_sketch`.
      momentum: The factor of the last change of θ, which is added to a step.
      num_inner_steps: See `iterative_hessian_sketch`.
      projection: The projection of the scaled θ, or None.
      fixed_sketch: The result of `sketch` that all steps use, or None.
    """

    matrix: Array
    ridge: Array | None
    target: Array
    embedding: Embedding
    step_size: Array
    momentum: float
    num_inner_steps: int
    projection: Projection | None
    fixed_sketch: tuple[Array, FactoredSketch | SketchedHessian] | None

    def sketch(self, key: Array) -> tuple[Array, FactoredSketch | SketchedHessian]:
        """Returns a sketch of X, and its factors or its Hessian.

        The sketch changes the iterations, not their limit, and so has no derivative.
        """
        embedding = dataclasses.replace(self.embedding, key=key)
        small = embedding @ lax.stop_gradient(self.matrix)
        ridge = lax.stop_gradient(self.ridge)
        if self.projection is None:
            root_ridge = None if ridge is None else jnp.sqrt(ridge)
            rcond = solver_cutoff(small.shape, small.dtype)
            factors = factors_of_small(small, rcond, root_ridge=root_ridge)
            return small, FactoredSketch(factors, factors.row_space())
        hessian = gram(small)
        if ridge is not None:
            hessian += ridge * jnp.eye(small.shape[1], dtype=small.dtype)
        return small, SketchedHessian(hessian, jnp.linalg.eigvalsh(hessian)[-1])

    def gradient(self, solution: Array) -> tuple[Array, Array]:
        """Computes Xᵀ(y - Xθ) - ridge θ, and the objective."""
        gradient, squared = Dense(self.matrix).sum_rows(
            _residual_products, solution, along=(self.target,)
        )
        if self.ridge is None:
            return gradient, squared
        pulled = self.ridge * solution
        return gradient - pulled, squared + jnp.sum(pulled * solution)

    def start(self, key: Array) -> tuple[_State, Array]:
        """Returns the state at θ = 0, or at its projection, and the objective."""
        solution = jnp.zeros(self.matrix.shape[1], self.matrix.dtype)
        if self.projection is not None:
            solution = self.projection(solution)
        gradient, squared = self.gradient(solution)
        # The loop returns the sketch of its last step. At the start, it is zero, so
        # that the program computes factors only inside the loop.
        _, shapes = jax.eval_shape(self.sketch, key)
        prepared = jax.tree.map(jnp.zeros_like, shapes)
        return _State(solution, solution, gradient, prepared), squared

    def step(self, state: _State, key: Array) -> tuple[_State, tuple[Array, Array]]:
        """Takes a step; also returns the root of the objective, and ‖SXΔθ‖."""
        if self.fixed_sketch is None:
            small, prepared = self.sketch(key)
        else:
            small, prepared = self.fixed_sketch
        downhill = self.step_size * state.gradient
        if isinstance(prepared, FactoredSketch):
            factors, row_space = prepared
            coordinates = product(factors.inverse.T, factors.scale * downhill)
            direction = factors.direction(coordinates, row_space)
            change = scaled(factors.scale, direction)
        else:
            assert self.projection is not None
            change = _constrained_change(
                prepared,
                state.solution,
                downhill,
                self.projection,
                num_steps=self.num_inner_steps,
            )
        change = change + self.momentum * (state.solution - state.last)
        moved = jnp.linalg.norm(product(small, change))
        solution = state.solution + change
        gradient, squared = self.gradient(solution)
        new_state = _State(solution, state.solution, gradient, prepared)
        return new_state, (jnp.sqrt(squared), moved)


def iterated(
    steps: Steps, tolerance: Array, num_iterations: int
) -> tuple[Solution, Factors | None]:
    """Runs the iterations for one target; also returns the factors of the last sketch.

    With a projection, there are no factors.
    """
    keys = jax.random.split(steps.embedding.key, num_iterations)
    start, squared = steps.start(keys[0])
    state, (norms, moved) = lax.scan(steps.step, start, keys)
    target_norm = jnp.linalg.norm(steps.target)
    # The change is divided by the step size, since a change may be small because the
    # step size is.
    length = moved[-1] / jnp.minimum(steps.step_size, 1)
    has_converged = length <= tolerance * target_norm
    factors = None
    if isinstance(state.prepared, FactoredSketch):
        factors = state.prepared.factors
        # The exact gradient is tested as well, since it includes directions that the
        # sketch missed.
        bound = 10 * tolerance * jnp.linalg.norm(steps.matrix) * target_norm
        has_converged &= jnp.linalg.norm(state.gradient) <= bound
    solution = Solution(
        solution=state.solution,
        num_iterations=jnp.int32(num_iterations),
        converged=has_converged,
        residual_history=jnp.concatenate([jnp.sqrt(squared)[None], norms]),
        rank=None if factors is None else factors.rank,
    )
    return solution, factors


def _residual_products(
    block: Array, target: Array, solution: Array
) -> tuple[Array, Array]:
    """Computes Xᵀr and ‖r‖² of the residual r = y - Xθ of a block of rows."""
    residual = target - product(block, solution)
    return product(residual, block), jnp.sum(residual**2)


def _constrained_change(
    sketch: SketchedHessian,
    solution: Array,
    gradient: Array,
    projection: Projection,
    *,
    num_steps: int,
) -> Array:
    """Takes accelerated projected gradient steps, with restarts after overshoots."""
    inverse = 1 / jnp.where(sketch.largest > 0, sketch.largest, 1)

    def step(_, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        point, extrapolated, weight = state
        slope = product(sketch.hessian, extrapolated - solution)
        new = projection(extrapolated - inverse * (slope - gradient))
        is_overshot = jnp.sum((extrapolated - new) * (new - point)) > 0
        weight = jnp.where(is_overshot, 1, weight)
        new_weight = (1 + jnp.sqrt(1 + 4 * weight**2)) / 2
        extrapolated = new + (weight - 1) / new_weight * (new - point)
        return new, extrapolated, new_weight

    state = (solution, solution, jnp.ones((), solution.dtype))
    end, _, _ = lax.fori_loop(0, num_steps, step, state)
    return end - solution
