"""Factors and scores of wide matrices from the Gram matrix of their rows."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching._linalg.derivatives import at_most_one, orthonormaliser_of_gram
from jaxwgc.sketching._linalg.gram import column_scale, scaled_gram
from jaxwgc.sketching._linalg.orthonormalise import Factors, factors_of
from jaxwgc.sketching._linalg.rows import DenseRows, Rows, constant


def factors_of_wide(
    rows: Rows, rcond: ArrayLike, method: str = "qr", has_units: bool = True
) -> tuple[Rows, Factors, Array]:
    """Returns Xᵀ, its factors, and the scales of the columns of X."""
    finite, scale = column_scale(rows)
    squares = constant(rows).sum(_squares, scale)
    if has_units:
        scale = scale * inverse_power_of_two(jnp.sqrt(squares))
    else:
        scale = jnp.full(scale.shape, jnp.min(scale))
    tall = rows.scaled(jnp.where(finite, scale, 0)).T  # pyright: ignore
    if not isinstance(tall, DenseRows):
        method = "gram"
    elif method == "gram":
        method = "qr"
    factors = factors_of(tall, None, rcond, method, 1.0, has_units=False)
    finite &= jnp.isfinite(squares).all() & factors.finite
    return tall, factors._replace(finite=finite), scale


def wide_scores(
    rows: Rows, ridge: Array | None, rcond: Array, method: str = "qr"
) -> Array:
    """Computes the diagonal of K (K + ridge I)⁺ with K = X Xᵀ = V s² Vᵀ."""
    # A ridge fixes the units of columns, and needs all directions.
    tall, factors, scale = factors_of_wide(
        rows, rcond if ridge is None else 0.0, method, has_units=ridge is None
    )
    vectors, values = factors.vectors, factors.singular_values
    matrix = shifted = tall.sum(scaled_gram, factors.scale)
    total = values
    if ridge is not None:
        unit = scale[0] * factors.scale[0]
        total = jnp.hypot(values, unit * jnp.sqrt(lax.stop_gradient(ridge)))
        vectors = jnp.where(total > rcond * total[0], vectors, 0)
        shifted = matrix + unit * ridge * unit * jnp.eye(len(matrix))
    inverse = vectors / jnp.where(total > 0, total, 1)
    scores = jnp.sum((inverse * values) ** 2, axis=1)
    # Values come from the decomposition, derivatives from the equation.
    inverse = orthonormaliser_of_gram(inverse, vectors, shifted)
    same = jnp.sum(inverse * product(matrix, inverse), axis=1)
    scores += same - lax.stop_gradient(same)
    return jnp.where(factors.finite, at_most_one(scores), jnp.nan)


def _squares(block: Array, scale: Array) -> Array:
    return jnp.sum((block * scale) ** 2, axis=0)
