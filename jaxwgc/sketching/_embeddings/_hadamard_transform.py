"""Embedding by a subsampled randomised Hadamard transform."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array, lax

from jaxwgc._common.arrays import next_power_of_two, product
from jaxwgc.sketching._embeddings._embedding import (
    Embedding,
    Index,
    check_sizes,
    fold_blocks,
    random_signs,
)

# Number of rows transformed at a time, small enough for a processor's cache: the
# transform is bound by memory traffic, not arithmetic.
_HADAMARD_ROWS = 1024


def srht(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding by a subsampled randomised Hadamard transform.

    The embedding is S = R H D / √sketch_size. D flips the signs of rows at random.
    H is the Hadamard matrix of the next power of two M ≥ N, which spreads every row
    over all rows. R picks rows of H uniformly without replacement. If sketch_size
    exceeds M, R takes every row once (or twice, ...) and picks the rest.

    It is applied in one pass over N rows, in time O(N log sketch_size) per column. Rows
    of H that are not picked are never computed, and no padded copy is made.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of rows of S, at least 1.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.

    Returns:
      An `Embedding`.

    Raises:
      ValueError: If a size is less than 1.
      TypeError: If a size is not an int or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> embedding = sketching.srht(jax.random.key(0), 8, 8)
      >>> sketch = embedding.apply(jnp.arange(8.0))
      >>> print(jnp.allclose(jnp.linalg.norm(sketch) ** 2, 140))
      True

    References:
      Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform and approximate
      nearest neighbors", SIAM J. Comput. 39 (2009); Tropp, "Improved analysis of the
      subsampled randomized Hadamard transform", Adv. Adapt. Data Anal. 3 (2011); Ailon
      and Liberty, "Fast dimension reduction using Rademacher series on dual BCH codes",
      Discrete Comput. Geom. 42 (2009), for O(N log sketch_size).
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    return _HadamardEmbedding(key, sketch_size, num_rows)


class _HadamardEmbedding(Embedding):
    def _drawn(self) -> tuple[Array, Array]:
        """Draws the picked rows of the Hadamard matrix, and signs for the data."""
        row_key, sign_key = jax.random.split(self.key)
        order = jnp.arange(next_power_of_two(self.num_rows), dtype=jnp.int32)
        order = jax.random.permutation(row_key, order)
        picked = jnp.resize(order, (self.sketch_size,))
        return picked, random_signs(sign_key, (self.num_rows,))

    def apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        picked, signs = self._drawn()
        return [self._transformed(array, picked, signs) for array in arrays]

    def _transformed(self, array: Array, picked: Array, signs: Array) -> Array:
        # H is the Kronecker product of two Hadamard matrices: the outer one acts on the
        # blocks, and the inner one on the rows of a block. The inner one is applied
        # block by block. Only the picked rows of the product with H are computed.
        size = next_power_of_two(max(self.sketch_size, _HADAMARD_ROWS))
        size = min(size, next_power_of_two(self.num_rows))
        signs = signs.astype(array.dtype)
        outer = picked // size
        inner = picked % size

        def add(index: Index, total: Array, num_used: int) -> Array:
            rows = lax.dynamic_slice_in_dim(array, index * size, num_used)
            sign = lax.dynamic_slice_in_dim(signs, index * size, num_used)
            rows = jnp.pad(rows * sign[:, None], [(0, size - num_used), (0, 0)])
            outer_sign = _parity_sign(outer, index).astype(array.dtype)
            return total + outer_sign[:, None] * _hadamard_transform(rows)[inner]

        total = jnp.zeros((self.sketch_size, array.shape[1]), array.dtype)
        total = fold_blocks(add, total, self.num_rows, size)
        return total / self.sketch_size**0.5

    def to_array(self, dtype: np.dtype) -> Array:
        picked, signs = self._drawn()
        columns = jnp.arange(self.num_rows, dtype=jnp.int32)
        entries = _parity_sign(picked[:, None], columns).astype(dtype) * signs
        return entries.astype(dtype) / self.sketch_size**0.5


def _hadamard_transform(rows: Array) -> Array:
    """Computes the Hadamard transform of every column."""
    size = len(rows)
    inner_size = next_power_of_two(math.isqrt(size))
    outer = jnp.asarray(scipy.linalg.hadamard(size // inner_size), rows.dtype)
    inner = jnp.asarray(scipy.linalg.hadamard(inner_size), rows.dtype)
    # H is the Kronecker product of `outer` and `inner`.
    blocks = product(outer, rows.reshape(len(outer), -1))
    blocks = blocks.reshape(len(outer), inner_size, -1)
    return product(inner, blocks).reshape(size, -1)


def _parity_sign(left: Array, right: Index) -> Array:
    """Returns entries of the Hadamard matrix for given rows and columns."""
    return 1 - 2 * (lax.population_count(left & right) & 1)
