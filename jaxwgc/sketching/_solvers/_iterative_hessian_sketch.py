"""Constrained least squares by Newton steps with sketched Hessians."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._dense_matrices import gaussian
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._linalg.factors import (
    Factors,
    factors_of_small,
    root_of,
    solver_cutoff,
)
from jaxwgc.sketching._linalg.kinds import warn_of_precision
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.rows import gram, scaled
from jaxwgc.sketching._solvers._solution import (
    Solution,
    implicit_solution,
    in_units,
    to_unit_size,
)

Projection = Callable[[Array], Array]


def iterative_hessian_sketch(
    key: Array,
    matrix: ArrayLike,
    target: ArrayLike,
    sketch_size: int,
    num_iterations: int,
    projection: Projection | None = None,
    embedding: EmbeddingLike = gaussian,
    *,
    ridge: ArrayLike = 0.0,
    refresh: bool = True,
    step_size: ArrayLike | None = None,
    num_inner_steps: int = 200,
    tolerance: ArrayLike | None = None,
) -> Solution:
    """Solves constrained least squares by exact gradients and sketched Hessians.

    It minimises ‖Xθ - y‖² + ridge ‖θ‖² over a convex set. In the sketched Hessian,
    ridge I is exact. Every iteration draws a sketch S of X and moves to the θ of the
    set that minimises ‖SX(θ - θₜ)‖² / (2 step_size) - ⟨Xᵀ(y - Xθₜ), θ - θₜ⟩. Unlike in
    `sketch_and_solve`, the exact solution is a fixed point for any sketch size. The
    error ‖X(θₜ - θ*)‖ falls by a constant factor per iteration.

    For Gaussian sketches of m rows, without constraints, the default step is optimal.
    Each iteration then multiplies the expected squared error by 1 - (m - p)(m - p - 3)
    / ((m - p - 1)(m - 1)), close to p / m. The step of 1 of the original paper gives a
    larger factor, and diverges for m < 3.4 p.

    Args:
      key: A PRNG key.
      matrix: X, real, of shape (N, p). Without a projection, of any rank.
      target: y, of shape (N,), or (N, c) for c systems, which share the sketches.
      sketch_size: m, at least min(N, p) + 4.
      num_iterations: T, the number of iterations, an int.
      projection: The Euclidean projection of a vector (p,) on the convex set, such as
        `optax.projections.projection_non_negative`, or a `functools.partial` of
        `projection_box` or `projection_l1_ball`. Pass the same object in every call: a
        new lambda compiles again. By default there are no constraints.
      embedding: The distribution of S. Either a constructor, such as `gaussian`,
        `rademacher`, `srht`, `count_sketch`, `sparse_sign`, `sparse_stack` or
        `row_sampling`; or an `Embedding` of shape (m, N). The keys of all S are then
        split from its key.
      ridge: A non-negative number, may be traced. The default step size ignores it:
        with a large ridge, a step size of 1 is better.
      refresh: Whether every iteration draws a new sketch. False uses one sketch for all
        iterations, with heavy-ball momentum, and saves time. It does not support a
        projection. The factor is again p / m, but only after some iterations and in the
        limit of many columns. With tens of columns, a few sketches have singular values
        outside of the limiting range. They are slower or, for m of a few times p,
        diverge. Take m of at least 16 p then, or a smaller step_size, and check
        `converged`.
      step_size: By default, the optimum for Gaussian sketches, (m - p)(m - p - 3) / (m
        (m - 1)); for `refresh=False` it is (1 - p / m)². If N < p, N replaces p.
      num_inner_steps: With a projection, the number of accelerated projected gradient
        steps that minimise over the set. They use a p × p matrix only. An
        ill-conditioned X needs more steps.
      tolerance: Tolerance of `converged`, by default the square root of machine
        epsilon.

    Returns:
      A `Solution`. Its history holds the norms of the residual y - Xθₜ, (T + 1,); with
      a ridge, the roots of the objective.

      `converged` says that a full last step would move Xθ by less than `tolerance`
      times the norm of y, measured by the sketch. Without a projection, the gradient
      must be as small, too. With a projection and an ill-conditioned X, θ may still be
      far from the solution. If X is rank-deficient and there is no projection, θ is the
      minimum-norm solution. A NaN in a traced matrix or target gives NaN and False.
      Derivatives of `solution` are as in `preconditioned`, and the history is constant.
      With a projection, the iterations are differentiated with constant sketches. These
      derivatives are as exact as the solution, unless it happens to lie on an edge of
      the set.

    Raises:
      ValueError: If sketch_size is too small, shapes do not match, entries are not
        finite (unless traced), or the embedding has the wrong shape; if a projection is
        given with refresh=False; if step_size is not positive or ridge is negative.
      TypeError: If an array is complex, sparse or not numeric, the projection is not a
        function or does not return (p,), or the embedding is neither a constructor nor
        an `Embedding`.

    Example:
      Parameters of at least 0. Without `projection`, the solution would be [1, -2].

      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> target = matrix @ jnp.array([1.0, -2.0])
      >>> result = sketching.iterative_hessian_sketch(
      ...     jax.random.key(1),
      ...     matrix,
      ...     target,
      ...     sketch_size=20,
      ...     num_iterations=10,
      ...     projection=optax.projections.projection_non_negative,
      ... )
      >>> print(result.solution[1])
      0.0

    References:
      Pilanci and Wainwright, "Iterative Hessian sketch: fast and accurate solution
      approximation for constrained least-squares", JMLR 17 (2016). Lacotte and Pilanci,
      "Optimal randomized first-order methods for least-squares problems", ICML 2020,
      and Ozaslan, Pilanci and Arikan, "Iterative Hessian sketch with momentum", ICASSP
      2019, for steps and momentum. O'Donoghue and Candès, "Adaptive restart for
      accelerated gradient schemes", Found. Comput. Math. 15 (2015), for the inner
      steps.
    """
    array_validation.check_key(key)
    rows = _arguments.finite_matrix("matrix", matrix)
    target = _arguments.right_hand_side(target, rows.shape)
    target = conversions.gathered(target)
    dtype = jnp.promote_types(rows.dtype, target.dtype)
    rows = rows.astype(dtype)
    target = target.astype(dtype)
    # With fewer rows of the sketch, the expected error of a step is not finite.
    sketch_size = _arguments.sketch_size(sketch_size, rows.shape, more=4)
    num_iterations = validation.check_int("num_iterations", num_iterations, minimum=1)
    validation.check_bool("refresh", refresh)
    num_inner_steps = validation.check_int(
        "num_inner_steps", num_inner_steps, minimum=1
    )
    embedding = embed(embedding, key, sketch_size, rows.shape[0])
    if projection is not None:
        if not refresh:
            raise ValueError(
                f"projection= needs refresh=True; got refresh={refresh}. The momentum "
                "of refresh=False is not known to converge under constraints"
            )
        validation.check_callable("projection", projection)
    if step_size is None:
        step_size = _default_step_size(sketch_size, min(rows.shape), refresh)
    array_validation.check_number("step_size", step_size, positive=True)
    root_eps = float(jnp.finfo(dtype).eps) ** 0.5
    regulariser = _arguments.regulariser(ridge, dtype)
    solution = _solve(
        rows,
        target,
        embedding,
        ridge=regulariser,
        step_size=_arguments.scalar(step_size, dtype),
        tolerance=_arguments.stopping_tolerance(tolerance, root_eps, dtype),
        num_iterations=num_iterations,
        projection=projection,
        num_inner_steps=num_inner_steps,
        refresh=refresh,
    )
    if solution.rank is not None and regulariser is None:
        warn_of_precision(matrix, Dense(rows), solution.rank.rank)
    return solution


def _default_step_size(sketch_size: int, rank: int, refresh: bool) -> float:
    """Returns the step size that is optimal for Gaussian sketches."""
    num_free = sketch_size - rank
    if not refresh:
        return (num_free / sketch_size) ** 2
    return num_free * (num_free - 3) / (sketch_size * (sketch_size - 1))


@functools.partial(
    jax.jit,
    static_argnames=("num_iterations", "projection", "num_inner_steps", "refresh"),
)
def _solve(
    matrix: Array,
    target: Array,
    embedding: Embedding,
    *,
    ridge: Array | None,
    step_size: Array,
    tolerance: Array,
    num_iterations: int,
    projection: Projection | None,
    num_inner_steps: int,
    refresh: bool,
) -> Solution:
    # Scaling by an exact power of two avoids overflow of squares.
    largest = jnp.max(jnp.abs(lax.stop_gradient(matrix)), axis=0)
    root = 0 if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    size = inverse_power_of_two(jnp.maximum(jnp.max(largest), root))
    matrix = matrix * size
    if ridge is not None:
        ridge = ridge * size * size
    # Without a projection, derivatives come from `implicit_solution` instead of the
    # iterations.
    is_free = projection is None
    steps = _Steps(
        matrix=lax.stop_gradient(matrix) if is_free else matrix,
        ridge=lax.stop_gradient(ridge) if is_free else ridge,
        target=target,
        embedding=embedding,
        step_size=step_size,
        momentum=0 if refresh else min(matrix.shape) / embedding.sketch_size,
        num_inner_steps=num_inner_steps,
        projection=projection,
    )
    if not refresh:
        # A constant sketch is computed once for all targets, outside of the loop.
        steps = steps._replace(fixed_sketch=steps.sketch(embedding.key))

    def solve(target: Array) -> Solution:
        to_unit = to_unit_size(target)
        scaled_target = target * to_unit
        fixed_target = lax.stop_gradient(scaled_target) if is_free else scaled_target
        steps_of_target = steps._replace(target=fixed_target, unit=size / to_unit)
        result, factors = steps_of_target.solve(tolerance, num_iterations)
        solution = result.solution
        if factors is not None:
            solution = implicit_solution(
                solution, Dense(matrix), scaled_target, ridge, factors
            )
        result = result._replace(solution=solution * size)
        return in_units(result, to_unit, inverse_power_of_two(largest))

    if target.ndim == 1:
        return solve(target)
    return jax.vmap(solve, in_axes=-1, out_axes=-1)(target)


class _Sketch(NamedTuple):
    """A sketch of the matrix, with its factors or its Hessian for a step.

    Attributes:
      small: SX.
      factors: Its factors, or None with a projection.
      hessian: (SX)ᵀSX + ridge I, or None without a projection.
    """

    small: Array
    factors: Factors | None
    hessian: Array | None


class _State(NamedTuple):
    """State of the iterations for one target.

    Attributes:
      solution: θ.
      last: θ before the last step.
      gradient: Xᵀ(y - Xθ) - ridge θ.
      sketch: The sketch of the last step.
    """

    solution: Array
    last: Array
    gradient: Array
    sketch: _Sketch


class _Steps(NamedTuple):
    """Solver for one target, with matrix and target scaled to size 1.

    Attributes:
      matrix: X.
      ridge: The ridge, or None.
      target: y.
      embedding: S. Each step replaces its key.
      step_size: See `iterative_hessian_sketch`.
      momentum: The factor of the last change of θ, which is added to a step.
      num_inner_steps: See `iterative_hessian_sketch`.
      projection: The projection in the original units, or None.
      unit: The factor from θ to the original units.
      fixed_sketch: The sketch that all steps use, or None.
    """

    matrix: Array
    ridge: Array | None
    target: Array
    embedding: Embedding
    step_size: Array
    momentum: float
    num_inner_steps: int
    projection: Projection | None
    unit: Array | float = 1.0
    fixed_sketch: _Sketch | None = None

    def solve(
        self, tolerance: Array, num_iterations: int
    ) -> tuple[Solution, Factors | None]:
        """Runs the iterations from zero; also returns the factors of the last sketch.

        With a projection, there are no factors.
        """
        keys = jax.random.split(self.embedding.key, num_iterations)
        zeros = jnp.zeros(self.matrix.shape[1], self.matrix.dtype)
        start = self._projected(zeros)
        gradient, squared = self._gradient(start)
        # The loop returns the sketch of its last step. At the start, it is zero, so
        # that the program computes factors only inside the loop.
        shapes = jax.eval_shape(self.sketch, keys[0])
        no_sketch = jax.tree.map(jnp.zeros_like, shapes)
        state = _State(start, start, gradient, no_sketch)
        state, (norms, moved) = lax.scan(self._step, state, keys)
        target_norm = jnp.linalg.norm(self.target)
        # The change is divided by the step size. If a change is small only because of a
        # small step size, the iterations have not converged.
        length = moved[-1] / jnp.minimum(self.step_size, 1)
        has_converged = length <= tolerance * target_norm
        factors = state.sketch.factors
        if factors is not None:
            # The exact gradient is tested as well, since it includes directions that
            # the sketch missed.
            bound = 10 * tolerance * jnp.linalg.norm(self.matrix) * target_norm
            has_converged &= jnp.linalg.norm(state.gradient) <= bound
        solution = Solution(
            solution=state.solution,
            num_iterations=jnp.int32(num_iterations),
            converged=has_converged,
            residual_history=jnp.concatenate([jnp.sqrt(squared)[None], norms]),
            rank=None if factors is None else factors.rank,
        )
        return solution, factors

    def sketch(self, key: Array) -> _Sketch:
        """Draws a sketch of the matrix.

        The sketch changes the iterations, not their limit, and so has no derivative.
        """
        embedding = dataclasses.replace(self.embedding, key=key)
        small = embedding @ lax.stop_gradient(self.matrix)
        ridge = lax.stop_gradient(self.ridge)
        if self.projection is None:
            rcond = solver_cutoff(small.shape, small.dtype)
            factors = factors_of_small(small, rcond, root_ridge=root_of(ridge))
            return _Sketch(small, factors, hessian=None)
        hessian = gram(small)
        if ridge is not None:
            hessian += ridge * jnp.eye(small.shape[1], dtype=small.dtype)
        return _Sketch(small, None, hessian)

    def _step(self, state: _State, key: Array) -> tuple[_State, tuple[Array, Array]]:
        """Takes a step; also returns the root of the objective and the step length."""
        sketch = self.fixed_sketch
        if sketch is None:
            sketch = self.sketch(key)
        downhill = self.step_size * state.gradient
        factors = sketch.factors
        if factors is not None:
            coordinates = product(factors.inverse.T, factors.scale * downhill)
            direction = factors.direction(coordinates, factors.row_space())
            change = scaled(factors.scale, direction)
        else:
            assert sketch.hessian is not None
            change = self._constrained_change(sketch.hessian, state.solution, downhill)
        change = change + self.momentum * (state.solution - state.last)
        moved = jnp.linalg.norm(product(sketch.small, change))
        solution = state.solution + change
        gradient, squared = self._gradient(solution)
        new_state = _State(solution, state.solution, gradient, sketch)
        return new_state, (jnp.sqrt(squared), moved)

    def _gradient(self, solution: Array) -> tuple[Array, Array]:
        """Computes the negative gradient and the objective at a point.

        The negative gradient is Xᵀ(y - Xθ) - ridge θ.
        """
        rows = Dense(self.matrix)
        residual = self.target - rows.mv(solution)
        gradient = rows.rmv(residual)
        squared = jnp.sum(residual**2)
        if self.ridge is None:
            return gradient, squared
        pulled = self.ridge * solution
        return gradient - pulled, squared + jnp.sum(pulled * solution)

    def _projected(self, solution: Array) -> Array:
        """Projects scaled parameters on the convex set."""
        if self.projection is None:
            return solution
        projected = self.projection(solution * self.unit)
        return projected.astype(solution.dtype) / self.unit

    def _constrained_change(
        self, hessian: Array, solution: Array, gradient: Array
    ) -> Array:
        """Computes the step to the minimum of the sketched, constrained problem."""
        largest = jnp.linalg.eigvalsh(hessian)[-1]
        inverse = 1 / jnp.where(largest > 0, largest, 1)

        def step(_, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            point, extrapolated, weight = state
            slope = product(hessian, extrapolated - solution)
            new = self._projected(extrapolated - inverse * (slope - gradient))
            is_overshot = jnp.sum((extrapolated - new) * (new - point)) > 0
            weight = jnp.where(is_overshot, 1, weight)
            new_weight = (1 + jnp.sqrt(1 + 4 * weight**2)) / 2
            extrapolated = new + (weight - 1) / new_weight * (new - point)
            return new, extrapolated, new_weight

        state = (solution, solution, jnp.ones((), solution.dtype))
        end, _, _ = lax.fori_loop(0, self.num_inner_steps, step, state)
        return end - solution
