"""Descent direction and line search of one Newton step with a sketched Hessian."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc._conjugate_gradients import conjugate_gradients
from jaxwgc.sketching._linalg.factors import Factors, factors_of_small, solver_cutoff
from jaxwgc.sketching._linalg.monitor import Monitor
from jaxwgc.sketching._linalg.rows import diagonal, gram

# Armijo's constant, and the largest number of halvings of a step.
_SUFFICIENT = 0.1
_MAX_HALVINGS = 40


class State(NamedTuple):
    flat: Array
    value: Array
    gradient: Array
    monitor: Monitor


class Problem(NamedTuple):
    """A loss with a ridge for flat parameters, and a root of its Hessian."""

    unravel: Callable[[Array], Any]
    loss: Callable[..., Array]
    square_root_hessian: Callable[..., Any]
    args: tuple[Any, ...]
    ridge: Array | None

    def objective(self, flat: Array) -> Array:
        """Returns the objective: the loss plus ridge / 2 ‖θ‖²."""
        value = jnp.asarray(self.loss(self.unravel(flat), *self.args), flat.dtype)
        weight = 0 if self.ridge is None else self.ridge
        return value + weight / 2 * jnp.sum(flat**2)

    def root(self, flat: Array) -> Array:
        """Returns B (N, p) with BᵀB the Hessian without the ridge."""
        tree = self.square_root_hessian(self.unravel(flat), *self.args)
        columns = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
        return jnp.concatenate(columns, axis=1).astype(flat.dtype)

    def hessian(self, root: Array, vector: Array) -> Array:
        """Multiplies a vector by the Hessian BᵀB + ridge I."""
        image = product(product(root, vector), root)
        return image if self.ridge is None else image + self.ridge * vector

    def direction(
        self, root: Array, small: Array, gradient: Array, num_steps: int
    ) -> tuple[Array, Array]:
        """Computes a descent direction by a sketch of B, refined by B.

        Also returns the norm of the gradient's part outside of the sketch's range.
        """
        inverse = _inverse_root(small, self.ridge)

        preconditioned_gradient = product(gradient, inverse)
        change = -product(inverse, preconditioned_gradient)
        unseen = jnp.linalg.norm(gradient + self.hessian(small, change))
        if num_steps:

            def preconditioned_hessian(vector: Array) -> Array:
                image = self.hessian(root, product(inverse, vector))
                return product(image, inverse)

            refined = conjugate_gradients(
                preconditioned_hessian,
                -preconditioned_gradient,
                max_iterations=num_steps,
                tolerance=float(jnp.finfo(gradient.dtype).eps),
            )
            refined = product(inverse, refined)
            # Squares of a very small or large gradient leave the range of the dtype.
            is_usable = jnp.isfinite(refined).all() & (refined != 0).any()
            change = jnp.where(is_usable, refined, change)
        return change, unseen

    def line_search(
        self, state: State, change: Array, slope: Array, rounding: Array
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
            # A step to a value of NaN counts as too long.
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


def root_factors(root: Array, ridge: Array | None) -> Factors:
    """Computes the factors of B, or of a sketch of B, stacked on √ridge I."""
    weight = None if ridge is None else jnp.sqrt(lax.stop_gradient(ridge))
    return factors_of_small(root, solver_cutoff(root.shape, root.dtype), root=weight)


def _inverse_root(small: Array, ridge: Array | None) -> Array:
    """Returns W such that W Wᵀ is the (pseudo-)inverse of BᵀB + ridge I, B a sketch."""

    def robust(_: None) -> Array:
        factors = root_factors(small, ridge)
        return factors.scale[:, None] * factors.inverse

    identity = jnp.eye(small.shape[1], dtype=small.dtype)
    # A Cholesky factor is several times faster, and accurate enough for a direction
    # unless the matrix is nearly singular.
    hessian = gram(small) + (0 if ridge is None else ridge) * identity
    unit = inverse_power_of_two(jnp.sqrt(diagonal(hessian)))
    lower = jnp.linalg.cholesky(hessian * unit * unit[:, None])
    smallest = jnp.min(diagonal(lower)) ** 2
    is_regular = smallest > 1e4 * jnp.finfo(small.dtype).eps

    def cheap(_: None) -> Array:
        inverse = solve_triangular(lower, identity, lower=True)
        return unit[:, None] * inverse.T

    # If there is no Cholesky factor, `smallest` is NaN, which counts as singular.
    return lax.cond(is_regular, cheap, robust, None)
