"""Leverage scores from Gram matrices, as accurate as from orthogonal factors."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc._product import product
from jaxwgc.sketching._checks import rank_cutoff
from jaxwgc.sketching._derivatives import orthonormaliser_of_gram
from jaxwgc.sketching._gram import WELL_CONDITIONED, Gram, half_of
from jaxwgc.sketching._row_blocks import Rows


def gram_scores(gram: Gram, rcond: jax.Array) -> jax.Array:
    """Scores of a tall matrix; NaN where it is not finite."""
    scores = at_most_one(scores_from_gram(gram, rcond))
    return jnp.where(gram.finite, scores, jnp.nan)


def at_most_one(scores: jax.Array) -> jax.Array:
    """Without what rounding adds; derivatives are those of the scores throughout."""
    return scores - lax.stop_gradient(jnp.maximum(scores - 1, 0))


def scores_from_gram(gram: Gram, rcond: jax.Array) -> jax.Array:
    """Scores of a tall, finite matrix, up to what rounding adds."""
    rows, scale, unit, matrix, _ = gram
    eigenvalues, vectors = gram.decomposed()
    largest = eigenvalues[-1]
    is_kept = eigenvalues > jnp.maximum(WELL_CONDITIONED, rcond**2) * largest
    # What is left, where it is no more than the noise of the Gram matrix, may be zero.
    noise = rank_cutoff(matrix.shape, rows.dtype)
    may_be_zero = jnp.all(is_kept | (eigenvalues <= noise * largest))
    rest = jnp.where(is_kept, 0, vectors) * unit[:, None]
    rest = _squared_norm(rows, scale, rest, jnp.sum(~is_kept), may_be_zero)

    def plain(_: None) -> tuple[jax.Array, jax.Array]:
        roots = jnp.sqrt(jnp.where(is_kept, eigenvalues, 1))
        return jnp.where(is_kept, vectors / roots, 0), jnp.where(is_kept, vectors, 0)

    def refined(_: None) -> tuple[jax.Array, jax.Array]:
        return gram.refined(eigenvalues, vectors).orthonormaliser(rcond)

    # The columns of X times `inverse` are orthonormal and span those of X.
    inverse, row_basis = lax.cond(rest <= rcond**2 * largest, plain, refined, None)
    # A rotation from the right keeps the norms of rows, and makes it triangular.
    lower = jnp.linalg.qr(inverse.T, mode="r").T
    lower = orthonormaliser_of_gram(lower, row_basis, matrix) * unit[:, None]
    return rows.map(lambda block: squared_row_norms(block * scale, lower))


def _squared_norm(
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
    if half_of(num_columns):
        sizes = [num_columns // 4, num_columns // 2, num_columns]

    def of_first(size: int, _: None) -> jax.Array:
        def squares(block: jax.Array) -> jax.Array:
            block = lax.stop_gradient(block) * scale
            return jnp.sum(product(block, vectors[:, :size]) ** 2)

        return rows.sum(squares)

    branches = [
        lambda _: jnp.zeros((), rows.dtype),
        *(functools.partial(of_first, size) for size in sizes),
        lambda _: jnp.full((), jnp.inf, rows.dtype),
    ]
    index = jnp.searchsorted(jnp.array([0, *sizes]), number)
    return lax.switch(jnp.where(is_wanted, index, len(sizes) + 1), branches, None)


@jax.custom_jvp
def squared_row_norms(rows: jax.Array, lower: jax.Array) -> jax.Array:
    """Of `rows` @ `lower`, a lower triangular matrix."""
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
