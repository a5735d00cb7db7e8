"""Least squares, also constrained, by Newton steps with sketched Hessians."""

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
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._dense_embeddings import gaussian
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._linalg.gram import gram
from jaxwgc.sketching._linalg.implicit import implicit_solution
from jaxwgc.sketching._linalg.orthonormalise import Factors, factors_of_small, scaled
from jaxwgc.sketching._linalg.rank import solver_cutoff
from jaxwgc.sketching._linalg.rows import DenseRows
from jaxwgc.sketching._solvers._solution import Solution, every_target

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
    """Solves least squares over a convex set, by exact gradients, sketched Hessians.

    With a ridge, that of ‖Xθ - y‖² + ridge ‖θ‖², whose Hessian has ridge I unsketched.
    Every iteration draws a sketch S of X and moves to the θ of the set that minimises
    ‖SX(θ - θₜ)‖² / (2 step_size) - ⟨Xᵀ(y - Xθₜ), θ - θₜ⟩. Other than with
    `sketch_and_solve`, the exact solution is a fixed point of this, whatever the sketch
    size, and the error ‖X(θₜ - θ*)‖ falls by a constant factor with every iteration.

    For Gaussian sketches of m rows, and without constraints, its square falls in
    expectation by the factor 1 - (m - p)(m - p - 3) / ((m - p - 1)(m - 1)), close to
    p / m. That is with the default step, which is the best one. The step of 1 of the
    original paper gives a larger factor, and diverges for m < 3.4 p.

    Args:
      key: a PRNG key.
      matrix: X, real, of shape (N, p). Without a projection, of any rank.
      target: y, of shape (N,), or (N, c) for c systems, which share the sketches.
      sketch_size: m, at least min(N, p) + 4.
      num_iterations: T, how many iterations are made, a Python int.
      projection: the Euclidean projection of a vector (p,) on the convex set, such as
        `optax.projections.projection_non_negative`, or a `functools.partial` of
        `projection_box` or `projection_l1_ball`. It should be one object, not a new
        lambda in every call, which would compile again. By default there are no
        constraints.
      embedding: how every S is drawn: a constructor, such as `gaussian`, `rademacher`,
        `srht`, `count_sketch`, `sparse_sign` or `row_sampling`; or an `Embedding` of
        the shape (m, N), from whose own key those of every S are split.
      ridge: a non-negative number, may be traced. The default step size takes no
        account of it: with a large one, 1 is better.
      refresh: whether there is a new sketch in every iteration. With one sketch for
        all, which is cheaper, and heavy-ball momentum, the factor is p / m as well, but
        only after some iterations, not with a projection, and in the limit of many
        columns: with tens of them, one sketch in many has singular values outside of
        the limiting range, and is slower or, for m of a few times p, diverges. Take
        m of 16 p or more then, or a smaller step_size; `converged` tells.
      step_size: by default, the best one for Gaussian sketches,
        (m - p)(m - p - 3) / (m (m - 1)); for `refresh=False` it is (1 - p / m)². For
        N < p read N for p.
      num_inner_steps: with a projection, the number of accelerated projected gradient
        steps that minimise over the set; they read a matrix of p × p only. The more
        ill-conditioned X is, the more are needed.
      tolerance: for the flag, by default the square root of the rounding unit.

    Returns:
      `Solution`, with norms of the residual y - Xθₜ, (T + 1,); with a ridge the root of
      what is minimised. `converged` says that
      a whole last step would move Xθ by less than `tolerance` times the norm of y, as
      far as the sketch can see, and without a projection that the gradient is as small.
      With a projection, and where X is ill-conditioned, θ may still be far from the
      solution. Where X is rank-deficient, and without a projection, the solution
      of the least norm. A NaN in a traced matrix or target gives NaN and False.

      Derivatives of `solution` are as in `preconditioned`, and the history is constant.
      With a projection they are of the iterations, with constant sketches: as exact as
      the solution is where it does not sit on an edge of the set by chance.

    Raises:
      ValueError: for a sketch that is too small, shapes that do not match, entries that
        are not finite (where not traced), an embedding of the wrong shape, a projection
        that does not return (p,) or is given with refresh=False, or a step size that is
        not positive, or a negative ridge.
      TypeError: for complex or sparse arrays or anything but numbers, a projection
        that is not a function, or an embedding that is neither a constructor nor an
        `Embedding`, such as a name.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxwgc import sketching
      >>> matrix = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> target = matrix @ jnp.array([1.0, -2.0])
      >>> result = sketching.iterative_hessian_sketch(
      ...     jax.random.key(1), matrix, target, sketch_size=20, num_iterations=10
      ... )
      >>> print(result.solution.round(3))
      [ 1. -2.]
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
    matrix, target = _checks.system(matrix, target)
    rank = min(matrix.shape)
    # With fewer rows, the expected error is not finite.
    sketch_size = _checks.sketch_size(sketch_size, matrix.shape, more=4)
    num_iterations = _validation.check_int("num_iterations", num_iterations, minimum=1)
    _validation.check_bool("refresh", refresh)
    num_inner_steps = _validation.check_int(
        "num_inner_steps", num_inner_steps, minimum=1
    )
    embedding = embed(embedding, key, sketch_size, matrix.shape[0])
    if not refresh and projection is not None:
        raise ValueError(
            "refresh must be True with a projection, with which momentum is not known "
            f"to converge; got {refresh}"
        )
    if projection is not None:
        _validation.check_callable("projection", projection)
        point = jax.ShapeDtypeStruct(matrix.shape[1:], matrix.dtype)
        image = jax.eval_shape(projection, point)
        if getattr(image, "shape", None) != point.shape:
            raise ValueError(
                f"projection must return an array of shape (p,) = {point.shape}; got "
                f"{image}"
            )
    ratio = rank / sketch_size
    if step_size is None:
        free = sketch_size - rank
        step_size = free * (free - 3) / (sketch_size * (sketch_size - 1))
        if not refresh:
            step_size = (1 - ratio) ** 2
    _validation.check_number("step_size", step_size, positive=True)
    eps = float(jnp.finfo(matrix.dtype).eps)
    regulariser = _checks.regulariser(ridge, matrix.dtype)
    solution = _solve(
        matrix,
        target,
        embedding,
        regulariser,
        jnp.asarray(step_size, matrix.dtype),
        _checks.stopping_tolerance(tolerance, eps**0.5, matrix.dtype),
        num_iterations,
        projection,
        num_inner_steps,
        refresh,
    )
    if solution.rank is not None and regulariser is None:
        _checks.warn_of_precision(given, matrix, solution.rank.rank)
    return solution


@functools.partial(
    jax.jit,
    static_argnames=("num_iterations", "projection", "num_inner_steps", "refresh"),
)
def _solve(
    matrix: Array,
    target: Array,
    embedding: Embedding,
    ridge: Array | None,
    step_size: Array,
    tolerance: Array,
    num_iterations: int,
    projection: Projection | None,
    num_inner_steps: int,
    refresh: bool,
) -> Solution:
    # A maximum need not show a NaN.
    finite = jnp.isfinite(matrix).all()
    matrix = jnp.where(finite, matrix, 0)
    target = jnp.where(finite, target, jnp.nan)
    # Against overflow of squares; exact.
    largest = jnp.max(jnp.abs(lax.stop_gradient(matrix)), axis=0)
    root = 0 if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    size = inverse_power_of_two(jnp.maximum(jnp.max(largest), root))
    matrix = matrix * size
    ridge = None if ridge is None else ridge * size * size
    system = matrix, ridge
    # Where it can be, the derivative is that of the solution, not of the way to it.
    constant = lax.stop_gradient if projection is None else lambda x: x
    matrix, ridge = constant(system)

    def sketch(key: Array) -> tuple[Array, Any]:
        # Only the way to the solution depends on it, and so no derivative does.
        small = dataclasses.replace(embedding, key=key) @ lax.stop_gradient(matrix)
        return small, _prepared(small, lax.stop_gradient(ridge), projection)

    # The same for all targets, and outside of the loop where it stays the same.
    fixed = None if refresh else sketch(embedding.key)
    momentum = 0 if refresh else min(matrix.shape) / embedding.sketch_size

    def solve(system_target: Array, unit: Array) -> Solution:
        target = constant(system_target)

        def projected(solution: Array) -> Array:
            assert projection is not None
            return projection(solution * size / unit).astype(matrix.dtype) * unit / size

        def downhill_of(solution: Array) -> tuple[Array, Array]:
            gradient, squared = DenseRows(matrix).sum(
                _downhill, solution, along=(target,)
            )
            if ridge is None:
                return gradient, squared
            pulled = ridge * solution
            return gradient - pulled, squared + jnp.sum(pulled * solution)

        def step(state, key):
            solution, last, gradient, _ = state
            small, prepared = fixed or sketch(key)
            downhill = step_size * gradient
            if projection is None:
                change = _free_change(prepared, downhill)
            else:
                change = _constrained_change(
                    prepared, solution, downhill, projected, num_inner_steps
                )
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
        # Those of the last sketch are kept, so that there is one copy of the program.
        prepared = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sketch, keys[0])[1]
        )
        (solution, _, gradient, prepared), (norms, moved) = lax.scan(
            step, (start, start, gradient, prepared), keys
        )
        history = jnp.concatenate([jnp.sqrt(squared)[None], norms])
        # A small step size is no sign that the end is near.
        rank = None
        length = moved[-1] / jnp.minimum(step_size, 1)
        converged = length <= tolerance * jnp.linalg.norm(target)
        if projection is None:
            # The gradient itself shows directions that the sketch missed.
            bound = 10 * tolerance * jnp.linalg.norm(matrix) * jnp.linalg.norm(target)
            converged &= jnp.linalg.norm(gradient) <= bound
            factors, _ = prepared
            rank = factors.rank
            solution = implicit_solution(
                solution, DenseRows(system[0]), system_target, system[1], factors
            )
        iteration = jnp.int32(num_iterations)
        return Solution(solution * size, iteration, converged, history, rank)

    return every_target(solve, target, inverse_power_of_two(largest))


def _prepared(small: Array, ridge: Array | None, projection: Projection | None) -> Any:
    """Returns the factor of a sketch of X that a change of θ needs."""
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
    """Returns the Newton step of a sketched Hessian."""
    factors, row_space = prepared
    coordinates = factors.in_range(factors.scale * gradient)
    return scaled(factors.scale, factors.direction(coordinates, row_space))


def _downhill(block: Array, target: Array, solution: Array) -> tuple[Array, Array]:
    residual = target - product(block, solution)
    return product(residual, block), jnp.sum(residual**2)


def _constrained_change(
    prepared: tuple[Array, Array],
    solution: Array,
    gradient: Array,
    projection: Projection,
    num_steps: int,
) -> Array:
    """Takes accelerated projected gradient steps, restarted where they overshoot."""
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
