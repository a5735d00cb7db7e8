"""Operations on arrays with many rows: Gram matrices, QR and column scales."""

import jax.numpy as jnp
from jax import Array

from jaxwgc._common.arrays import inverse_power_of_two, product

# Entries per block: 4 MiB in float64, so that a block and its product stay in a cache.
# Sums within blocks and then over blocks have smaller rounding errors than long sums.
_BLOCK_ENTRIES = 2**19
# Smallest and largest number of rows per block.
_MIN_ROWS = 256
_MAX_ROWS = 8192
# Smallest number of rows per block of a QR factorisation.
_MIN_QR_ROWS = 256


def block_size(num_rows: int, num_columns: int) -> int:
    """Returns the number of rows per block."""
    size = max(_MIN_ROWS, min(_MAX_ROWS, _BLOCK_ENTRIES // num_columns))
    return min(num_rows, size)


def gram(rows: Array) -> Array:
    """Computes the Gram matrix rowsᵀ rows. Symmetry saves a quarter of the work."""
    half = rows.shape[1] // 2
    if half < 32:
        return product(rows.T, rows)
    left = rows[:, :half]
    right = rows[:, half:]
    upper = product(left.T, rows)
    lower = jnp.concatenate([upper[:, half:].T, product(right.T, right)], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


def diagonal(matrix: Array) -> Array:
    """Returns the diagonal, by a sum that compiles faster than `jnp.diagonal`."""
    is_diagonal = jnp.eye(len(matrix), dtype=bool)
    return jnp.sum(jnp.where(is_diagonal, matrix, 0), axis=0)


def triangle(matrix: Array) -> Array:
    """Computes the triangular factor of a QR decomposition, in blocks of rows.

    The rounding of one long sum over all rows would hide small singular values.
    """
    num_rows, num_columns = matrix.shape
    size = max(_MIN_QR_ROWS, 4 * num_columns)
    num_blocks = num_rows // size
    if num_blocks < 2:
        return jnp.linalg.qr(matrix, mode="r")
    num_in_blocks = num_blocks * size
    blocks = matrix[:num_in_blocks].reshape(num_blocks, size, num_columns)
    triangles = jnp.linalg.qr(blocks, mode="r").reshape(-1, num_columns)
    return triangle(jnp.concatenate([triangles, matrix[num_in_blocks:]]))


def transposed_product(rows: Array, vectors: Array) -> Array:
    """Multiplies vectors by the transpose of the array `rows`.

    For one vector, the sum over rows is a reduction, which XLA takes in a tree. Its
    rounding is a fifth of that of a matrix product, which adds rows in order. On CPUs,
    it is also up to ten times faster than the product with a transposed matrix.
    """
    if vectors.ndim == 1:
        return jnp.sum(rows * vectors[:, None], axis=0)
    return product(rows.T, vectors)


def scaled(factors: Array, vectors: Array) -> Array:
    """Multiplies each row of `vectors` by its factor."""
    return (factors * vectors.T).T


def padded_with_zeros(array: Array, num_rows: int) -> Array:
    """Appends rows of zeros to an array."""
    return jnp.pad(array, [(0, num_rows)] + [(0, 0)] * (array.ndim - 1))


def safe(value: Array) -> Array:
    """Replaces values that are not positive by 1, so that all can be divisors."""
    return jnp.where(value > 0, value, 1)


def column_scale(maxima: Array, root_ridge: Array | None = None) -> Array:
    """Returns powers of two that scale the largest entry of each column to about 1.

    Scales avoid overflow of squares of finite columns. Powers of two are exact. If X is
    not finite, neither are the sums of squares of scaled columns.

    Args:
      maxima: The largest absolute value in each column of X, (p,).
      root_ridge: If given, rows `root_ridge` I count as rows of X.
    """
    if root_ridge is not None:
        maxima = jnp.maximum(maxima, root_ridge)
    scales = inverse_power_of_two(maxima)
    # A column of zeros gets the largest scale of all other columns, since
    # `Factors.row_space` divides rounding errors by scales.
    is_nonzero = maxima > 0
    largest = jnp.max(scales, initial=0, where=is_nonzero)
    return jnp.where(is_nonzero, scales, safe(largest))


def unit_scale(scale: Array, squares: Array) -> Array:
    """Computes powers of two that scale columns to norms near 1.

    Args:
      scale: Powers of two by which the columns are already scaled, (p,).
      squares: The squared norms of these columns, (p,).

    Returns:
      Further powers of two, (p,). Their products with `scale` are normal numbers.
    """
    unit = inverse_power_of_two(jnp.sqrt(squares))
    smallest_product = 2 * jnp.finfo(scale.dtype).tiny
    return jnp.maximum(unit, smallest_product / jnp.where(scale > 0, scale, 1))
