"""Embeddings by sparse random matrices, with a few random signs in every column."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import is_kind
from jaxwgc._common.conversions import on_mesh_of
from jaxwgc._common.pytrees import Static
from jaxwgc.sketching import _arguments
from jaxwgc.sketching._embeddings._embedding import (
    Embedding,
    Index,
    check_sizes,
    fold_blocks,
)
from jaxwgc.sketching._linalg.entries import Entries, bucket_entries

# Number of columns of a `sparse_stack` drawn with one key. Small against usual numbers
# of rows, since up to one further chunk is drawn. Large enough for fast draws.
_CHUNK_COLUMNS = 1024


def count_sketch(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding that adds each row, times ±1, to a random row of the sketch.

    Each column has one entry ±1. It is the fastest embedding to apply, in one pass
    over the nonzeros of a matrix. It needs a sketch size that grows with the square
    of the number of columns. See `recommended_sketch_size`.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of rows of S (also called buckets), at least 1.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.

    Returns:
      An `Embedding`.

    Raises:
      ValueError: If a size is less than 1.
      TypeError: If a size is not an int or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> embedding = sketching.count_sketch(jax.random.key(0), 4, 10)
      >>> print(jnp.abs(embedding.matrix()).sum(axis=0))
      [1. 1. 1. 1. 1. 1. 1. 1. 1. 1.]

    References:
      Charikar, Chen and Farach-Colton, "Finding frequent items in data streams",
      ICALP 2002; Clarkson and Woodruff, "Low-rank approximation and regression in input
      sparsity time", STOC 2013.
    """
    return sparse_sign(key, sketch_size, num_rows, num_nonzeros=1)


