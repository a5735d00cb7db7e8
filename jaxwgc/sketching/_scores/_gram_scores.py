"""Leverage scores from Gram matrices, as accurate as from orthogonal factors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._scores._row_blocks import DenseRows, Rows

HIGHEST = lax.Precision.HIGHEST

# One pass over the Gram matrix loses the square of the condition number. Below this
# ratio of its eigenvalues (a condition number of 100) the loss is at most 1e4 roundings
# and the second pass is skipped.
WELL_CONDITIONED = 1e-4


def default_rcond(num_rows: int, num_columns: int, dtype: jnp.dtype) -> float:
    """The cut-off of the numerical rank where none is given."""
    return 10 * min(num_rows, num_columns) ** 0.5 * float(jnp.finfo(dtype).eps)


def gram_scores(rows: Rows, rcond: jax.Array) -> jax.Array:
    """Scores of a tall matrix; NaN where it is not finite."""
    finite, scale, unit, gram = equilibrated_gram(rows)
    scores = scores_from_gram(rows, scale, unit, gram, rcond)
    return jnp.where(finite, jnp.clip(scores, 0, 1), jnp.nan)


def column_scale(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Whether no entry is infinite, and a power of two for every column.

    Against overflow of squares; exact, since a power of two. A maximum need not show a
    NaN (on CPUs it does not); sums over columns of scaled entries do.
    """
    largest = rows.largest()
    finite = jnp.isfinite(largest).all()
    return finite, jnp.where(finite, inverse_power_of_two(largest), 0)


def equilibrated(
    matrix: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Whether X is finite, X diag(scale) diag(unit) (0 if not), scales, and units.

    All are powers of two, which bring the norms of columns next to 1.
    """
    finite, scale = column_scale(DenseRows(matrix))
    matrix = jnp.where(finite, matrix, 0) * scale
    norms = jnp.linalg.norm(matrix, axis=0)
    finite &= jnp.isfinite(norms).all()
    unit = inverse_power_of_two(norms)
    return finite, jnp.where(finite, matrix * unit, 0), scale, unit


def equilibrated_gram(
    rows: Rows,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Whether X is finite, scales, units, and the Gram matrix of X diag(both)."""
    finite, scale = column_scale(rows)
    total = rows.sum(lambda block: gram(block * scale))
    squares = jnp.diagonal(total)
    unit = inverse_power_of_two(jnp.sqrt(squares))
    finite &= jnp.isfinite(squares).all()
    return finite, scale, unit, total * unit * unit[:, None]


def scores_from_gram(
    rows: Rows,
    scale: jax.Array,
    unit: jax.Array,
    gram: jax.Array,
    rcond: jax.Array,
) -> jax.Array:
    """Scores of the tall X = `rows` diag(`scale` * `unit`), with XᵀX = `gram`.

    The two powers of two are kept apart, since their product may be subnormal.
    """
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    largest = eigenvalues[-1]
    is_plain = eigenvalues[0] > jnp.maximum(WELL_CONDITIONED, rcond**2) * largest

    def plain(_: None) -> jax.Array:
        return vectors / jnp.sqrt(eigenvalues)

    def refined(_: None) -> jax.Array:
        return refine(rows, scale, unit, eigenvalues, vectors).orthonormaliser(rcond)

    # The columns of X times `inverse` are orthonormal and span those of X.
    inverse = lax.cond(is_plain, plain, refined, None) * unit[:, None]
    # A rotation from the right keeps the norms of rows, and makes it triangular.
    lower = jnp.linalg.qr(inverse.T, mode="r").T
    return rows.map(lambda block: squared_row_norms(block * scale, lower))


class Refined(NamedTuple):
    """X V (Λ + shift)^(-1/2) = Y = U M^(1/2) Wᵀ with U orthonormal."""

    root: jax.Array
    vectors: jax.Array
    inner_root: jax.Array
    inner_vectors: jax.Array

    def small(self) -> jax.Array:
        """K with X V = U K.

        The singular values of the small matrix K = M^(1/2) Wᵀ (Λ + shift)^(1/2) are
        those of X, as with R in X = QR.
        """
        return self.inner_root[:, None] * self.inner_vectors.T * self.root

    def factor(self) -> jax.Array:
        """R, square but not triangular, such that X = U R."""
        return jnp.matmul(self.small(), self.vectors.T, precision=HIGHEST)

    def orthonormaliser(self, rcond: jax.Array) -> jax.Array:
        """P such that X P is an orthonormal basis of the columns of X."""
        left, singular_values, _ = jnp.linalg.svd(self.small())
        left = jnp.where(singular_values > rcond * singular_values[0], left, 0)
        inner = jnp.matmul(
            self.inner_vectors, left / self.inner_root[:, None], precision=HIGHEST
        )
        return jnp.matmul(self.vectors / self.root, inner, precision=HIGHEST)


def refine(
    rows: Rows,
    scale: jax.Array,
    unit: jax.Array,
    eigenvalues: jax.Array,
    vectors: jax.Array,
) -> Refined:
    """A second pass, from the eigenvalues and vectors of the Gram matrix.

    The eigenvalues of XᵀX are known to eps times the largest only, so that singular
    values below √eps are lost. Y = X V (Λ + shift)^(-1/2) has the columns' span of X,
    its singular values are at least those of X over √eps, and its Gram matrix shows
    them down to eps times the largest singular value of X.
    """
    eps = jnp.finfo(rows.dtype).eps
    # Just enough to keep rounding noise from being divided by zero: a larger shift
    # would cost resolution.
    shift = 4 * eps * eigenvalues[-1]
    # For a zero matrix; any positive number will do.
    shift = jnp.where(shift > 0, shift, 1)
    root = jnp.sqrt(jnp.maximum(eigenvalues, 0) + shift)
    whitening = vectors / root * unit[:, None]
    inner_gram = rows.sum(
        lambda block: gram(jnp.matmul(block * scale, whitening, precision=HIGHEST))
    )
    inner_eigenvalues, inner_vectors = jnp.linalg.eigh(inner_gram)
    inner_root = jnp.sqrt(
        jnp.maximum(inner_eigenvalues, jnp.maximum(eps * inner_eigenvalues[-1], eps**2))
    )
    return Refined(root, vectors, inner_root, inner_vectors)


def gram(rows: jax.Array) -> jax.Array:
    """The Gram matrix of the columns, without the quarter that symmetry gives."""
    half = _half(rows.shape[1])
    upper = jnp.matmul(rows[:, :half].T, rows, precision=HIGHEST)
    corner = jnp.matmul(rows[:, half:].T, rows[:, half:], precision=HIGHEST)
    lower = jnp.concatenate([upper[:, half:].T, corner], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


def squared_row_norms(rows: jax.Array, lower: jax.Array) -> jax.Array:
    """Of `rows` @ `lower`, a lower triangular matrix."""
    half = _half(lower.shape[0])
    # Without the quarter of the triangular matrix that is zero.
    left = jnp.matmul(rows, lower[:, :half], precision=HIGHEST)
    right = jnp.matmul(rows[:, half:], lower[half:, half:], precision=HIGHEST)
    return jnp.sum(left**2, axis=1) + jnp.sum(right**2, axis=1)


def _half(num_columns: int) -> int:
    """Where to split columns; none in the left part where products are small anyway."""
    return num_columns // 2 if num_columns >= 64 else 0
