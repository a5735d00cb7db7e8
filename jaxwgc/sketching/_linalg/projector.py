"""Leverage scores, which are diagonals of projectors, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc.sketching._linalg.factors import Factors
from jaxwgc.sketching._linalg.matrix import RowMatrix, gram_of_block

# Leverage scores are the diagonal of a projector. The projector is a smooth function of
# matrices of equal rank, but singular vectors are not if singular values coincide. So
# decompositions give values without derivatives. Derivatives come from implicit
# differentiation, for changes that keep the rank.


@jax.custom_jvp
def orthonormaliser_of_gram(inverse: Array, row_basis: Array, gram: Array) -> Array:
    """Returns `inverse`, a root of the pseudoinverse of `gram`, with a derivative.

    `inverse` is L with L Lᵀ = `gram`⁺. `gram` is XᵀX, so that X L has
    orthonormal columns. The derivative is with respect to `gram`, up to a rotation
    of L, on which scores do not depend. `row_basis` is an orthonormal basis of the
    row space of X, which contains L. Truncated columns are zero.
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
    """Computes the projector onto the null space of a matrix.

    The value comes from the orthonormal `row_basis`, since X times the projector must
    be accurately zero. The derivative comes from `row_projector`, X⁺X, which may be
    less accurate.
    """
    rank = jnp.sum(jnp.any(row_basis != 0, axis=0))
    projector = jnp.eye(row_basis.shape[0], dtype=row_basis.dtype)
    projector -= product(row_basis, row_basis.T)
    projector -= row_projector - lax.stop_gradient(row_projector)
    return jnp.where(rank < row_basis.shape[0], projector, 0)


def orthonormaliser(
    matrix: RowMatrix, factors: Factors, ridge: Array | None = None
) -> Array:
    """Computes a differentiable L for which X diag(scale) L has orthonormal columns.

    With a ridge, the rows √ridge I belong to X. The derivative takes one further pass
    over X. For a streamed matrix, L has no derivative.

    Args:
      matrix: X.
      factors: The factors of X, stacked on √ridge I.
      ridge: The ridge, or None.
    """
    if matrix.is_streamed:
        return factors.inverse
    gram = matrix.sum_rows(gram_of_block, factors.scale)
    if ridge is not None:
        gram += jnp.diag(factors.scale * ridge * factors.scale)
    return orthonormaliser_of_gram(factors.inverse, factors.vectors, gram)


def as_scores(norms: Array | np.ndarray, finite: Array) -> Array | np.ndarray:
    """Converts squared row norms to scores: at most 1, and NaN unless `finite`.

    Only rounding raises a norm above 1. Clipping keeps derivatives. The NumPy norms of
    a streamed matrix stay in NumPy.
    """
    if isinstance(norms, np.ndarray):
        return np.clip(norms, 0, 1)
    return jnp.where(finite, at_most_one(norms), jnp.nan)


@jax.custom_jvp
def without_derivative(value: Array) -> Array:
    """Returns `value` with a derivative of NaN."""
    return value


@without_derivative.defjvp
def _without_derivative_jvp(primals, tangents):
    return without_derivative(*primals), jnp.nan * tangents[0]


def at_most_one(scores: Array) -> Array:
    """Clips scores at 1, to remove rounding errors, and keeps their derivatives."""
    return scores - lax.stop_gradient(jnp.maximum(scores - 1, 0))
