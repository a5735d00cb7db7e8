"""The leading singular directions of a matrix, in a few passes over its rows.

A block Krylov method on XᵀX needs only Xᵀ(X Q) for columns Q. One further pass refines
its directions. See `rank_k_leverage_scores`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.sparse.linalg import cg

from jaxwgc._arrays import product
from jaxwgc.sketching._linalg.derivatives import without_derivative
from jaxwgc.sketching._linalg.rows import Rows

# Maps Q (p, l) to Xᵀ(X Q) stacked on (X Q)ᵀ(X Q), (p + l, l), in one pass over rows.
Pass = Callable[[Array], Array]

# Iterations for derivatives. With a gap of 1e-3, 300 are enough in float64.
_MAX_STEPS = 1000


class Directions(NamedTuple):
    """Right singular vectors (p, l), orthonormal, and singular values (l,)."""

    vectors: Array
    values: Array


class Trust(NamedTuple):
    """Accuracy of leading directions; see `RankKScores`."""

    rank: Array
    gap: Array
    error_bound: Array
    is_ambiguous: Array
    # (k,), whether a direction counts.
    is_kept: Array


def leading_directions(
    run: Pass, key: Array, num_columns: int, width: int, num_passes: int, dtype
) -> Directions:
    """Returns leading directions, one per column of a block.

    The first passes grow a Krylov basis. Each of its blocks is the image of the last
    block, made orthogonal to all earlier ones. One further pass computes the images of
    the leading directions one by one. In the basis, a direction of 1e-3 of the largest
    is as small as the rounding of its square in float32. The last of `num_passes` is
    left to the caller.
    """
    shape = num_columns, width
    basis = block = jnp.linalg.qr(jax.random.normal(key, shape, dtype))[0]
    images = jnp.zeros((num_columns, 0), dtype)
    for step in range(num_passes - 2):
        if step:
            block = _next_block(basis, images[:, -block.shape[1] :])
            if not block.shape[1]:
                # The basis spans the whole space.
                break
            basis = jnp.concatenate([basis, block], axis=1)
        new = run(block)[:num_columns]
        images = jnp.concatenate([images, new], axis=1)
    block = _in_basis(basis, images, width)
    return _extracted(run(block), num_columns)


@jax.jit
def _next_block(basis: Array, new: Array) -> Array:
    """Returns an orthonormal block, orthogonal to the basis, from new columns."""
    num_columns, width = basis.shape
    new = new[:, : max(num_columns - width, 0)]
    for _ in range(3):
        new = new - product(basis, product(basis.T, new))
        norms = jnp.linalg.norm(new, axis=0)
        new = jnp.linalg.qr(new / jnp.where(norms > 0, norms, 1))[0]
    return new


@functools.partial(jax.jit, static_argnames="width")
def _in_basis(basis: Array, images: Array, width: int) -> Array:
    """Returns the leading directions in a basis Q, given its images XᵀX Q.

    This is half a power iteration more than Rayleigh-Ritz, since the images are known.
    """
    small = product(basis.T, images)
    squares, vectors = jnp.linalg.eigh((small + small.T) / 2)
    squares, vectors = squares[: -width - 1 : -1], vectors[:, : -width - 1 : -1]
    noise = basis.shape[1] * float(jnp.finfo(basis.dtype).eps)
    is_kept = squares > noise * squares[0]
    # Null directions, orthogonal to the rest, keep their place for the last pass.
    further = product(images, vectors / jnp.where(is_kept, squares, 1))
    return jnp.linalg.qr(jnp.where(is_kept, further, product(basis, vectors)))[0]


@functools.partial(jax.jit, static_argnames="num_columns")
def _extracted(passed: Array, num_columns: int) -> Directions:
    """Returns the leading directions of Xᵀ U, with U an orthonormal basis of X Q."""
    images, squares = passed[:num_columns], passed[num_columns:]
    sizes = jnp.sqrt(jnp.diagonal(squares))
    sizes = jnp.where(sizes > 0, sizes, 1)
    eigenvalues, vectors = jnp.linalg.eigh(squares / sizes / sizes[:, None])
    noise = 10 * squares.shape[0] * float(jnp.finfo(squares.dtype).eps)
    is_kept = eigenvalues > noise * jnp.maximum(eigenvalues[-1], 0)
    whitening = jnp.where(
        is_kept, vectors / jnp.sqrt(jnp.where(is_kept, eigenvalues, 1)), 0
    )
    projected = product(images, whitening / sizes[:, None])
    return Directions(*jnp.linalg.svd(projected, full_matrices=False)[:2])


def inverses(leading: Directions, rank: int, rcond: Array) -> Array:
    """Returns 1 / σ of the first `rank` values, and 0 for truncated ones."""
    values = leading.values[:rank]
    is_kept = values > rcond * leading.values[0]
    return jnp.where(is_kept, 1 / jnp.where(is_kept, values, 1), 0)


@functools.partial(jax.jit, static_argnames="rank")
def trust(leading: Directions, passed: Array, rank: int, rcond: Array) -> Trust:
    """Returns the accuracy of the first `rank` directions, from a pass over them."""
    num_columns = leading.vectors.shape[0]
    vectors = leading.vectors[:, :rank]
    inverse = inverses(leading, rank, rcond)
    is_kept = inverse > 0
    images, squares = passed[:num_columns] * inverse, passed[num_columns:]
    residual = images - product(vectors, product(vectors.T, images))
    squares = squares * inverse * inverse[:, None] - jnp.diag(is_kept)
    skewness = jnp.linalg.norm(squares)
    following = jnp.append(leading.values, 0)
    last = jnp.sum(is_kept, dtype=jnp.int32)
    largest = leading.values[0]
    smallest = jnp.where(last > 0, leading.values[jnp.maximum(last - 1, 0)], 0)
    # Truncated values count as rounding, not as singular values.
    beyond = jnp.where(last < rank, 0, following[last])
    gap = smallest - beyond
    eps = float(jnp.finfo(leading.values.dtype).eps)
    rounding = 10 * leading.values.shape[0] ** 0.5 * eps * largest
    # A zero became up to 33 machine epsilons; with 40 columns, the cutoff is 63.
    is_near = jnp.abs(leading.values[:rank] - rcond * largest) <= rounding / 2
    size = jnp.linalg.norm(residual) / jnp.sqrt(jnp.maximum(1 - skewness, eps))
    angle = jnp.where(gap > rounding, size / jnp.where(gap > 0, gap, 1), 1)
    bound = jnp.where(last > 0, jnp.minimum(angle + skewness, 1), 0)
    is_split = (last > 0) & ((gap <= rounding) | (bound >= 1))
    return Trust(
        rank=last,
        gap=jnp.where(last > 0, gap / jnp.where(smallest > 0, smallest, 1), 0),
        error_bound=bound,
        is_ambiguous=is_split | ((largest > 0) & jnp.any(is_near)),
        is_kept=is_kept,
    )


@jax.custom_jvp
def projection_on(
    rows: Rows, scale: Array, leading: Directions, known: Trust, image_of_leading: Array
) -> Array:
    """Returns B with X B = U_k, (p, k), with derivatives by XᵀX up to a rotation.

    The derivatives are those of `image_of_leading`, XᵀX V for a constant V. All other
    arguments are constants. First derivatives are NaN if the directions are ambiguous,
    and second derivatives always.
    """
    del rows, scale
    vectors, values = _kept(leading, known, image_of_leading)
    return vectors / values


@projection_on.defjvp
def _projection_on_jvp(primals, tangents):
    """Solves (σ_a² - XᵀX) y = (d XᵀX) v_a beside the leading directions for each a."""
    rows, scale, leading, known, image_of_leading = primals
    vectors, values = _kept(leading, known, image_of_leading)
    change = jnp.where(known.is_kept, tangents[-1], 0)
    inner = product(vectors.T, change)

    def beside(columns: Array) -> Array:
        return columns - product(vectors, product(vectors.T, columns))

    def shifted(columns: Array) -> Array:
        images = rows.products(columns, scale)[: columns.shape[0]]
        return columns * values**2 - beside(images)

    def solve(function: Callable[..., Array], right: Array) -> Array:
        """Returns the solutions, or NaN if the iteration did not converge."""
        eps = float(jnp.finfo(right.dtype).eps)
        found, _ = cg(function, right, tol=4 * eps, maxiter=_MAX_STEPS)
        error = jnp.linalg.norm(function(found) - right)
        is_found = error <= eps**0.5 * jnp.linalg.norm(right)
        return jnp.where(is_found, found, jnp.nan)

    moved = lax.custom_linear_solve(shifted, beside(change), solve, symmetric=True)
    inner = inner / values[:, None] ** 2
    change = (moved - product(vectors, inner) / 2) / values
    factor = 1 + 0 * without_derivative(jnp.sum(image_of_leading))
    factor = jnp.where(known.is_ambiguous, jnp.nan, factor)
    return vectors / values, change * factor


def _kept(leading: Directions, known: Trust, image: Array) -> tuple[Array, Array]:
    rank = image.shape[1]
    vectors = jnp.where(known.is_kept, leading.vectors[:, :rank], 0)
    return vectors, jnp.where(known.is_kept, leading.values[:rank], 1)
