"""Newton's method with sketched Hessians."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_sparse, product
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import Embedding, EmbeddingLike, embed
from jaxwgc.sketching._embeddings._sparse_matrices import sparse_sign
from jaxwgc.sketching._linalg.matrix import Dense
from jaxwgc.sketching._linalg.monitor import Monitor
from jaxwgc.sketching._solvers._newton_problem import (
    Point,
    Problem,
    root_factors,
)
from jaxwgc.sketching._solvers._solution import Solution, solve_augmented


def newton_sketch(
    key: Array,
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    params: Any,
    sketch_size: int,
    embedding: EmbeddingLike = sparse_sign,
    *,
    args: tuple[Any, ...] = (),
    ridge: ArrayLike = 0.0,
    num_refinements: int = 0,
    tolerance: ArrayLike | None = None,
    max_iterations: int = 50,
) -> Solution:
    """Minimises a convex loss by Newton steps with sketched Hessians.

    The objective is loss(θ) + ridge / 2 ‖θ‖². The Hessian of the loss is BᵀB with B
    of shape (N, p). Every step draws a sketch S of m rows and solves a system with
    (SB)ᵀSB + ridge I. The ridge is not sketched. A backtracking line search makes
    the method converge from any starting point if the loss is convex.

    Near the solution, each step lowers the error by a factor of about √(d / m). Here d
    is the effective dimension of the Hessian H, the trace of H (H + ridge I)⁻¹, at most
    p. `num_refinements` preconditioned conjugate-gradient steps improve the direction
    towards the exact Newton direction. Each of them reads B twice. The first only
    scales the sketched direction, as the line search does. Each further step gains
    about one more factor of √(d / m).

    Args:
      key: A PRNG key.
      loss: `loss(params, *args) -> scalar`, twice differentiable and convex.
      square_root_hessian: `square_root_hessian(params, *args)`, B with BᵀB the Hessian
        of the loss. B is (N, p) if params is a vector, and otherwise a pytree like
        params with a leading axis N in all leaves. For a loss Σᵢ fᵢ(xᵢᵀθ), the rows of
        B are √f_i'' xᵢᵀ.
      params: The starting point, a pytree of real arrays.
      sketch_size: m, at least min(N, p). With a ridge, any size works.
      embedding: The distribution of S. Either a constructor, such as `gaussian`,
        `rademacher`, `srht`, `count_sketch`, `sparse_sign`, `sparse_stack` or
        `row_sampling`; or an `Embedding` of shape (m, N). The keys of all S are then
        derived from its key.
      args: Further arguments of the two functions. Data in args are not compiled into
        the program. Pass the same function objects in every call: new ones compile
        again.
      ridge: A non-negative number, may be traced. The loss must not include it.
      num_refinements: The number of conjugate-gradient steps on the exact Hessian; 0 is
        the plain method.
      tolerance: The method stops after a step with a small predicted decrease of the
        objective (half the squared Newton decrement). The limit is this share of the
        absolute value of the objective after the step, or the effect of rounding of the
        parameters. By default 1e-10 in float32, which is the standard error of rounding
        over a million rows, and 4 machine epsilons in float64.
      max_iterations: The largest number of steps.

    Returns:
      A `Solution`. `solution` is a pytree like params. The history holds values of the
      objective (with the ridge), not residuals. `converged` says that the last step
      passed the test of `tolerance`, that the gradient is in the range of its sketch,
      and that the result is finite. Directions of B below 4 + √p machine epsilons are
      ignored. A negative traced ridge gives False.

      Derivatives of `solution` with respect to args and ridge are those of the exact
      minimum, from one factorisation of B. The history is constant.

    Raises:
      ValueError: If sketch_size is too small, params are not finite (unless traced), B
        or the embedding has the wrong shape, or ridge is negative.
      TypeError: If an argument is not the function, number or array required, the loss
        is not a scalar, or the embedding is neither a constructor nor an `Embedding`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> features = jax.random.normal(jax.random.key(0), (500, 3))
      >>> def loss(params, features):  # Poisson regression on counts of 2
      ...     logits = features @ params + 1
      ...     return jnp.sum(jnp.exp(logits) - 2 * logits)
      >>> def square_root_hessian(params, features):
      ...     return features * jnp.exp((features @ params + 1) / 2)[:, None]
      >>> result = sketching.newton_sketch(
      ...     jax.random.key(1),
      ...     loss,
      ...     square_root_hessian,
      ...     jnp.zeros(3),
      ...     sketch_size=60,
      ...     args=(features,),
      ... )
      >>> print(
      ...     result.converged, jnp.abs(jax.grad(loss)(result.solution, features)) < 1
      ... )
      True [ True  True  True]

    References:
      Pilanci and Wainwright, "Newton sketch: a near linear-time optimization algorithm
      with linear-quadratic convergence", SIAM J. Optim. 27 (2017).
    """
    array_validation.check_key(key)
    validation.check_callable("loss", loss)
    validation.check_callable("square_root_hessian", square_root_hessian)
    validation.check_instance("args", args, tuple, " of what loss takes")
    args = jax.tree.map(functools.partial(_arguments.from_scipy, "args"), args)
    params = _float_params(params)
    flat, _ = ravel_pytree(params)
    if flat.size == 0:
        raise ValueError(f"params must have at least one number; got {params!r}")
    root = jax.eval_shape(square_root_hessian, params, *args)
    num_rows = _num_rows_of_root(root, params)
    regulariser = _arguments.regulariser(ridge, flat.dtype)
    # With a ridge, any sketch size is allowed.
    num_columns = flat.size if regulariser is None else 1
    sketch_size = _arguments.sketch_size(sketch_size, (num_rows, num_columns))
    embedding = embed(embedding, key, sketch_size, num_rows)
    num_refinements = validation.check_int(
        "num_refinements", num_refinements, minimum=0
    )
    max_iterations = validation.check_int("max_iterations", max_iterations, minimum=1)
    default_tolerance = min(1e-10, 4 * float(jnp.finfo(flat.dtype).eps))
    tolerance = _arguments.stopping_tolerance(tolerance, default_tolerance, flat.dtype)
    return _newton_steps(
        params,
        args,
        regulariser,
        embedding,
        tolerance,
        loss=loss,
        square_root_hessian=square_root_hessian,
        num_refinements=num_refinements,
        max_iterations=max_iterations,
    )


def _num_rows_of_root(root: Any, params: Any) -> int:
    """Returns the number of rows of a Hessian root, after a check of its shapes.

    Raises:
      ValueError: If the structures differ, or a leaf of B does not have the shape of
        its parameters with an axis of N in front.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(root)]
    num_rows = shapes[0][0] if shapes and shapes[0] else 0
    expected = [(num_rows, *leaf.shape) for leaf in jax.tree.leaves(params)]
    has_structure = jax.tree.structure(root) == jax.tree.structure(params)
    if not has_structure or shapes != expected:
        raise ValueError(
            "square_root_hessian must return a pytree like params, with a leading "
            f"axis of N rows in every leaf; got {root}"
        )
    return num_rows


