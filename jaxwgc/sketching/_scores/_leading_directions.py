"""Leading singular directions of a matrix, by a block Krylov space."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxwgc._common.arrays import product
from jaxwgc.sketching._linalg.rows import diagonal


def leading_directions(
    run: Callable[[Array], Array], start: Array, num_passes: int
) -> tuple[Array, Array]:
    """Computes leading right singular vectors and values, one per column of `start`.

    `run` maps Q (p, l) to Xᵀ(X Q) stacked on (X Q)ᵀ(X Q), (p + l, l), in one pass.

    The first passes build a Krylov basis Q. Each of its blocks is the image of the last
    block, made orthogonal to all earlier blocks. One further pass computes the images
    of the leading directions in the span of Q. It resolves a singular value of 1e-3 of
    the largest one in float32. The square of this value is lost in the rounding errors
    of QᵀXᵀXQ. The caller makes the last of the `num_passes` passes.
    """
    num_columns, width = start.shape
    block, _ = jnp.linalg.qr(start)
    basis = block
    images = jnp.zeros((num_columns, 0), start.dtype)
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
    num_free = max(num_columns - width, 0)
    new = new[:, :num_free]
    for _ in range(3):
        new = new - product(basis, product(basis.T, new))
        norms = jnp.linalg.norm(new, axis=0)
        new = jnp.linalg.qr(new / jnp.where(norms > 0, norms, 1))[0]
    return new


@functools.partial(jax.jit, static_argnames="width")
def _in_basis(basis: Array, images: Array, width: int) -> Array:
    """Returns the leading directions in the span of a basis Q, from images XᵀX Q.

    They are the Rayleigh-Ritz vectors times XᵀX, which takes no further pass, since the
    images are known.
    """
    small = product(basis.T, images)
    squares, vectors = jnp.linalg.eigh((small + small.T) / 2)
    # Eigenvalues ascend, so the leading ones are last.
    squares = squares[::-1][:width]
    vectors = vectors[:, ::-1][:, :width]
    noise = basis.shape[1] * float(jnp.finfo(basis.dtype).eps)
    is_kept = squares > noise * squares[0]
    # The image of a direction in the null space is only rounding error, so that the
    # direction itself is kept. The next pass then has a full block of directions.
    further = product(images, vectors / jnp.where(is_kept, squares, 1))
    return jnp.linalg.qr(jnp.where(is_kept, further, product(basis, vectors)))[0]


@functools.partial(jax.jit, static_argnames="num_columns")
def _extracted(passed: Array, num_columns: int) -> tuple[Array, Array]:
    """Returns singular vectors and values of Xᵀ U, U an orthonormal basis of X Q."""
    images = passed[:num_columns]
    squares = passed[num_columns:]
    sizes = jnp.sqrt(diagonal(squares))
    sizes = jnp.where(sizes > 0, sizes, 1)
    eigenvalues, vectors = jnp.linalg.eigh(squares / sizes / sizes[:, None])
    noise = 10 * squares.shape[0] * float(jnp.finfo(squares.dtype).eps)
    is_kept = eigenvalues > noise * jnp.maximum(eigenvalues[-1], 0)
    roots = jnp.sqrt(jnp.where(is_kept, eigenvalues, 1))
    whitening = jnp.where(is_kept, vectors / roots, 0)
    projected = product(images, whitening / sizes[:, None])
    vectors, values, _ = jnp.linalg.svd(projected, full_matrices=False)
    return vectors, values
