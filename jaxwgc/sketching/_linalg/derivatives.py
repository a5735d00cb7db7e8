"""Derivatives of orthonormal bases without derivatives of decompositions.

Scores are the diagonal of a projector. It is smooth at constant rank, also if singular
values coincide, unlike singular vectors. So the values come from decompositions of
constants, and the derivatives from the equations that they solve.

Derivatives are along matrices of the same rank. Along other matrices there are none,
since the rank jumps.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._arrays import product


@jax.custom_jvp
def orthonormaliser_of_gram(inverse: Array, row_basis: Array, gram: Array) -> Array:
    """Differentiates L = `inverse`, with X L orthonormal, by XᵀX = `gram`.

    The derivative is that of L up to a rotation. `row_basis` is an orthonormal basis of
    the rows of X, and its span contains L. Truncated columns are zero.
    """
    del row_basis, gram
    return inverse


@orthonormaliser_of_gram.defjvp
def _orthonormaliser_of_gram_jvp(primals, tangents):
    _, row_basis, gram = primals
    inverse = orthonormaliser_of_gram(*primals)
    moved = product(tangents[2], inverse)
    inner = product(inverse.T, moved)
    off_rows = _off_rows(row_basis, product(inverse, product(inverse.T, gram)))
    turned = product(product(off_rows, moved), product(inverse.T, inverse))
    return inverse, turned - product(inverse, inner / 2)


def _off_rows(row_basis: Array, row_projector: Array) -> Array:
    """Computes the projector on the null space of X.

    Its value comes from the orthonormal `row_basis`, since X times it has to vanish.
    Its derivative comes from `row_projector`, X⁺X of other factors, which may be less
    exact.
    """
    rank = jnp.sum(jnp.any(row_basis != 0, axis=0))
    projector = jnp.eye(row_basis.shape[0], dtype=row_basis.dtype)
    projector -= product(row_basis, row_basis.T)
    projector -= row_projector - lax.stop_gradient(row_projector)
    return jnp.where(rank < row_basis.shape[0], projector, 0)


@jax.custom_jvp
def without_derivative(value: Array) -> Array:
    """Returns `value` with a derivative of NaN."""
    return value


@without_derivative.defjvp
def _without_derivative_jvp(primals, tangents):
    return without_derivative(*primals), jnp.nan * tangents[0]


def at_most_one(scores: Array) -> Array:
    """Clips rounding of scores above 1, and keeps their derivatives."""
    return scores - lax.stop_gradient(jnp.maximum(scores - 1, 0))
