"""Newton's method with sketched Hessians, for any twice-differentiable loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from jaxwgc import _validation
from jaxwgc.sketching import _checks
from jaxwgc.sketching._embeddings._by_name import CONSTRUCTORS, embed
from jaxwgc.sketching._matrix_checks import check_finite
from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._scores._gram_scores import HIGHEST, default_rcond, gram
from jaxwgc.sketching._solvers import _systems
from jaxwgc.sketching._solvers._orthonormalisers import from_factors
from jaxwgc.sketching._solvers._solution import Solution

# Armijo's constant, and how often a step may be halved.
_SUFFICIENT = 0.1
_MAX_HALVINGS = 40


def newton_sketch(
    key: jax.Array,
    loss: Callable[..., jax.Array],
    square_root_hessian: Callable[..., Any],
    params: Any,
    sketch_size: int,
    embedding: str = "sparse_sign",
    *,
    args: tuple[Any, ...] = (),
    ridge: jax.typing.ArrayLike = 0.0,
    num_refinements: int = 0,
    tolerance: jax.typing.ArrayLike | None = None,
    max_iterations: int = 50,
) -> Solution:
    """Minimise loss(θ) + ridge / 2 ‖θ‖² by Newton steps with sketched Hessians.

    Where the Hessian of the loss is BᵀB with B of shape (N, p), every step draws a
    sketch S and solves with (SB)ᵀSB + ridge I, so with m rows in place of N and the
    ridge exact. A backtracking line search makes it converge from any starting point
    where the loss is convex.

    Near the solution the error falls by a factor of about √(d / m) a step, where d is
    the effective dimension of the Hessian H, the trace of H (H + ridge I)⁻¹, at most p.
    With `num_refinements` the direction is improved towards the exact Newton direction
    by that many preconditioned conjugate-gradient steps, each of which reads B twice.
    The first only scales the sketched direction, which the line search does as well;
    from the second on, each gains about one more such factor.

    Args:
      key: a PRNG key.
      loss: `loss(params, *args) -> scalar`, twice differentiable and convex.
      square_root_hessian: `square_root_hessian(params, *args)`, B with BᵀB the Hessian
        of the loss: (N, p) where params is a vector, else a pytree like params whose
        leaves have the axis N in front. For a loss Σ_i f_i(x_iᵀθ), the rows of B are
        √f_i'' x_iᵀ.
      params: the starting point, a pytree of real arrays.
      sketch_size: m. At least min(N, p), but with a ridge, where any size works.
      embedding: how every S is drawn: `"gaussian"`, `"rademacher"`, `"srht"`,
        `"count_sketch"`, `"sparse_sign"` or `"row_sampling"`.
      args: what the two functions take besides the parameters. Data that are passed
        here are not compiled into the program; the functions should be the same objects
        in every call, or they are compiled again.
      ridge: a non-negative number, may be traced. Not to be part of the loss as well.
      num_refinements: conjugate-gradient steps on the exact Hessian; 0 is the plain
        method.
      tolerance: the method ends after a step that was expected to lower the objective
        by no more than this share of its absolute value at the start (half the squared
        Newton decrement). By default the rounding unit of the dtype.
      max_iterations: the largest number of steps.

    Returns:
      `Solution`. `solution` is a pytree like params. The history holds values of the
      objective (with the ridge), not residuals. `converged` says that the last step
      passed the test of `tolerance`, that its sketch saw all of the gradient, and that
      the result is finite. A traced ridge that is negative gives False.

    Raises:
      ValueError: for a sketch that is too small, params that are not finite (where not
        traced), a B or a loss of the wrong shape, a negative ridge, or an unknown
        embedding.
      TypeError: for anything but functions, numbers and arrays where they are due.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> features = jax.random.normal(jax.random.key(0), (500, 3))
      >>> def loss(params, features):  # Poisson regression on counts of 2
      ...     logits = features @ params + 1
      ...     return jnp.sum(jnp.exp(logits) - 2 * logits)
      >>> def square_root_hessian(params, features):
      ...     return features * jnp.exp((features @ params + 1) / 2)[:, None]
      >>> found = sketching.newton_sketch(
      ...     jax.random.key(1),
      ...     loss,
      ...     square_root_hessian,
      ...     jnp.zeros(3),
      ...     sketch_size=60,
      ...     args=(features,),
      ... )
      >>> print(found.converged, jnp.abs(jax.grad(loss)(found.solution, features)) < 1)
      True [ True  True  True]

    References:
      Pilanci and Wainwright, "Newton sketch: a near linear-time optimization algorithm
      with linear-quadratic convergence", SIAM J. Optim. 27 (2017).
    """
    _validation.check_key(key)
    for name, function in (
        ("loss", loss),
        ("square_root_hessian", square_root_hessian),
    ):
        if not callable(function):
            raise TypeError(f"{name} must be a function; got {function!r}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of what loss takes; got {args!r}")
    params = _float_params(params)
    flat, _ = ravel_pytree(params)
    value = jax.eval_shape(loss, params, *args)
    if getattr(value, "shape", None) != ():
        raise ValueError(f"loss must return a scalar; got {value}")
    root = jax.eval_shape(square_root_hessian, params, *args)
    num_rows = _num_rows(root, params)
    sketch_size = _validation.check_int("sketch_size", sketch_size, minimum=1)
    regulariser = _systems.regulariser(ridge, flat.dtype)
    if regulariser is None:
        sketch_size = _systems.sketch_size(sketch_size, num_rows, flat.size)
    _validation.check_choice("embedding", embedding, tuple(CONSTRUCTORS))
    num_refinements = _validation.check_int(
        "num_refinements", num_refinements, minimum=0
    )
    max_iterations = _validation.check_int("max_iterations", max_iterations, minimum=1)
    eps = float(jnp.finfo(flat.dtype).eps)
    return _minimise(
        key,
        params,
        args,
        regulariser,
        _systems.stopping_tolerance(tolerance, eps, flat.dtype),
        loss,
        square_root_hessian,
        embedding,
        sketch_size,
        num_refinements,
        max_iterations,
    )


def _float_params(params: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not sum(jnp.size(leaf) for _, leaf in leaves):
        raise ValueError(f"params must have at least one number; got {params!r}")

    def convert(path: Any, leaf: Any) -> jax.Array:
        name = f"params{jax.tree_util.keystr(path)}"
        array = _checks.float_array(name, leaf)
        if not _validation.is_traced(leaf):
            check_finite(name, leaf, array.dtype)
        return array

    return jax.tree_util.tree_map_with_path(convert, params)


def _num_rows(root: Any, params: Any) -> int:
    """N, after a check that B fits the parameters."""
    shapes = jax.tree.map(jnp.shape, root), jax.tree.map(jnp.shape, params)
    found, wanted = (jax.tree.leaves(s, is_leaf=_is_shape) for s in shapes)
    same_tree = jax.tree.structure(root) == jax.tree.structure(params)
    if (
        not same_tree
        or any(shape[1:] != like for shape, like in zip(found, wanted))
        or any(len(shape) == 0 or shape[0] != found[0][0] for shape in found)
    ):
        raise ValueError(
            "square_root_hessian must return a pytree like params, with an axis of N "
            f"in front of every leaf; got {shapes[0]} with params of {shapes[1]}"
        )
    return found[0][0]


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, int) for size in value)


class _State(NamedTuple):
    flat: jax.Array
    value: jax.Array
    gradient: jax.Array
    decrease: jax.Array
    unseen: jax.Array
    stalled: jax.Array
    iteration: jax.Array
    history: jax.Array


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9, 10))
def _minimise(
    key: jax.Array,
    params: Any,
    args: tuple[Any, ...],
    ridge: jax.Array | None,
    tolerance: jax.Array,
    loss: Callable[..., jax.Array],
    square_root_hessian: Callable[..., Any],
    embedding: str,
    sketch_size: int,
    num_refinements: int,
    max_iterations: int,
) -> Solution:
    flat, unravel = ravel_pytree(params)
    weight = 0 if ridge is None else ridge

    def objective(flat: jax.Array) -> jax.Array:
        value = jnp.asarray(loss(unravel(flat), *args), flat.dtype)
        return value + weight / 2 * jnp.sum(flat**2)

    def root(flat: jax.Array) -> jax.Array:
        leaves = jax.tree.leaves(square_root_hessian(unravel(flat), *args))
        columns = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
        return jnp.concatenate(columns, axis=1).astype(flat.dtype)

    eps, tiny = jnp.finfo(flat.dtype).eps, jnp.finfo(flat.dtype).tiny
    rcond = jnp.asarray(default_rcond(sketch_size, flat.size, flat.dtype), flat.dtype)

    def direction(state: _State) -> tuple[jax.Array, jax.Array]:
        """A descent direction, and what of the gradient the sketch did not see.

        The second is relative to what can be told from rounding.
        """
        matrix = root(state.flat)
        step_key = jax.random.fold_in(key, state.iteration)
        sketch = embed(embedding, step_key, sketch_size, matrix.shape[0])
        small = sketch.apply(matrix)
        inverse = _inverse_root(small, ridge, rcond)

        def precondition(vector: jax.Array) -> jax.Array:
            small = jnp.matmul(vector, inverse, precision=HIGHEST)
            return jnp.matmul(inverse, small, precision=HIGHEST)

        change = -precondition(state.gradient)
        image = jnp.matmul(small, change, precision=HIGHEST)
        image = jnp.matmul(image, small, precision=HIGHEST)
        unseen = jnp.linalg.norm(state.gradient + image + weight * change)
        size = jnp.linalg.norm(small) * jnp.sqrt(jnp.abs(state.value))
        unseen = unseen / jnp.maximum(jnp.maximum(size, start_norm), tiny)

        def hessian(vector: jax.Array) -> jax.Array:
            image = jnp.matmul(matrix, vector, precision=HIGHEST)
            return jnp.matmul(image, matrix, precision=HIGHEST) + weight * vector

        if num_refinements == 0:
            return change, unseen
        refined = _conjugate_gradients(
            hessian, precondition, -state.gradient, num_refinements
        )
        return refined, unseen

    def is_done(state: _State) -> jax.Array:
        # Half the digits are more than any step needs, and less than what is lost to
        # rounding; of a gradient that no sketch sees, all of it is left.
        return (state.decrease <= tolerance * scale) & (state.unseen <= eps**0.5)

    def is_open(state: _State) -> jax.Array:
        return (state.iteration < max_iterations) & ~is_done(state) & ~state.stalled

    def step(state: _State) -> _State:
        change, unseen = direction(state)
        slope = jnp.dot(change, state.gradient, precision=HIGHEST)
        # Values cannot be told apart below this.
        noise = 4 * eps * jnp.abs(state.value)

        def is_too_long(search):
            size, value, count = search
            bound = state.value + _SUFFICIENT * size * slope + noise
            # A NaN is too long as well.
            return ~(value <= bound) & (count < _MAX_HALVINGS)

        def halve(search):
            size, _, count = search
            size = size / 2
            return size, objective(state.flat + size * change), count + 1

        one = jnp.ones((), flat.dtype)
        size, value, count = lax.while_loop(
            is_too_long, halve, (one, objective(state.flat + change), jnp.int32(0))
        )
        stalled = (count == _MAX_HALVINGS) | ~jnp.isfinite(value)
        new = jnp.where(stalled, state.flat, state.flat + size * change)
        value = jnp.where(stalled, state.value, value)
        iteration = state.iteration + 1
        return _State(
            new,
            value,
            jax.grad(objective)(new),
            jnp.maximum(-slope / 2, 0),
            unseen,
            stalled,
            iteration,
            jnp.where(
                jnp.arange(max_iterations + 1) >= iteration, value, state.history
            ),
        )

    value, gradient = jax.value_and_grad(objective)(flat)
    scale = jnp.where(value == 0, 1, jnp.abs(value))
    start_norm = jnp.linalg.norm(gradient)
    state = lax.while_loop(
        is_open,
        step,
        _State(
            flat,
            value,
            gradient,
            jnp.full((), jnp.inf, flat.dtype),
            jnp.zeros((), flat.dtype),
            ~jnp.isfinite(value),
            jnp.int32(0),
            jnp.full(max_iterations + 1, value),
        ),
    )
    converged = is_done(state) & ~state.stalled & jnp.isfinite(state.value)
    return Solution(unravel(state.flat), state.iteration, converged, state.history)


def _inverse_root(
    small: jax.Array, ridge: jax.Array | None, rcond: jax.Array
) -> jax.Array:
    """W with W Wᵀ = (BᵀB + ridge I)⁻¹, or the pseudo-inverse, of a sketch B."""

    def robust(_: None) -> jax.Array:
        factors = from_factors(small, ridge, rcond)
        return factors.scale[:, None] * factors.matrix

    num_columns = small.shape[1]
    if ridge is None and small.shape[0] < num_columns:
        return robust(None)
    # A Cholesky factor is several times cheaper, and good enough for a direction unless
    # the matrix is nearly singular.
    hessian = gram(small) + (0 if ridge is None else ridge) * jnp.eye(
        num_columns, dtype=small.dtype
    )
    unit = inverse_power_of_two(jnp.sqrt(jnp.diagonal(hessian)))
    lower = jnp.linalg.cholesky(hessian * unit * unit[:, None])
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    is_regular = smallest > 1e4 * jnp.finfo(small.dtype).eps

    def cheap(_: None) -> jax.Array:
        identity = jnp.eye(num_columns, dtype=small.dtype)
        inverse = solve_triangular(lower, identity, lower=True)
        return unit[:, None] * inverse.T

    # Not so where a NaN says that there is no Cholesky factor.
    return lax.cond(is_regular, cheap, robust, None)


def _conjugate_gradients(
    hessian: Callable[[jax.Array], jax.Array],
    precondition: Callable[[jax.Array], jax.Array],
    target: jax.Array,
    num_steps: int,
) -> jax.Array:
    def step(_, state):
        solution, residual, small, search, energy = state
        image = hessian(search)
        curvature = jnp.dot(search, image, precision=HIGHEST)
        # All is solved where there is nothing left to search along.
        size = jnp.where(curvature > 0, energy / curvature, 0)
        solution = solution + size * search
        residual = residual - size * image
        small = precondition(residual)
        new_energy = jnp.dot(residual, small, precision=HIGHEST)
        ratio = jnp.where(energy > 0, new_energy / energy, 0)
        return solution, residual, small, small + ratio * search, new_energy

    small = precondition(target)
    energy = jnp.dot(target, small, precision=HIGHEST)
    start = (jnp.zeros_like(target), target, small, small, energy)
    return lax.fori_loop(0, num_steps, step, start)[0]
