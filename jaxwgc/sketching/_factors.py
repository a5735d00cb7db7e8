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
    """The number of directions of a matrix that are more than rounding.

    Attributes:
      rank: int32 scalar.
      is_ambiguous: bool scalar, whether rounding may decide it: a singular value is
        within 10 √min(N, p) rounding units (of the largest) of the cut-off. Those below
        2 + √min(N, p) / 2 units do not count: rounding makes as much of a zero.
    """

    rank: jax.Array
    is_ambiguous: jax.Array


def rank_of(singular_values: jax.Array, rcond: jax.typing.ArrayLike) -> NumericalRank:
    """Returns the rank of a matrix with these singular values, the largest first."""
    eps = jnp.finfo(singular_values.dtype).eps
    root = singular_values.shape[0] ** 0.5
    shares = singular_values / jnp.where(singular_values[0] > 0, singular_values[0], 1)
    is_near = jnp.abs(shares - rcond) <= 10 * root * eps
    return NumericalRank(
        rank=jnp.sum(shares > rcond, dtype=jnp.int32),
        # In matrices of up to 100,000 rows and of rank 1 to p - 1, a zero became up to
        # 2.4 units with 5 columns and 5 with 50, by a second Gram matrix, or 2 by QR.
        is_ambiguous=jnp.any(is_near & (shares > (2 + root / 2) * eps)),
    )
