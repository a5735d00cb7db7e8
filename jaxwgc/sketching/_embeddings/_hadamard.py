"""The fast Walsh-Hadamard transform."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxwgc.sketching._powers import next_power_of_two

# Rows that are transformed while they stay in a processor's cache. Memory traffic, not
# arithmetic, is what the transform costs: all stages of a block are done before the
# next block is read. Additions in radix 4 are then as fast as products with small
# Hadamard matrices, and exact for integers.
BLOCK_ROWS = 1024
_CHUNK_ENTRIES = 2**17


def hadamard_transform(array: jax.typing.ArrayLike) -> jax.Array:
    """The Walsh-Hadamard transform along the first axis, in O(N log N) per column.

    The product with the symmetric matrix H of entries (-1)^popcount(i & j) (Sylvester's
    order, SciPy's `scipy.linalg.hadamard`). H H = N I: divide by √N for an orthonormal
    transform.

    Args:
      array: (N, ...), real or complex. Filled up with zeros to the next power of two.
        Integers and bools become the default float dtype.

    Returns:
      (M, ...) with M the smallest power of two that is at least N.

    Raises:
      ValueError: for a scalar or an array without rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> print(sketching.hadamard_transform(jnp.array([1.0, 2.0, 3.0])))
      [ 6.  2.  0. -4.]

    References:
      Fino and Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform",
      IEEE Trans. Computers C-25 (1976).
    """
    array = jnp.asarray(array)
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(f"array must have at least one row; got shape {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(float)
    return _transform(array)


def transform_block(rows: jax.Array) -> jax.Array:
    """The same for a matrix of few rows, a power of two of them."""
    size = rows.shape[0]
    done = 1
    while done < size:
        radix = 4 if size // done >= 4 else 2
        parts = rows.reshape(size // (radix * done), radix, -1)
        parts = [parts[:, i] for i in range(radix)]
        for half in (1, 2)[: radix // 2]:
            parts = _butterflies(parts, half)
        rows = jnp.stack(parts, axis=1)
        done *= radix
    return rows.reshape(size, -1)


def parity_sign(left: jax.Array, right: jax.Array) -> jax.Array:
    """The entries (-1)^popcount(left & right) of H, int32."""
    return 1 - 2 * (lax.population_count(left & right) & 1)


def _butterflies(parts: list[jax.Array], half: int) -> list[jax.Array]:
    """Sums and differences of those entries whose positions differ by `half`."""
    return [
        parts[i - half] - part if i & half else part + parts[i + half]
        for i, part in enumerate(parts)
    ]


@jax.jit
def _transform(array: jax.Array) -> jax.Array:
    num_rows, *trailing = array.shape
    size = next_power_of_two(num_rows)
    columns = array.reshape(num_rows, -1)
    columns = jnp.pad(columns, [(0, size - num_rows), (0, 0)])
    width = columns.shape[1]
    if size <= BLOCK_ROWS or width == 0:
        return transform_block(columns).reshape(size, *trailing)

    # H of size blocks * rows is the Kronecker product of the two smaller ones.
    columns = _in_place(columns, BLOCK_ROWS, axis=0)
    num_blocks = size // BLOCK_ROWS
    chunk = int(np.clip(_CHUNK_ENTRIES // num_blocks, 16, BLOCK_ROWS))
    columns = columns.reshape(num_blocks, BLOCK_ROWS * width)
    columns = _in_place(columns, chunk, axis=1)
    return columns.reshape(size, *trailing)


def _in_place(columns: jax.Array, size: int, axis: int) -> jax.Array:
    """Transforms slice by slice, with no second array of the size of the first."""

    def step(index: jax.Array, columns: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(columns, index * size, size, axis)
        return lax.dynamic_update_slice_in_dim(
            columns, transform_block(part), index * size, axis
        )

    return lax.fori_loop(0, columns.shape[axis] // size, step, columns)
