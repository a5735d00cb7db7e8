"""The steps of the Newton sketch: direction, line search and stopping test."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jax.scipy.sparse.linalg import cg

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching._embeddings._embedding import Embedding
from jaxwgc.sketching._linalg.gram import gram
from jaxwgc.sketching._linalg.implicit import solve_augmented
from jaxwgc.sketching._linalg.orthonormalise import Factors, factors_of_small
from jaxwgc.sketching._linalg.rank import solver_cutoff
from jaxwgc.sketching._linalg.refinement import record
from jaxwgc.sketching._linalg.rows import DenseRows
from jaxwgc.sketching._solvers._solution import Solution

# Armijo's constant, and the largest number of halvings of a step.
_SUFFICIENT = 0.1
_MAX_HALVINGS = 40


class _State(NamedTuple):
    flat: Array
    value: Array
    gradient: Array
    decrease: Array
    rounding: Array
    unseen: Array
    stalled: Array
    iteration: Array
    history: Array


class _Problem(NamedTuple):
    """A loss with a ridge for flat parameters, and a root of its Hessian."""

    loss: Callable[..., Array]
    square_root_hessian: Callable[..., Any]
    args: tuple[Any, ...]
    ridge: Array | None
    unravel: Callable[[Array], Any]

    def objective(self, flat: Array) -> Array:
        """Returns the objective that is minimised."""
        value = jnp.asarray(self.loss(self.unravel(flat), *self.args), flat.dtype)
        weight = 0 if self.ridge is None else self.ridge
        return value + weight / 2 * jnp.sum(flat**2)

    def root(self, flat: Array) -> Array:
        """Returns B (N, p) with BᵀB the Hessian without the ridge."""
        tree = self.square_root_hessian(self.unravel(flat), *self.args)
        columns = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate(columns, axis=1).astype(flat.dtype)

    def hessian(self, root: Array, vector: Array) -> Array:
        """Returns BᵀB + ridge I times a vector."""
        image = product(product(root, vector), root)
        return image if self.ridge is None else image + self.ridge * vector

    def direction(
        self, root: Array, small: Array, gradient: Array, num_steps: int
    ) -> tuple[Array, Array]:
        """Computes a descent direction by a sketch of B, refined by B.

        Also returns the norm of the gradient's part outside of the sketch's range.
        """
        inverse = _inverse_root(small, self.ridge)

        def precondition(vector: Array) -> Array:
            return product(inverse, product(vector, inverse))

        change = -precondition(gradient)
        unseen = jnp.linalg.norm(gradient + self.hessian(small, change))
        if num_steps:
            hessian = functools.partial(self.hessian, root)
            eps = float(jnp.finfo(gradient.dtype).eps)
            refined, _ = cg(
                hessian, -gradient, tol=eps, maxiter=num_steps, M=precondition
            )
            # It divides by zero if the gradient is in the null space of the sketch.
            change = jnp.where(jnp.isfinite(refined).all(), refined, change)
        return change, unseen

    def line_search(
        self, state: _State, change: Array, slope: Array, rounding: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Returns the next point, value and gradient, and whether the search failed.

        If values differ by rounding alone, slopes decide: Hager and Zhang, "A new
        conjugate gradient method with guaranteed descent and an efficient line search",
        SIAM J. Optim. 16 (2005), equation 4.1, which is Armijo's rule for a quadratic
        function.
        """
        evaluate = jax.value_and_grad(self.objective)
        magnitude = jnp.abs(state.value)
        noise = 4 * jnp.finfo(change.dtype).eps * magnitude
        noise += jnp.sqrt(2 * magnitude) * rounding
        steepest = (2 * _SUFFICIENT - 1) * slope

        def is_too_long(search):
            size, value, gradient, count = search
            is_lower = value <= state.value + _SUFFICIENT * size * slope
            is_flat = product(change, gradient) <= steepest
            is_lower |= (value <= state.value + noise) & is_flat
            # A NaN counts as too long.
            return ~is_lower & (count < _MAX_HALVINGS)

        def halve(search):
            size, _, _, count = search
            size = size / 2
            return size, *evaluate(state.flat + size * change), count + 1

        one = jnp.ones((), change.dtype)
        start = one, *evaluate(state.flat + change), jnp.int32(0)
        size, value, gradient, count = lax.while_loop(is_too_long, halve, start)
        stalled = (count == _MAX_HALVINGS) | ~jnp.isfinite(value)
        old = state.flat, state.value, state.gradient
        new = state.flat + size * change, value, gradient
        return *jax.tree.map(functools.partial(jnp.where, stalled), old, new), stalled