def sparse_sign(
    key: Array, sketch_size: int, num_rows: int, num_nonzeros: int | None = None
) -> Embedding:
    """Returns an embedding with a few random signs in every column.

    Each column has num_nonzeros entries ±1 / √num_nonzeros. Also called OSNAP. With
    the default of 8, it is about as accurate as `gaussian` at an equal sketch size
    on most matrices. It takes 8 passes over the matrix.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of rows of S, at least 1.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.
      num_nonzeros: The number of entries per column, from 1 to sketch_size; by default
        min(8, sketch_size). 1 gives `count_sketch`.

    Returns:
      An `Embedding`.

    Raises:
      ValueError: If a size is less than 1, or num_nonzeros is above sketch_size.
      TypeError: If a size is not an int or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> embedding = sketching.sparse_sign(jax.random.key(0), 20, 6, num_nonzeros=4)
      >>> print(jnp.sum(embedding.matrix() != 0, axis=0))
      [4 4 4 4 4 4]
      >>> print(jnp.abs(embedding.matrix()).max())
      0.5

    References:
      Nelson and Nguyen, "OSNAP: faster numerical linear algebra algorithms via sparser
      subspace embeddings", FOCS 2013; Martinsson and Tropp, "Randomized numerical
      linear algebra: foundations and algorithms", Acta Numerica 29 (2020), section 9.2,
      for the default.
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    if num_nonzeros is None:
        num_nonzeros = min(8, sketch_size)
    num_nonzeros = validation.check_up_to(
        "num_nonzeros", num_nonzeros, sketch_size=sketch_size
    )
    return _SparseEmbedding(key, sketch_size, num_rows, num_nonzeros=num_nonzeros)


def sparse_stack(
    key: Array,
    sketch_size: int,
    num_rows: int,
    num_nonzeros: int | None = None,
    *,
    first_block: ArrayLike = 0,
    first_row: ArrayLike = 0,
) -> Embedding:
    """Returns a sparse embedding for sketches that can grow, in size or by new data.

    S has num_nonzeros blocks of rows, with one entry ±1 / √num_nonzeros per column in
    each block. It is as accurate as `sparse_sign`, and as fast to apply. In addition, a
    sketch grows without a second pass over old rows. Entries of block i of S in column
    j depend on the key, i, j and the size of the block alone, so that:

    - **A larger sketch** has the smaller one as its first rows, up to their scale. The
      embedding with the next blocks has `first_block=num_nonzeros`, and an equal key.
    - **More rows of data** add their sketch to the old one. The embedding of rows that
      follow N old rows has `first_row=N`, and an equal key.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of rows of S, at least 1. All blocks have an equal size if
        it is a multiple of num_nonzeros, which a sketch that grows requires. Otherwise,
        their sizes differ by at most 1.
      num_rows: N, the number of rows of the matrices it multiplies, at least 1.
      num_nonzeros: The number of blocks, which is the number of entries per column,
        from 1 to sketch_size; by default min(8, sketch_size).
      first_block: The number of the first block, an int from 0 to 2³¹ - 1, may be
        traced.
      first_row: The number of the first row of data, an int from 0 to 2³¹ - 1, may be
        traced.

    Returns:
      An `Embedding`.

    Raises:
      ValueError: If a size is less than 1, num_nonzeros is above sketch_size, or
        first_block or first_row is negative or above 2³¹ - 1.
      TypeError: If one of these numbers is not an int or the key is no PRNG key.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxwgc import sketching
      >>> key = jax.random.key(0)
      >>> old = jax.random.normal(key, (1000, 3))
      >>> sketch = sketching.sparse_stack(key, 40, 1000, 4) @ old

      Eight blocks instead of four, where the first four are known:

      >>> more = sketching.sparse_stack(key, 40, 1000, 4, first_block=4) @ old
      >>> larger = jnp.concatenate([sketch, more]) / 2**0.5
      >>> expected = sketching.sparse_stack(key, 80, 1000, 8) @ old
      >>> print(jnp.allclose(larger, expected, atol=1e-5))
      True

      Ten rows that arrive later:

      >>> new = jnp.ones((10, 3))
      >>> total = sketch + sketching.sparse_stack(key, 40, 10, 4, first_row=1000) @ new
      >>> all_rows = jnp.concatenate([old, new])
      >>> expected = sketching.sparse_stack(key, 40, 1010, 4) @ all_rows
      >>> print(jnp.allclose(total, expected, atol=1e-5))
      True

    References:
      Kane and Nelson, "Sparser Johnson-Lindenstrauss transforms", J. ACM 61 (2014),
      figure 1 (c); Camaño, Epperly, Meyer and Tropp, "Faster linear algebra algorithms
      with structured random matrices", arXiv:2508.21189 (2025), SparseStack.
    """
    key, sketch_size, num_rows = check_sizes(key, sketch_size, num_rows)
    if num_nonzeros is None:
        num_nonzeros = min(8, sketch_size)
    num_nonzeros = validation.check_up_to(
        "num_nonzeros", num_nonzeros, sketch_size=sketch_size
    )
    return _StackedEmbedding(
        key,
        sketch_size,
        num_rows,
        num_nonzeros=num_nonzeros,
        first_block=_position("first_block", first_block),
        first_row=_position("first_row", first_row),
    )


def _position(name: str, value: ArrayLike) -> Array:
    """Converts the index of a block or row to int32; raises an error if invalid."""
    if np.ndim(value) or not is_kind(value, "integers"):
        raise TypeError(f"{name} must be an int; got {validation.in_short(value)}")
    array_validation.check_number(
        name, value, minimum=0, maximum=np.iinfo(np.int32).max
    )
    return _arguments.scalar(value, np.int32)


class _SparseEmbedding(Embedding):
    num_nonzeros: Static[int]

    def draw(self) -> tuple[Array, Array]:
        """Draws the nonzeros of all columns: their rows (buckets) and their signs."""
        # One call draws all random bits, since compiling such a call takes most of the
        # compile time.
        num_signs = -(-self.num_nonzeros // 32)
        shape = (self.num_nonzeros + num_signs, self.num_rows)
        bits = jax.random.bits(self.key, shape, jnp.uint32)
        buckets = _distinct(bits[: self.num_nonzeros], self.sketch_size)
        order = np.arange(self.num_nonzeros, dtype=np.uint32)
        words = bits[self.num_nonzeros + order // 32]
        is_negative = words >> (order % 32)[:, None] & 1
        return buckets, 1 - 2 * is_negative.astype(jnp.float32)

    def apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        return self.apply_to_part(arrays, self.draw(), None)

    def apply_to_part(self, arrays, drawn, start):
        size = len(arrays[0])
        buckets, signs = drawn
        if start is not None:
            buckets = _some_columns(buckets, start, size)
            signs = _some_columns(signs, start, size)
        columns = [array.reshape(size, -1) for array in arrays]
        sums = bucket_sums(columns, buckets, signs, self.sketch_size)
        sketches = []
        for array, total in zip(arrays, sums, strict=True):
            sketch = total / self.num_nonzeros**0.5
            sketches.append(sketch.reshape(self.sketch_size, *array.shape[1:]))
        return sketches

    def apply_to_entries(self, entries: Entries, shape: tuple[int, ...]) -> Array:
        buckets, signs = self.draw()
        total = bucket_entries(entries, buckets, signs, (self.sketch_size, shape[1]))
        return total / self.num_nonzeros**0.5

    def to_array(self, dtype: np.dtype) -> Array:
        buckets, signs = self.draw()
        entries = signs.astype(dtype) / self.num_nonzeros**0.5
        zeros = jnp.zeros((self.sketch_size, self.num_rows), dtype)
        return zeros.at[buckets, jnp.arange(self.num_rows)].set(entries)


class _StackedEmbedding(_SparseEmbedding):
    first_block: Array
    first_row: Array

    def draw(self) -> tuple[Array, Array]:
        blocks = self.first_block + jnp.arange(self.num_nonzeros, dtype=jnp.int32)
        bits = jax.vmap(self._bits_of_block)(blocks)
        ends = np.arange(self.num_nonzeros + 1) * self.sketch_size // self.num_nonzeros
        starts = jnp.asarray(ends[:-1, None], jnp.int32)
        sizes = jnp.asarray(np.diff(ends)[:, None], jnp.uint32)
        # The lowest bit is the sign, and the others choose the bucket in the block.
        buckets = starts + (bits // 2 % sizes).astype(jnp.int32)
        return buckets, 1 - 2 * (bits % 2).astype(jnp.float32)

    def _bits_of_block(self, block: Array) -> Array:
        """Draws a word of random bits for each column of a block.

        Every chunk of columns has a key, so that bits do not depend on num_rows.
        """
        key = jax.random.fold_in(self.key, block)

        def draw_chunk(chunk: Array) -> Array:
            chunk_key = jax.random.fold_in(key, chunk)
            return jax.random.bits(chunk_key, (_CHUNK_COLUMNS,), jnp.uint32)

        # One more chunk is drawn, since the first row may lie inside a chunk.
        num_chunks = -(-self.num_rows // _CHUNK_COLUMNS) + 1
        chunks = jnp.arange(num_chunks, dtype=jnp.int32)
        chunks += self.first_row // _CHUNK_COLUMNS
        bits = jax.vmap(draw_chunk)(chunks).reshape(-1)
        offset = self.first_row % _CHUNK_COLUMNS
        return lax.dynamic_slice_in_dim(bits, offset, self.num_rows)


def _some_columns(drawn: Array, start: Array, size: int) -> Array:
    """Returns consecutive columns of buckets or signs, with zeros beyond the last.

    The zeros multiply the padding of a chunk, which is zero as well.
    """
    padded = jnp.pad(drawn, [(0, 0), (0, size)])
    return lax.dynamic_slice_in_dim(padded, start, size, 1)


def _distinct(bits: Array, size: int) -> Array:
    """Draws distinct random buckets for every column, from random bits.

    Floyd's algorithm draws all subsets with equal probability (up to 2**-32 times the
    size), in `count` steps for any size.
    """
    count = len(bits)

    def choose(step: Array, chosen: Array) -> Array:
        last = size - count + step
        drawn = (bits[step] % (last + 1).astype(jnp.uint32)).astype(jnp.int32)
        is_taken = (chosen == drawn).any(axis=0)
        return chosen.at[step].set(jnp.where(is_taken, last, drawn))

    # -1 means that no number is chosen yet, since no drawn number is negative. The
    # array is computed from the bits, so that it varies over the mesh axes of the bits.
    unchosen = bits.astype(jnp.int32) | -1
    return lax.fori_loop(0, count, choose, unchosen)


# Number of rows in one sequential sum. Longer sums are split, to keep rounding small.
_SUM_ROWS = 4096


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def bucket_sums(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds each row, times ±1, to each of its buckets; `buckets` and `signs` (k, N)."""
    by_rows = functools.partial(_row_by_row, num_buckets=num_buckets)
    at_once = functools.partial(_all_at_once, num_buckets=num_buckets)
    return lax.platform_dependent(arrays, buckets, signs, cpu=by_rows, default=at_once)


