"""Embeddings by dense random matrices, generated in blocks of columns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc._common.pytrees import Static
from jaxwgc.sketching._embeddings._embedding import (
    Embedding,
    Index,
    check_sizes,
    fold_blocks,
    random_signs,
)

# Entries of an embedding in memory at a time: enough for products at full speed.
_BLOCK_ENTRIES = 2**21


def gaussian(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding with independent normal entries.

    The entries have mean 0 and variance 1 / sketch_size. It has the sharpest
    theory, and the smallest size for a given accuracy. Applying it to d columns
    takes sketch_size * num_rows normal variables and d times as many
    multiplications. S is generated in blocks of columns, so that memory does not
    grow with num_rows.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of rows of S, at least 1.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.

    Returns:
      An `Embedding`. Its entries have the precision of float32, and may differ in the
      last digit between two compiled programs.

    Raises:
      ValueError: If a size is less than 1.
      TypeError: If a size is not an int or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> embedding = sketching.gaussian(jax.random.key(0), 500, 1000)
      >>> sketch = embedding.apply({"x": jnp.ones((1000, 3)), "y": jnp.ones(1000)})
      >>> print(sketch["x"].shape, sketch["y"].shape)
      (500, 3) (500,)
      >>> print(jnp.isclose(jnp.linalg.norm(sketch["y"]), 1000**0.5, rtol=0.2))
      True

    References:
      Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53
      (2011), section 4.1; Martinsson and Tropp, "Randomized numerical linear algebra:
      foundations and algorithms", Acta Numerica 29 (2020), section 8.3.
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    return _DenseEmbedding(key, sketch_size, num_rows, draw_entries=_normal)


def rademacher(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding with independent random entries ±1 / √sketch_size.

    It is as accurate as `gaussian` in practice, and faster to generate: one word of
    random bits gives 32 entries. Memory does not grow with num_rows.

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
      >>> embedding = sketching.rademacher(jax.random.key(0), 4, 10)
      >>> print(jnp.abs(embedding.matrix()).min(), jnp.abs(embedding.matrix()).max())
      0.5 0.5

    References:
      Achlioptas, "Database-friendly random projections: Johnson-Lindenstrauss with
      binary coins", J. Comput. Syst. Sci. 66 (2003).
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    return _DenseEmbedding(key, sketch_size, num_rows, draw_entries=random_signs)


class _DenseEmbedding(Embedding):
    """A dense embedding, with a separate random key for every block of columns.

    Attributes:
      draw_entries: A function of a key and a shape that draws independent entries of
        mean 0 and variance 1, float32.
    """

    draw_entries: Static[Callable[[Array, tuple[int, int]], Array]]

    @property
    def _block_size(self) -> int:
        # The block size depends only on the shape of the embedding, so that entries do
        # not depend on the argument of `apply`.
        num_words = _BLOCK_ENTRIES // self.sketch_size // 32
        return min(max(32 * num_words, 32), self.num_rows)

    def _block(self, index: Index, dtype: np.dtype) -> Array:
        key = jax.random.fold_in(self.key, index)
        entries = self.draw_entries(key, (self.sketch_size, self._block_size))
        return entries.astype(dtype) / self.sketch_size**0.5

    def apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        size = self._block_size
        # The embedding is real, also for complex arrays.
        dtype = jnp.finfo(jnp.result_type(*arrays)).dtype

        def add(index: Index, sums: list[Array], num_used: int) -> list[Array]:
            block = self._block(index, dtype)[:, :num_used]

            def add_part(total: Array, array: Array) -> Array:
                part = lax.dynamic_slice_in_dim(array, index * size, num_used)
                return total + product(block.astype(part.dtype), part)

            return jax.tree.map(add_part, sums, arrays)

        zeros = [
            jnp.zeros((self.sketch_size, array.shape[1]), array.dtype)
            for array in arrays
        ]
        return fold_blocks(add, zeros, self.num_rows, size)

    def to_array(self, dtype: np.dtype) -> Array:
        num_blocks = -(-self.num_rows // self._block_size)
        indices = jnp.arange(num_blocks, dtype=jnp.int32)
        blocks = lax.map(lambda index: self._block(index, dtype), indices)
        return jnp.concatenate(list(blocks), axis=1)[:, : self.num_rows]


def _normal(key: Array, shape: tuple[int, int]) -> Array:
    return jax.random.normal(key, shape, jnp.float32)
