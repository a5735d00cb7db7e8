"""Orthonormal bases by orthogonal factorisations, with derivatives."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._product import product
from jaxwgc.sketching._derivatives import known_product, orthonormal_columns


def orthonormal_basis(matrix: jax.Array, rcond: jax.Array, method: str) -> jax.Array:
    """Of the columns, by `"qr"` or `"svd"`; with zeros for columns beyond the rank."""
    num_rows, num_columns = matrix.shape
    orthogonal = None
    small = matrix
    if method == "qr":
        if num_rows < num_columns:
            small = matrix = square_of_wide(matrix)
        else:
            orthogonal, small = jnp.linalg.qr(lax.stop_gradient(matrix))
    left, singular_values, right = jnp.linalg.svd(
        lax.stop_gradient(small), full_matrices=False
    )
    if method == "svd" and num_rows < num_columns:
        # For derivatives, of a square matrix as well.
        matrix = known_product(matrix, right.T, left * singular_values)
        right = jnp.eye(num_rows, dtype=matrix.dtype)
    is_kept = singular_values > rcond * singular_values[0]
    left = jnp.where(is_kept, left, 0)
    if orthogonal is not None:
        left = product(orthogonal, left)
    row_basis = jnp.where(is_kept, right.T, 0)
    inverse = row_basis / jnp.where(is_kept, singular_values, 1)
    return orthonormal_columns(matrix, left, inverse, row_basis)[0]


def square_of_wide(matrix: jax.Array) -> jax.Array:
    """Rᵀ of a wide X = RᵀQᵀ with orthonormal rows in Qᵀ: its columns span those of X.

    A constant Q does as well for derivatives: X Q has the columns of X for any Q on
    which no rank is lost.
    """
    basis, upper = jnp.linalg.qr(lax.stop_gradient(matrix).T)
    return known_product(matrix, basis, upper.T)
