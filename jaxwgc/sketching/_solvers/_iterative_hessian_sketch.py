"""Constrained least squares by Newton steps with sketched Hessians."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc import _validation
from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching import _conversions, _solver_arguments
from jaxwgc.sketching._embeddings._dense_matrices import gaussian
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.factors import Factors, factors_of_small, solver_cutoff
from jaxwgc.sketching._linalg.implicit import implicit_solution
from jaxwgc.sketching._linalg.kinds import warn_of_precision
from jaxwgc.sketching._linalg.monitor import Criterion, all_met
from jaxwgc.sketching._linalg.rows import gram, scaled
from jaxwgc.sketching._solvers._least_squares import Solution, in_units

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
        `rademacher`, `srht`, `count_sketch`, `sparse_sign` or `row_sampling`; or an
        `Embedding` of shape (m, N). The keys of all S are then split from its key.
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
    _validation.check_key(key)
    given = matrix
    matrix = _conversions.gathered(_conversions.finite_matrix("matrix", matrix))
    target = _conversions.gathered(
        _solver_arguments.right_hand_side(target, matrix.shape)
    )
    dtype = jnp.promote_types(matrix.dtype, target.dtype)
    matrix = matrix.astype(dtype)
    target = target.astype(dtype)
    # With fewer rows, the expected error is not finite.
    sketch_size = _solver_arguments.sketch_size(sketch_size, matrix.shape, more=4)
    check_int = _validation.check_int
    num_iterations = check_int("num_iterations", num_iterations, minimum=1)
    _validation.check_bool("refresh", refresh)
    num_inner_steps = check_int("num_inner_steps", num_inner_steps, minimum=1)
    embedding = embed(embedding, key, sketch_size, matrix.shape[0])
    if projection is not None:
        rule = "be True with a projection: momentum is not known to converge with one"
        _validation.require(refresh, "refresh", rule, refresh)
        _validation.check_callable("projection", projection)
    if step_size is None:
        free = sketch_size - min(matrix.shape)
        step_size = free * (free - 3) / (sketch_size * (sketch_size - 1))
        if not refresh:
            step_size = (free / sketch_size) ** 2
    _validation.check_number("step_size", step_size, positive=True)
    root_eps = float(jnp.finfo(dtype).eps) ** 0.5
    regulariser = _solver_arguments.regulariser(ridge, dtype)
    tolerance = _solver_arguments.stopping_tolerance(tolerance, root_eps, dtype)
    numbers = regulariser, _conversions.scalar(step_size, dtype), tolerance
    options = num_iterations, projection, num_inner_steps, refresh
    solution = _solve(matrix, target, embedding, numbers, options)
    if solution.rank is not None and regulariser is None:
        warn_of_precision(given, Dense(matrix), solution.rank.rank)
    return solution


@functools.partial(jax.jit, static_argnames="options")
def _solve(
    matrix: Array, target: Array, embedding: Embedding, numbers: Any, options: Any
) -> Solution:
    ridge, step_size, tolerance = numbers
    num_iterations, projection, num_inner_steps, refresh = options
    # Scaling by an exact power of two avoids overflow of squares.
    largest = jnp.max(jnp.abs(lax.stop_gradient(matrix)), axis=0)
    root = 0 if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    size = inverse_power_of_two(jnp.maximum(jnp.max(largest), root))
    matrix = matrix * size
    ridge = None if ridge is None else ridge * size * size
    system = matrix, ridge
    # Without a projection, derivatives come from `implicit_solution`, not from the
    # iterations.
    constant = lax.stop_gradient if projection is None else lambda x: x
    matrix, ridge = constant(system)

    def sketch(key: Array) -> tuple[Array, Any]:
        # The sketch changes the iterations, not their limit, and so has no derivative.
        small = dataclasses.replace(embedding, key=key) @ lax.stop_gradient(matrix)
        return small, _prepared(small, lax.stop_gradient(ridge), projection)

    # A constant sketch is computed once for all targets, outside of the loop.
    fixed = None if refresh else sketch(embedding.key)
    momentum = 0 if refresh else min(matrix.shape) / embedding.sketch_size

    def solve(system_target: Array, unit: Array) -> Solution:
        target = constant(system_target)

        def projected(solution: Array) -> Array:
            assert projection is not None
            return projection(solution * size / unit).astype(matrix.dtype) * unit / size

        def downhill_of(solution: Array) -> tuple[Array, Array]:
            rows = Dense(matrix)
            gradient, squared = rows.sum_rows(_downhill, solution, along=(target,))
            if ridge is None:
                return gradient, squared
            pulled = ridge * solution
            return gradient - pulled, squared + jnp.sum(pulled * solution)

        constrained_change = functools.partial(_constrained_change, num_inner_steps)

        def step(state, key):
            solution, last, gradient, _ = state
            small, prepared = fixed or sketch(key)
            downhill = step_size * gradient
            if projection is None:
                change = _free_change(prepared, downhill)
            else:
                change = constrained_change(prepared, solution, downhill, projected)
            change = change + momentum * (solution - last)
            moved = jnp.linalg.norm(product(small, change))
            new = solution + change
            gradient, squared = downhill_of(new)
            return (new, solution, gradient, prepared), (jnp.sqrt(squared), moved)

        start = jnp.zeros(matrix.shape[1], matrix.dtype)
        if projection is not None:
            start = projected(start)
        gradient, squared = downhill_of(start)
        keys = jax.random.split(embedding.key, num_iterations)
        # The loop returns the factors of the last sketch, so that the program computes
        # factors in one place.
        shapes = jax.eval_shape(sketch, keys[0])[1]
        state = start, start, gradient, jax.tree.map(jnp.zeros_like, shapes)
        state, (norms, moved) = lax.scan(step, state, keys)
        solution, _, gradient, prepared = state
        history = jnp.concatenate([jnp.sqrt(squared)[None], norms])
        # The change is divided by the step size, since small steps do not mean
        # convergence.
        rank = None
        length = moved[-1] / jnp.minimum(step_size, 1)
        criteria = [Criterion(length, tolerance * jnp.linalg.norm(target))]
        if projection is None:
            # The exact gradient is tested, too, since it includes directions that the
            # sketch missed.
            bound = 10 * tolerance * jnp.linalg.norm(matrix) * jnp.linalg.norm(target)
            criteria.append(Criterion(jnp.linalg.norm(gradient), bound))
            factors, _ = prepared
            rank = factors.rank
            solution = implicit_solution(
                solution, Dense(system[0]), system_target, system[1], factors
            )
        return Solution(
            solution=solution * size,
            num_iterations=jnp.int32(num_iterations),
            converged=all_met(criteria),
            residual_history=history,
            rank=rank,
        )

    def solve_scaled(target: Array) -> Solution:
        # Each y is scaled to size 1 by a power of two, to avoid overflow of squares.
        unit = inverse_power_of_two(jnp.max(jnp.abs(lax.stop_gradient(target))))
        scale = inverse_power_of_two(largest)
        return in_units(solve(target * unit, unit), unit, scale)

    if target.ndim == 1:
        return solve_scaled(target)
    return jax.vmap(solve_scaled, in_axes=-1, out_axes=-1)(target)


def _prepared(small: Array, ridge: Array | None, projection: Projection | None) -> Any:
    """Factorises a sketch of X, once for all changes of θ by this sketch."""
    if projection is None:
        rcond = solver_cutoff(small.shape, small.dtype)
        root = None if ridge is None else jnp.sqrt(ridge)
        factors = factors_of_small(small, rcond, root=root)
        return factors, factors.row_space()
    hessian = gram(small)
    if ridge is not None:
        hessian += ridge * jnp.eye(small.shape[1], dtype=small.dtype)
    return hessian, jnp.linalg.eigvalsh(hessian)[-1]


def _free_change(prepared: tuple[Factors, Array], gradient: Array) -> Array:
    """Returns the unconstrained Newton step of a sketched Hessian."""
    factors, row_space = prepared
    coordinates = product(factors.inverse.T, factors.scale * gradient)
    return scaled(factors.scale, factors.direction(coordinates, row_space))


def _downhill(block: Array, target: Array, solution: Array) -> tuple[Array, Array]:
    residual = target - product(block, solution)
    return product(residual, block), jnp.sum(residual**2)


def _constrained_change(
    num_steps: int, prepared: Any, solution: Array, gradient: Array, projection: Any
) -> Array:
    """Takes accelerated projected gradient steps, with restarts after overshoots."""
    hessian, largest = prepared
    inverse = 1 / jnp.where(largest > 0, largest, 1)

    def step(_, state):
        point, extrapolated, weight = state
        slope = product(hessian, extrapolated - solution)
        new = projection(extrapolated - inverse * (slope - gradient))
        is_overshot = jnp.sum((extrapolated - new) * (new - point)) > 0
        weight = jnp.where(is_overshot, 1, weight)
        new_weight = (1 + jnp.sqrt(1 + 4 * weight**2)) / 2
        extrapolated = new + (weight - 1) / new_weight * (new - point)
        return new, extrapolated, new_weight

    start = (solution, solution, jnp.ones((), solution.dtype))
    return lax.fori_loop(0, num_steps, step, start)[0] - solution
