"""Orthonormal bases whose derivatives need no derivative of a decomposition.

Scores are the diagonal of a projector, which is smooth as long as the rank is kept,
also where singular values coincide; singular vectors are not. So the values come from
decompositions of constants, and the derivatives from the equations that they solve.

Directions beyond the rank are taken to stay so: this is the derivative along matrices
of the same rank. Along others there is none, since the rank jumps.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product


@jax.custom_jvp
def orthonormal_columns(
    matrix: jax.Array, basis: jax.Array, lower: jax.Array, row_basis: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns U = `basis` and L = `lower`, with U = X L and the derivatives of X.

    `row_basis` is an orthonormal basis of the rows of X, of which L is in the span.
    Columns that are cut off are zero in all three.
    """
    del matrix, row_basis
    return basis, lower


@orthonormal_columns.defjvp
def _orthonormal_columns_jvp(primals, tangents):
    matrix, _, _, row_basis = primals
    change = tangents[0]
    basis, lower = orthonormal_columns(*primals)
    moved = product(change, lower)
    inner = product(basis.T, moved)
    off_rows = _off_rows(row_basis, product(lower, product(basis.T, matrix)))
    turned = product(off_rows, product(change.T, basis))
    lower_change = product(turned, product(lower.T, lower)) - product(lower, inner)
    return (basis, lower), (moved - product(basis, inner), lower_change)


@jax.custom_jvp
def orthonormaliser_of_gram(
    lower: jax.Array, row_basis: jax.Array, gram: jax.Array
) -> jax.Array:
    """Returns `lower`, with the derivatives of XᵀX = `gram` but for a rotation."""
    del row_basis, gram
    return lower


@orthonormaliser_of_gram.defjvp
def _orthonormaliser_of_gram_jvp(primals, tangents):
    _, row_basis, gram = primals
    lower = orthonormaliser_of_gram(*primals)
    moved = product(tangents[2], lower)
    inner = product(lower.T, moved)
    off_rows = _off_rows(row_basis, product(lower, product(lower.T, gram)))
    turned = product(off_rows, moved)
    lower_change = product(turned, product(lower.T, lower)) - product(lower, inner / 2)
    return lower, lower_change


@jax.custom_jvp
def known_product(left: jax.Array, right: jax.Array, known: jax.Array) -> jax.Array:
    """Returns `known`, which is `left` @ `right`, with the derivative of that."""
    del left, right
    return known


@known_product.defjvp
def _known_product_jvp(primals, tangents):
    left, right, _ = primals
    left_change, right_change, _ = tangents
    change = product(left_change, right) + product(left, right_change)
    return known_product(*primals), change


def _off_rows(row_basis: jax.Array, row_projector: jax.Array) -> jax.Array:
    """Returns the projector on what the rows of X do not span.

    Its value is that of the orthonormal `row_basis`, since X times it has to vanish;
    X⁺X from other factors, `row_projector`, may be less exact and gives derivatives.
    """
    rank = jnp.sum(jnp.any(row_basis != 0, axis=0))
    projector = jnp.eye(row_basis.shape[0], dtype=row_basis.dtype)
    projector -= product(row_basis, row_basis.T)
    projector -= row_projector - lax.stop_gradient(row_projector)
    return jnp.where(rank < row_basis.shape[0], projector, 0)


def orthonormal_basis(
    matrix: jax.Array, rcond: jax.Array, method: str
) -> tuple[jax.Array, jax.Array]:
    """Returns one of the columns of a tall matrix, by QR or SVD, and one of the rows.

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


@jax.custom_jvp
def root_of_gram(root: jax.Array, gram: jax.Array) -> jax.Array:
    """Returns the square S = `root`, with the derivative of an S with S Sᵀ = `gram`."""
    del gram
    return root


@root_of_gram.defjvp
def _root_of_gram_jvp(primals, tangents):
    root = root_of_gram(*primals)
    inverse = jnp.linalg.pinv(root)
    moved = product(tangents[1], inverse.T)
    return root, moved - product(root, product(inverse, moved)) / 2


@jax.custom_jvp
def without_derivative(value: jax.Array) -> jax.Array:
    """Returns the same, with NaN in place of a derivative."""
    return value


@without_derivative.defjvp
def _without_derivative_jvp(primals, tangents):
    return without_derivative(*primals), jnp.nan * tangents[0]
