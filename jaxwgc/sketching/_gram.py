"""Gram matrices of tall matrices, and a second look where one loses too much."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import inverse_power_of_two, is_sparse, product
from jaxwgc.sketching._checks import with_values
from jaxwgc.sketching._derivatives import (
    known_product,
    orthonormaliser_of_gram,
    root_of_gram,
)
from jaxwgc.sketching._row_blocks import Rows, rows_of

# One pass over the Gram matrix loses the square of the condition number. Below this
# ratio of its eigenvalues (a condition number of 100) the loss is at most 1e4 roundings
# and the second pass is skipped.
WELL_CONDITIONED = 1e-4


def gram(rows: jax.Array) -> jax.Array:
    """Returns the Gram matrix of the columns; symmetry gives a quarter of it."""
    half = half_of(rows.shape[1])
    upper = product(rows[:, :half].T, rows)
    corner = product(rows[:, half:].T, rows[:, half:])
    lower = jnp.concatenate([upper[:, half:].T, corner], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


def half_of(num_columns: int) -> int:
    """Returns where to split columns; zero where products are small anyway."""
    return num_columns // 2 if num_columns >= 64 else 0


def column_scale(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Returns whether all entries are finite, and a power of two for every column.

    Against overflow of squares; exact, since a power of two. A maximum need not show a
    NaN (on CPUs it does not); sums over columns of scaled entries do.
    """
    largest = rows.largest()
    finite = jnp.isfinite(largest).all()
    # A column of zeros counts as small: a large one would have rounding that counts.
    is_there = largest > 0
    least = jnp.min(largest, initial=jnp.max(largest), where=is_there)
    largest = jnp.where(is_there, largest, least)
    return finite, jnp.where(finite, inverse_power_of_two(largest), 0)


def equilibrated(matrix: Any) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
    """Returns whether X is finite, X diag(scale) diag(unit) or 0, scales, and units.

    All are powers of two, which bring the norms of columns next to 1.
    """
    rows = rows_of(lax.stop_gradient(matrix))
    finite, scale = column_scale(rows)
    squares = rows.sum(lambda block: jnp.sum((block * scale) ** 2, axis=0))
    finite &= jnp.isfinite(squares).all()
    unit = inverse_power_of_two(jnp.sqrt(squares))
    factors = scale, unit
    if is_sparse(matrix):
        column = matrix.indices[:, 1]
        factors = (factor.at[column].get(mode="clip") for factor in factors)
    first, second = factors
    scaled = with_values(lambda x: jnp.where(finite, x, 0) * first * second, matrix)
    return finite, scaled, scale, unit


def square_of_wide(matrix: Any) -> jax.Array:
    """Returns a square S with S Sᵀ = X Xᵀ, whose columns span those of a wide X.

    Of an array it is Rᵀ of X = RᵀQᵀ. A constant Q does as well for derivatives: X Q has
    the columns of X for any Q on which no rank is lost. Of a BCOO it is found from Gram
    matrices, also with an error relative to each row.
    """
    if is_sparse(matrix):
        tall = Gram.equilibrated(rows_of(matrix.T))
        square = tall.refined(*tall.decomposed()).factor().T
        # A row of zeros has nothing but rounding there.
        is_row = jnp.diagonal(tall.matrix)[:, None] > 0
        square = root_of_gram(jnp.where(is_row, square, 0), tall.matrix)
        return square / tall.scale[:, None] / tall.unit[:, None]
    basis, upper = jnp.linalg.qr(lax.stop_gradient(matrix).T)
    return known_product(matrix, basis, upper.T)


