"""Leverage scores from Gram matrices, as accurate as from orthogonal factors."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._arrays import product
from jaxwgc.sketching._checks import rank_cutoff
from jaxwgc.sketching._derivatives import orthonormaliser_of_gram
from jaxwgc.sketching._gram import WELL_CONDITIONED, Gram, half_of
from jaxwgc.sketching._scores._unequal_rows import count_seeing, is_lost, levelled


def gram_scores(gram: Gram, rcond: jax.Array) -> jax.Array:
    """Returns scores of a tall matrix; NaN where it is not finite."""
    inverse, row_basis, num_seeing = _orthonormaliser(gram, rcond)
    lost = is_lost(gram.rows, gram.scaled, row_basis, rcond, num_seeing)
    scores = scores_where_lost(gram, lost, lambda: _scores(gram, inverse, row_basis))
    return jnp.where(gram.finite, at_most_one(scores), jnp.nan)


def scores_where_lost(
    gram: Gram, lost: jax.Array, otherwise: Callable[[], jax.Array]
) -> jax.Array:
    """Returns scores by levels of rows where that is needed: see `_unequal_rows`."""

    def by_levels() -> jax.Array:
        levels = levelled(gram, lost)
        eigenvalues, vectors = levels.decomposed()
        is_kept = eigenvalues > WELL_CONDITIONED * eigenvalues[-1]
        return _scores(levels, *_plain(eigenvalues, vectors, is_kept))

    return lax.cond(lost, by_levels, otherwise)


def at_most_one(scores: jax.Array) -> jax.Array:
    """Returns scores without what rounding adds, whose derivatives stay."""
    return scores - lax.stop_gradient(jnp.maximum(scores - 1, 0))


def scores_from_gram(gram: Gram, rcond: jax.Array) -> jax.Array:
    """Returns scores of a tall, finite matrix, up to what rounding adds."""
    inverse, row_basis, _ = _orthonormaliser(gram, rcond)
    return _scores(gram, inverse, row_basis)


def _scores(gram: Gram, inverse: jax.Array, row_basis: jax.Array) -> jax.Array:
    """Returns scores, if the columns of X times `inverse` are an orthonormal basis."""
    # A rotation from the right keeps the norms of rows, and makes it triangular.
    lower = jnp.linalg.qr(inverse.T, mode="r").T
    lower = orthonormaliser_of_gram(lower, row_basis, gram.matrix) * gram.unit[:, None]
    return gram.rows.map(lambda block: squared_row_norms(block * gram.scale, lower))


def _orthonormaliser(
    gram: Gram, rcond: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns L with X L orthonormal, a basis of the rows, and what `is_lost` needs."""
    eigenvalues, vectors = gram.decomposed()
    largest = eigenvalues[-1]
    is_kept = eigenvalues > jnp.maximum(WELL_CONDITIONED, rcond**2) * largest
    # Eigenvalues within the noise of the Gram matrix may be zero.
    noise = rank_cutoff(gram.matrix.shape, gram.rows.dtype)
    may_be_zero = jnp.all(is_kept | (eigenvalues <= noise * largest))
    cut_off = jnp.where(is_kept, 0, vectors)
    squares, num_seeing = _look(gram, cut_off, jnp.sum(~is_kept), may_be_zero)
    is_plain = squares <= rcond**2 * largest
    inverse, row_basis = lax.cond(
        is_plain,
        lambda: _plain(eigenvalues, vectors, is_kept),
        lambda: gram.refined(eigenvalues, vectors).orthonormaliser(rcond),
    )
    return inverse, row_basis, jnp.where(is_plain, num_seeing, jnp.inf)


def _plain(
    eigenvalues: jax.Array, vectors: jax.Array, is_kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    roots = jnp.sqrt(jnp.where(is_kept, eigenvalues, 1))
    return jnp.where(is_kept, vectors / roots, 0), jnp.where(is_kept, vectors, 0)


def _look(
    gram: Gram, vectors: jax.Array, number: jax.Array, is_wanted: jax.Array
) -> jax.Array:
    """Returns the squared norm of X `vectors`; only the first `number` are not zero.

    Infinity where it is not wanted. It bounds the singular values of X that are not
    among the largest p - `number`. And how many rows see anything there.
    """
    rows = gram.rows
    num_columns = rows.num_columns
    # Products with few columns are short, but their shapes are static.
    sizes = [num_columns]
    if half_of(num_columns):
        sizes = [num_columns // 4, num_columns // 2, num_columns]

    def of_first(size: int, _: None) -> jax.Array:
        def squares(block: jax.Array) -> jax.Array:
            block = lax.stop_gradient(gram.scaled(block))
            image = product(block, vectors[:, :size])
            return jnp.stack([jnp.sum(image**2), count_seeing(block, image)])

        return rows.sum(squares)

    branches = [
        lambda _: jnp.zeros(2, rows.dtype),
        *(functools.partial(of_first, size) for size in sizes),
        lambda _: jnp.full(2, jnp.inf, rows.dtype),
    ]
    index = jnp.searchsorted(jnp.array([0, *sizes]), number)
    return lax.switch(jnp.where(is_wanted, index, len(sizes) + 1), branches, None)


@jax.custom_jvp
def squared_row_norms(rows: jax.Array, lower: jax.Array) -> jax.Array:
    """Returns squared row norms of `rows` @ `lower`, a lower triangular matrix."""
    half = half_of(lower.shape[0])
    # Without the quarter of the triangular matrix that is zero.
    left = product(rows, lower[:, :half])
    right = product(rows[:, half:], lower[half:, half:])
    return jnp.sum(left**2, axis=1) + jnp.sum(right**2, axis=1)


@squared_row_norms.defjvp
def _squared_row_norms_jvp(primals, tangents):
    # The derivative of `lower` need not be triangular.
    norms = squared_row_norms(*primals)
    image, change = jax.jvp(product, primals, tangents)
    return norms, 2 * jnp.sum(image * change, axis=1)
