"""Orthonormal bases and ranks by orthogonal factorisations; bases have derivatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._product import product
from jaxwgc.sketching._derivatives import known_product, orthonormal_columns


def orthonormal_basis(
    matrix: jax.Array, rcond: jax.Array, method: str
) -> tuple[jax.Array, jax.Array]:
    """One of the columns of a tall matrix, by `"qr"` or `"svd"`, and one of the rows.

    Both with zeros for what is beyond the rank.
    """
    constant = lax.stop_gradient(matrix)
    orthogonal, small = None, constant
    if method == "qr":
        orthogonal, small = jnp.linalg.qr(constant)
    left, singular_values, right = jnp.linalg.svd(small, full_matrices=False)
    is_kept = singular_values > rcond * singular_values[0]
    left = jnp.where(is_kept, left, 0)
    if orthogonal is not None:
        left = product(orthogonal, left)
    row_basis = jnp.where(is_kept, right.T, 0)
    inverse = row_basis / jnp.where(is_kept, singular_values, 1)
    return orthonormal_columns(matrix, left, inverse, row_basis)[0], row_basis


def square_of_wide(matrix: jax.Array) -> jax.Array:
    """Rᵀ of a wide X = RᵀQᵀ with orthonormal rows in Qᵀ: its columns span those of X.

    A constant Q does as well for derivatives: X Q has the columns of X for any Q on
    which no rank is lost.
    """
    basis, upper = jnp.linalg.qr(lax.stop_gradient(matrix).T)
    return known_product(matrix, basis, upper.T)


class NumericalRank(NamedTuple):
    """How many directions of a matrix are more than rounding.

    Attributes:
      rank: int32 scalar.
      is_ambiguous: bool scalar, whether a singular value is so near to the cut-off that
        rounding decides: within 10 √min(N, p) rounding units times the largest, but for
        those below √min(N, p) units, which are what is made of a zero.
    """

    rank: jax.Array
    is_ambiguous: jax.Array


def rank_of(singular_values: jax.Array, rcond: jax.Array) -> NumericalRank:
    """Of a matrix with these singular values, the largest one first."""
    unit = singular_values.shape[0] ** 0.5 * jnp.finfo(singular_values.dtype).eps
    largest = singular_values[0]
    is_near = jnp.abs(singular_values - rcond * largest) <= 10 * unit * largest
    return NumericalRank(
        rank=jnp.sum(singular_values > rcond * largest, dtype=jnp.int32),
        is_ambiguous=jnp.any(is_near & (singular_values > unit * largest)),
    )