class Gram(NamedTuple):
    """The Gram matrix of X diag(scale) diag(unit), with the rows of X behind it.

    The two are powers of two, which bring the norms of columns next to 1. They are kept
    apart, since their product may be subnormal.
    """

    rows: Rows
    scale: jax.Array
    unit: jax.Array
    matrix: jax.Array
    finite: jax.Array

    @classmethod
    def equilibrated(cls, rows: Rows) -> "Gram":
        """Returns the Gram matrix of equilibrated columns, and whether X is finite."""
        finite, scale = column_scale(rows)
        total = rows.sum(lambda block: gram(block * scale))
        squares = jnp.diagonal(total)
        unit = inverse_power_of_two(jnp.sqrt(squares))
        finite &= jnp.isfinite(squares).all()
        # Some BLAS kernels carry a NaN from one matrix of a batch to the next.
        matrix = jnp.where(finite, total * unit * unit[:, None], 0)
        return cls(rows, scale, unit, matrix, finite)

    @classmethod
    def plain(cls, rows: Rows) -> "Gram":
        """Returns the Gram matrix of X as it is."""
        ones = jnp.ones(rows.num_columns, rows.dtype)
        return cls(rows, ones, ones, rows.sum(gram), jnp.bool_(True))

    def scaled(self, block: jax.Array) -> jax.Array:
        """Returns rows of X in the units of the Gram matrix; 0 if X is not finite."""
        return jnp.where(self.finite, block, 0) * self.scale * self.unit

    def decomposed(self) -> tuple[jax.Array, jax.Array]:
        """Returns eigenvalues and vectors, which are constants: see `_derivatives`."""
        return jnp.linalg.eigh(lax.stop_gradient(self.matrix))

    def refined(self, eigenvalues: jax.Array, vectors: jax.Array) -> "Refined":
        """Returns a second pass over X, from what is `decomposed`; constant as well.

        The eigenvalues of XᵀX are known to eps times the largest only, so that singular
        values below √eps are lost. Y = X V (Λ + shift)^(-1/2) has the columns' span of
        X, its singular values are at least those of X over √eps, and its Gram matrix
        shows them down to eps times the largest singular value of X.
        """
        eps = jnp.finfo(self.rows.dtype).eps
        # Just enough to keep rounding noise from being divided by zero: a larger shift
        # would cost resolution.
        shift = 4 * eps * eigenvalues[-1]
        # For a zero matrix; any positive number will do.
        shift = jnp.where(shift > 0, shift, 1)
        root = jnp.sqrt(jnp.maximum(eigenvalues, 0) + shift)
        whitening = vectors / root * self.unit[:, None]

        def inner(block):
            block = jnp.where(self.finite, lax.stop_gradient(block), 0)
            return gram(product(block * self.scale, whitening))

        inner_gram = self.rows.sum(inner)
        inner_eigenvalues, inner_vectors = jnp.linalg.eigh(inner_gram)
        least = eps * inner_eigenvalues[-1]
        inner_root = jnp.sqrt(jnp.maximum(inner_eigenvalues, least))
        return Refined(root, vectors, inner_root, inner_vectors)

    def orthonormaliser(self, rcond: jax.Array) -> jax.Array:
        """Returns P for which X P is an orthonormal basis of the columns of X."""
        refined = self.refined(*self.decomposed())
        return orthonormaliser_of_gram(*refined.orthonormaliser(rcond), self.matrix)


class Refined(NamedTuple):
    """X V (Λ + shift)^(-1/2) = Y = U M^(1/2) Wᵀ with U orthonormal."""

    root: jax.Array
    vectors: jax.Array
    inner_root: jax.Array
    inner_vectors: jax.Array

    def small(self) -> jax.Array:
        """Returns K with X V = U K.

        The singular values of the small matrix K = M^(1/2) Wᵀ (Λ + shift)^(1/2) are
        those of X, as with R in X = QR.
        """
        return self.inner_root[:, None] * self.inner_vectors.T * self.root

    def factor(self) -> jax.Array:
        """Returns R, square but not triangular, such that X = U R."""
        return product(self.small(), self.vectors.T)

    def orthonormaliser(self, rcond: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns P with X P an orthonormal basis of the columns; one of the rows.

        Both with zeros for columns beyond the rank.
        """
        left, singular_values, right = jnp.linalg.svd(self.small())
        is_kept = singular_values > rcond * singular_values[0]
        left = jnp.where(is_kept, left, 0)
        # All zero for a zero matrix, of which nothing is kept.
        inner_root = jnp.where(self.inner_root > 0, self.inner_root, 1)[:, None]
        inner = product(self.inner_vectors, left / inner_root)
        inverse = product(self.vectors / self.root, inner)
        row_basis = product(self.vectors, right.T)
        return inverse, jnp.where(is_kept, row_basis, 0)