@functools.partial(
    jax.jit,
    static_argnames=(
        "loss",
        "square_root_hessian",
        "num_refinements",
        "max_iterations",
    ),
)
def newton_steps(
    params: Any,
    args: tuple[Any, ...],
    embedding: Embedding,
    ridge: Array | None,
    tolerance: Array,
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    num_refinements: int,
    max_iterations: int,
) -> Solution:
    """Minimises the ridge loss from `params` on; see `newton_sketch`."""
    given = args, ridge
    params, args, ridge = lax.stop_gradient((params, args, ridge))
    flat, unravel = ravel_pytree(params)
    problem = _Problem(loss, square_root_hessian, args, ridge, unravel)
    value, gradient = jax.value_and_grad(problem.objective)(flat)
    eps, tiny = jnp.finfo(flat.dtype).eps, jnp.finfo(flat.dtype).tiny

    def is_done(state: _State) -> Array:
        # The value at the start may be larger by any factor.
        least = jnp.maximum(tolerance * jnp.abs(state.value), state.rounding)
        # √eps is more accurate than a step needs, and above rounding. A gradient in
        # the null space of a sketch remains entirely.
        return (state.decrease <= least) & (state.unseen <= eps**0.5)

    def is_open(state: _State) -> Array:
        return (state.iteration < max_iterations) & ~is_done(state) & ~state.stalled

    def step(state: _State) -> _State:
        root = problem.root(state.flat)
        key = jax.random.fold_in(embedding.key, state.iteration)
        small = dataclasses.replace(embedding, key=key) @ root
        change, unseen = problem.direction(root, small, state.gradient, num_refinements)
        # Rounding of the parameters and of B θ limits the accuracy of the objective.
        terms = product(jnp.abs(root), jnp.abs(state.flat))
        rounding = 2 * eps * jnp.linalg.norm(terms)
        # Relative to the smallest value above rounding.
        length = jnp.sqrt(jnp.abs(state.value)) + rounding / eps**0.5
        unseen = unseen / jnp.maximum(jnp.linalg.norm(small) * length, tiny)
        slope = product(change, state.gradient)
        new, value, gradient, stalled = problem.line_search(
            state, change, slope, rounding
        )
        decrease = jnp.maximum(-slope / 2, 0)
        iteration = state.iteration + 1
        history = record(state.history, iteration, value)
        return _State(
            new,
            value,
            gradient,
            decrease,
            rounding**2 / 2,
            unseen,
            stalled,
            iteration,
            history,
        )

    start = _State(
        flat,
        value,
        gradient,
        decrease=jnp.full((), jnp.inf, flat.dtype),
        rounding=jnp.zeros((), flat.dtype),
        unseen=jnp.zeros((), flat.dtype),
        stalled=~jnp.isfinite(value),
        iteration=jnp.int32(0),
        history=jnp.full(max_iterations + 1, value),
    )
    state = lax.while_loop(is_open, step, start)
    converged = is_done(state) & ~state.stalled & jnp.isfinite(state.value)
    solution = _minimiser(loss, square_root_hessian, unravel, state.flat, *given)
    return Solution(unravel(solution), state.iteration, converged, state.history)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _minimiser(
    loss: Callable[..., Array],
    square_root_hessian: Callable[..., Any],
    unravel: Callable[[Array], Any],
    flat: Array,
    args: tuple[Any, ...],
    ridge: Array | None,
) -> Array:
    """Returns `flat`, with the derivative of the point at which the gradient is 0."""
    del loss, square_root_hessian, unravel, args, ridge
    return flat


@_minimiser.defjvp
def _minimiser_jvp(loss, square_root_hessian, unravel, primals, tangents):
    flat = _minimiser(loss, square_root_hessian, unravel, *primals)

    def problem(args, ridge):
        return _Problem(loss, square_root_hessian, args, ridge, unravel)

    def gradient(*given):
        return jax.grad(problem(*given).objective)(flat)

    given = primals[1:]
    _, change = jax.jvp(gradient, given, tangents[1:])
    # H is BᵀB, and so this is a least-squares system, solved as accurately.
    root, ridge = problem(*given).root(flat), given[1]
    factors = _factors(root, ridge)
    zeros = jnp.zeros(root.shape[0], root.dtype)
    return flat, solve_augmented(DenseRows(root), ridge, factors, zeros, change)[1]


def _factors(root: Array, ridge: Array | None) -> Factors:
    """Returns the factors of B or a sketch, stacked on the ridge."""
    rcond = solver_cutoff(root.shape, root.dtype)
    weight = None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    return factors_of_small(root, rcond, root=weight)


def _inverse_root(small: Array, ridge: Array | None) -> Array:
    """Returns W with W Wᵀ = (BᵀB + ridge I)⁻¹, or the pseudo-inverse, of a sketch B."""

    def robust(_: None) -> Array:
        factors = _factors(small, ridge)
        return factors.scale[:, None] * factors.matrix

    identity = jnp.eye(small.shape[1], dtype=small.dtype)
    # A Cholesky factor is several times faster, and accurate enough for a direction
    # unless the matrix is nearly singular.
    hessian = gram(small) + (0 if ridge is None else ridge) * identity
    unit = inverse_power_of_two(jnp.sqrt(jnp.diagonal(hessian)))
    lower = jnp.linalg.cholesky(hessian * unit * unit[:, None])
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    is_regular = smallest > 1e4 * jnp.finfo(small.dtype).eps

    def cheap(_: None) -> Array:
        inverse = solve_triangular(lower, identity, lower=True)
        return unit[:, None] * inverse.T

    # A NaN, if there is no Cholesky factor, counts as singular.
    return lax.cond(is_regular, cheap, robust, None)
