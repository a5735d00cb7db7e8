"""The steps of the Newton sketch: direction, line search, and when to end."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular

from jaxwgc.sketching._embeddings._by_name import embed
from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._scores._gram_scores import HIGHEST, gram
from jaxwgc.sketching._solvers import _systems
from jaxwgc.sketching._solvers._orthonormalisers import from_factors
from jaxwgc.sketching._solvers._solution import Solution

# Armijo's constant, and how often a step may be halved.
_SUFFICIENT = 0.1
_MAX_HALVINGS = 40


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
def minimise(
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
    rcond = _systems.cutoff(None, (sketch_size, flat.size), flat.dtype)

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