@bucket_sums.defjvp
def _bucket_sums_jvp(num_buckets, primals, tangents):
    # The sums are linear in the arrays, so derivatives are sums of tangents. They use
    # `_all_at_once`, which reverse mode transposes to a gather.
    arrays, buckets, signs = primals
    change = _all_at_once(tangents[0], buckets, signs, num_buckets)
    return bucket_sums(arrays, buckets, signs, num_buckets), change


def _row_by_row(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds rows to buckets one by one: faster than a scatter on CPUs for wide rows.

    Sums are taken in two levels, which keeps rounding small for any number of rows.
    """
    size = max(_SUM_ROWS, num_buckets)
    # On a mesh with explicit axes, JAX rejects updates of arrays that are on no mesh.
    zeros = [
        on_mesh_of(array, jnp.zeros((num_buckets, array.shape[1]), array.dtype))
        for array in arrays
    ]

    def add_block(index: Index, totals: list[Array], num_used: int) -> list[Array]:
        def add_row(step: Array, sums: list[Array]) -> list[Array]:
            # Steps go over all rows of the block once per row of `buckets`.
            copy = step // num_used
            i = index * size + step % num_used
            bucket = buckets[copy, i]
            sign = signs[copy, i]
            new_sums = []
            for array, total in zip(arrays, sums, strict=True):
                row = lax.dynamic_slice_in_dim(array, i, 1) * sign.astype(array.dtype)
                row += lax.dynamic_slice_in_dim(total, bucket, 1)
                total = lax.dynamic_update_slice_in_dim(total, row, bucket, 0)
                new_sums.append(total)
            return new_sums

        sums = lax.fori_loop(0, num_used * len(buckets), add_row, zeros)
        return jax.tree.map(jnp.add, totals, sums)

    return fold_blocks(add_block, zeros, len(arrays[0]), size)


def _all_at_once(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    def sums(array: Array) -> Array:
        total = jnp.zeros((num_buckets, array.shape[1]), array.dtype)
        for bucket, sign in zip(buckets, signs.astype(array.dtype), strict=True):
            total += jax.ops.segment_sum(array * sign[:, None], bucket, num_buckets)
        return total

    return [sums(array) for array in arrays]
