"""Constrained least squares by Newton steps with sketched Hessians."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, conversions, validation
from jaxwgc._common.arrays import inverse_power_of_two
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._dense_matrices import gaussian
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._linalg.kinds import warn_of_precision
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._solvers._hessian_sketch_steps import (
    Projection,
    Steps,
    iterated,
)
from jaxwgc.sketching._solvers._solution import Solution, implicit_solution, in_units


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
    rows = conversions.gathered(_arguments.finite_matrix("matrix", matrix))
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
                "refresh must be True with a projection: momentum is not known to "
                f"converge with one; got {refresh}"
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
    """Returns the optimal step size for Gaussian sketches; see the docstring."""
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
    steps = Steps(
        matrix=lax.stop_gradient(matrix) if is_free else matrix,
        ridge=lax.stop_gradient(ridge) if is_free else ridge,
        target=target,
        embedding=embedding,
        step_size=step_size,
        momentum=0 if refresh else min(matrix.shape) / embedding.sketch_size,
        num_inner_steps=num_inner_steps,
        projection=projection,
        fixed_sketch=None,
    )
    if not refresh:
        # A constant sketch is computed once for all targets, outside of the loop.
        steps = steps._replace(fixed_sketch=steps.sketch(embedding.key))
    problem = _ScaledProblem(
        matrix=matrix,
        ridge=ridge,
        size=size,
        column_sizes=inverse_power_of_two(largest),
        steps=steps,
    )
    solve = functools.partial(_solve_target, problem, tolerance, num_iterations)
    if target.ndim == 1:
        return solve(target)
    return jax.vmap(solve, in_axes=-1, out_axes=-1)(target)


class _ScaledProblem(NamedTuple):
    """X and the ridge in units of the size of X, and the steps for any target.

    Attributes:
      matrix: X times `size`.
      ridge: The ridge times `size`², or None.
      size: A power of two.
      column_sizes: Powers of two that scale the columns of X to size 1, (p,).
      steps: The steps, with the projection in the original units.
    """

    matrix: Array
    ridge: Array | None
    size: Array
    column_sizes: Array
    steps: Steps


def _solve_target(
    problem: _ScaledProblem, tolerance: Array, num_iterations: int, target: Array
) -> Solution:
    """Solves the problem for one target y, (N,)."""
    steps = problem.steps
    size = problem.size
    # Each y is scaled to size 1 by a power of two, to avoid overflow of squares.
    to_unit = inverse_power_of_two(jnp.max(jnp.abs(lax.stop_gradient(target))))
    scaled_target = target * to_unit
    projection = steps.projection
    if projection is None:
        steps = steps._replace(target=lax.stop_gradient(scaled_target))
    else:

        def scaled_projection(solution: Array) -> Array:
            projected = projection(solution * size / to_unit)
            return projected.astype(solution.dtype) * to_unit / size

        steps = steps._replace(target=scaled_target, projection=scaled_projection)
    result, factors = iterated(steps, tolerance, num_iterations)
    solution = result.solution
    if factors is not None:
        solution = implicit_solution(
            solution, Dense(problem.matrix), scaled_target, problem.ridge, factors
        )
    result = result._replace(solution=solution * size)
    return in_units(result, to_unit, problem.column_sizes)
