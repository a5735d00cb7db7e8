"""Factors and scores of wide matrices."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common.arrays import inverse_power_of_two, product
from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.factors import Factors, factors_of_small, gram_factors
from jaxwgc.sketching._linalg.matrix import RowMatrix
from jaxwgc.sketching._linalg.projector import at_most_one, orthonormaliser_of_gram
from jaxwgc.sketching._linalg.rows import column_scale, triangle
from jaxwgc.sketching._linalg.sparse import Sparse


def factors_of_wide(
    matrix: RowMatrix, rcond: ArrayLike, has_units: bool = True
) -> tuple[RowMatrix, Factors, Array]:
    """Returns the transpose of a wide X, its factors, and the column scales of X."""
    assert isinstance(matrix, Dense | Sparse)
    scale = column_scale(matrix.column_maxima())
    squares = lax.stop_gradient(matrix).sum_rows(_squares, scale)
    if has_units:
        scale = scale * inverse_power_of_two(jnp.sqrt(squares))
    else:
        scale = jnp.full(scale.shape, jnp.min(scale))
    tall = matrix.scaled(scale).T
    if isinstance(tall, Dense):
        # All columns of Xᵀ share one power of two, since they are the rows of X.
        unit = jnp.min(column_scale(tall.column_maxima()))
        small = triangle(lax.stop_gradient(tall.array) * unit)
        factors = factors_of_small(small, rcond, unit, has_units=False)
    else:
        factors = gram_factors(tall, None, rcond, threshold=1.0, has_units=False)
    finite = jnp.isfinite(squares).all() & factors.finite
    return tall, factors._replace(finite=finite), scale


def wide_scores(matrix: RowMatrix, ridge: Array | None, rcond: Array) -> Array:
    """Computes scores of a wide X: the diagonal of K (K + ridge I)⁺ with K = X Xᵀ."""
    # With a ridge, all columns share one scale, since the ridge has the units of X. The
    # factorisation then truncates nothing: truncation below includes the ridge.
    cutoff = rcond if ridge is None else 0.0
    tall, factors, scale = factors_of_wide(matrix, cutoff, has_units=ridge is None)
    vectors = factors.vectors
    values = factors.singular_values
    gram = tall.gram(factors.scale)
    shifted = gram
    total = values
    if ridge is not None:
        unit = scale[0] * factors.scale[0]
        total = jnp.hypot(values, unit * jnp.sqrt(lax.stop_gradient(ridge)))
        vectors = jnp.where(total > rcond * total[0], vectors, 0)
        shifted = gram + unit * ridge * unit * jnp.eye(len(gram))
    inverse = vectors / jnp.where(total > 0, total, 1)
    scores = jnp.sum((inverse * values) ** 2, axis=1)
    # Values come from the decomposition, derivatives from the equation.
    inverse = orthonormaliser_of_gram(inverse, vectors, shifted)
    differentiable = jnp.sum(inverse * product(gram, inverse), axis=1)
    scores += differentiable - lax.stop_gradient(differentiable)
    return jnp.where(factors.finite, at_most_one(scores), jnp.nan)


def _squares(block: Array, scale: Array) -> Array:
    return jnp.sum((block * scale) ** 2, axis=0)