def _float_params(params: Any) -> Any:
    def checked(path: Any, leaf: Any) -> Array:
        return _arguments.finite_array(f"params{jax.tree_util.keystr(path)}", leaf)

    return jax.tree_util.tree_map_with_path(checked, params, is_leaf=is_sparse)


class _State(NamedTuple):
    """State of the iterations: the current point, and their progress."""

    point: Point
    monitor: Monitor


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss",
        "square_root_hessian",
        "num_refinements",
        "max_iterations",
    ),
)
def _newton_steps(
    params: Any,
    args: tuple[Any, ...],
    ridge: Array | None,
    embedding: Embedding,
    tolerance: Array,
    *,
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    num_refinements: int,
    max_iterations: int,
) -> Solution:
    """Minimises the loss with a ridge, starting at `params`; see `newton_sketch`."""
    flat, unravel = ravel_pytree(lax.stop_gradient(params))
    fixed_args, fixed_ridge = lax.stop_gradient((args, ridge))
    problem = Problem(loss, square_root_hessian, unravel, fixed_args, fixed_ridge)
    eps = jnp.finfo(flat.dtype).eps
    tiny = jnp.finfo(flat.dtype).tiny

    def is_running(state: _State) -> Array:
        return state.monitor.is_running(max_iterations)

    def step(state: _State) -> _State:
        """Takes a Newton step with a new sketch of the Hessian."""
        point = state.point
        root = problem.root(point.flat)
        key = jax.random.fold_in(embedding.key, state.monitor.iteration)
        small = dataclasses.replace(embedding, key=key) @ root
        change, null_norm = problem.direction(
            root, small, point.gradient, num_refinements
        )
        # Rounding of the parameters and of B θ limits the accuracy of the objective.
        terms = product(jnp.abs(root), jnp.abs(point.flat))
        rounding = 2 * eps * jnp.linalg.norm(terms)
        # `null_norm` is divided by the size of a gradient: ‖SB‖ times the root of the
        # objective. The second term of `length` is a margin for rounding errors.
        length = jnp.sqrt(jnp.abs(point.value)) + rounding / eps**0.5
        null_norm = null_norm / jnp.maximum(jnp.linalg.norm(small) * length, tiny)
        slope = product(change, point.gradient)
        new_point, has_failed = problem.line_search(point, change, slope, rounding)
        # The tolerance is relative to the current value, since the value at the start
        # may be larger by any factor.
        largest = jnp.maximum(tolerance * jnp.abs(new_point.value), rounding**2 / 2)
        has_converged = -slope / 2 <= largest
        # The bound √eps is above rounding errors. If the gradient has a part in the
        # null space of the sketch, `null_norm` is far larger.
        has_converged &= null_norm <= float(eps) ** 0.5
        monitor = state.monitor.update(
            new_point.value, has_converged, has_stagnated=has_failed
        )
        return _State(new_point, monitor)

    first = problem.at(flat)
    start = _State(first, Monitor.init(first.value, max_iterations))
    end = lax.while_loop(is_running, step, start)
    solution = _minimiser(
        loss, square_root_hessian, unravel, end.point.flat, args, ridge
    )
    return Solution(
        solution=unravel(solution),
        num_iterations=end.monitor.iteration,
        converged=end.monitor.has_converged,
        residual_history=end.monitor.history,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _minimiser(
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    unravel: Callable[[Array], Any],
    flat: Array,
    args: tuple[Any, ...],
    ridge: Array | None,
) -> Array:
    """Returns `flat` unchanged, with the derivatives of the exact minimum."""
    del loss, square_root_hessian, unravel, args, ridge
    return flat


@_minimiser.defjvp
def _minimiser_jvp(loss, square_root_hessian, unravel, primals, tangents):
    flat, args, ridge = primals

    def problem(args: tuple[Any, ...], ridge: Array | None) -> Problem:
        return Problem(loss, square_root_hessian, unravel, args, ridge)

    def gradient(args: tuple[Any, ...], ridge: Array | None) -> Array:
        return problem(args, ridge).at(flat).gradient

    _, gradient_change = jax.jvp(gradient, (args, ridge), tangents[1:])
    # The Hessian is BᵀB + ridge I. The system is solved as least squares with B, which
    # is more accurate than with the product BᵀB.
    root = problem(args, ridge).root(flat)
    factors = root_factors(root, ridge)
    zeros = jnp.zeros(root.shape[0], root.dtype)
    _, change = solve_augmented(Dense(root), ridge, factors, zeros, gradient_change)
    result = _minimiser(loss, square_root_hessian, unravel, *primals)
    return result, change
