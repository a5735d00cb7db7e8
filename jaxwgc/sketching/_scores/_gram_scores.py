"""Leverage scores from Gram matrices, as accurate as from orthogonal factors."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc.sketching._powers import inverse_power_of_two
from jaxwgc.sketching._scores._derivatives import HIGHEST, orthonormaliser_of_gram
from jaxwgc.sketching._scores._row_blocks import DenseRows, Rows

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
    return jnp.where(finite, at_most_one(scores), jnp.nan)


def at_most_one(scores: jax.Array) -> jax.Array:
    """Without what rounding adds; derivatives are those of the scores throughout."""
    return scores - lax.stop_gradient(jnp.maximum(scores - 1, 0))


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
    eigenvalues, vectors = jnp.linalg.eigh(lax.stop_gradient(gram))
    largest = eigenvalues[-1]
    is_kept = eigenvalues > jnp.maximum(WELL_CONDITIONED, rcond**2) * largest
    # What is left, where it is no more than the noise of the Gram matrix, may be zero.
    noise = default_rcond(rows.num_columns, rows.num_columns, rows.dtype)
    may_be_zero = jnp.all(is_kept | (eigenvalues <= noise * largest))
    rest = jnp.where(is_kept, 0, vectors) * unit[:, None]
    rest = squared_norm(rows, scale, rest, jnp.sum(~is_kept), may_be_zero)

    def plain(_: None) -> tuple[jax.Array, jax.Array]:
        roots = jnp.sqrt(jnp.where(is_kept, eigenvalues, 1))
        return jnp.where(is_kept, vectors / roots, 0), jnp.where(is_kept, vectors, 0)

    def refined(_: None) -> tuple[jax.Array, jax.Array]:
        return refine(rows, scale, unit, eigenvalues, vectors).orthonormaliser(rcond)

    # The columns of X times `inverse` are orthonormal and span those of X.
    inverse, row_basis = lax.cond(rest <= rcond**2 * largest, plain, refined, None)
    # A rotation from the right keeps the norms of rows, and makes it triangular.
    lower = jnp.linalg.qr(inverse.T, mode="r").T
    lower = orthonormaliser_of_gram(lower, row_basis, gram) * unit[:, None]
    return rows.map(lambda block: squared_row_norms(block * scale, lower))


def squared_norm(
    rows: Rows,
    scale: jax.Array,
    vectors: jax.Array,
    number: jax.Array,
    is_wanted: jax.Array,
) -> jax.Array:
    """Of `rows` diag(`scale`) `vectors`, all but the first `number` of which are zero.

    Infinity where it is not wanted. It bounds the singular values of X that are not
    among the largest p - `number`.
    """
    num_columns = rows.num_columns
    # Products with few columns are short, but their shapes are static.
    sizes = [num_columns]
    if _half(num_columns):
        sizes = [num_columns // 4, num_columns // 2, num_columns]

    def of_first(size: int, _: None) -> jax.Array:
        def squares(block: jax.Array) -> jax.Array:
            block = lax.stop_gradient(block) * scale
            return jnp.sum(jnp.matmul(block, vectors[:, :size], precision=HIGHEST) ** 2)

        return rows.sum(squares)

    branches = [
        lambda _: jnp.zeros((), rows.dtype),
        *(functools.partial(of_first, size) for size in sizes),
        lambda _: jnp.full((), jnp.inf, rows.dtype),
    ]
    index = jnp.searchsorted(jnp.array([0, *sizes]), number)
    return lax.switch(jnp.where(is_wanted, index, len(sizes) + 1), branches, None)


def refined_orthonormaliser(
    rows: Rows,
    scale: jax.Array,
    unit: jax.Array,
    gram: jax.Array,
    rcond: jax.Array,
) -> jax.Array:
    """P such that X P is an orthonormal basis of the columns of X, as above."""
    eigenvalues, vectors = jnp.linalg.eigh(lax.stop_gradient(gram))
    inverse, row_basis = refine(
        rows, scale, unit, eigenvalues, vectors
    ).orthonormaliser(rcond)
    return orthonormaliser_of_gram(inverse, row_basis, gram)


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

    def orthonormaliser(self, rcond: jax.Array) -> tuple[jax.Array, jax.Array]:
        """P such that X P is an orthonormal basis of the columns of X; one of the rows.

        Both with zeros for columns beyond the rank.
        """
        left, singular_values, right = jnp.linalg.svd(self.small())
        is_kept = singular_values > rcond * singular_values[0]
        left = jnp.where(is_kept, left, 0)
        # All zero for a zero matrix, of which nothing is kept.
        inner_root = jnp.where(self.inner_root > 0, self.inner_root, 1)[:, None]
        inner = jnp.matmul(self.inner_vectors, left / inner_root, precision=HIGHEST)
        inverse = jnp.matmul(self.vectors / self.root, inner, precision=HIGHEST)
        row_basis = jnp.matmul(self.vectors, right.T, precision=HIGHEST)
        return inverse, jnp.where(is_kept, row_basis, 0)


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

    A constant for differentiation: see `_derivatives`.
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
        lambda block: gram(
            jnp.matmul(lax.stop_gradient(block) * scale, whitening, precision=HIGHEST)
        )
    )
    inner_eigenvalues, inner_vectors = jnp.linalg.eigh(inner_gram)
    inner_root = jnp.sqrt(jnp.maximum(inner_eigenvalues, eps * inner_eigenvalues[-1]))
    return Refined(root, vectors, inner_root, inner_vectors)


def gram(rows: jax.Array) -> jax.Array:
    """The Gram matrix of the columns, without the quarter that symmetry gives."""
    half = _half(rows.shape[1])
    upper = jnp.matmul(rows[:, :half].T, rows, precision=HIGHEST)
    corner = jnp.matmul(rows[:, half:].T, rows[:, half:], precision=HIGHEST)
    lower = jnp.concatenate([upper[:, half:].T, corner], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


@jax.custom_jvp
def squared_row_norms(rows: jax.Array, lower: jax.Array) -> jax.Array:
    """Of `rows` @ `lower`, a lower triangular matrix."""
    half = _half(lower.shape[0])
    # Without the quarter of the triangular matrix that is zero.
    left = jnp.matmul(rows, lower[:, :half], precision=HIGHEST)
    right = jnp.matmul(rows[:, half:], lower[half:, half:], precision=HIGHEST)
    return jnp.sum(left**2, axis=1) + jnp.sum(right**2, axis=1)


@squared_row_norms.defjvp
def _squared_row_norms_jvp(primals, tangents):
    # The derivative of `lower` need not be triangular.
    norms = squared_row_norms(*primals)
    product, change = jax.jvp(
        lambda *factors: jnp.matmul(*factors, precision=HIGHEST), primals, tangents
    )
    return norms, 2 * jnp.sum(product * change, axis=1)


def _half(num_columns: int) -> int:
    """Where to split columns; none in the left part where products are small anyway."""
    return num_columns // 2 if num_columns >= 64 else 0
