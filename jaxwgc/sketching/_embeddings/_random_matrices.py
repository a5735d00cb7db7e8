"""Embeddings by random matrices: dense, sparse and Hadamard."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxwgc._arrays import next_power_of_two, product
from jaxwgc._pytrees import Static
from jaxwgc._validation import check_up_to
from jaxwgc.sketching._embeddings._embedding import (
    Embedding,
    bucket_entries,
    check_sizes,
    random_signs,
)

# Entries of S in memory at one time: large enough for products to run at full speed.
_BLOCK_ENTRIES = 2**21

# Number of rows transformed at a time, small enough for a processor's cache: the
# transform is bound by memory traffic, not arithmetic. Additions in radix 4 are then as
# fast as products with small Hadamard matrices.
_HADAMARD_ROWS = 1024

# Number of rows in one sequential sum. Longer sums are split, to keep rounding small.
_SUM_ROWS = 4096


def gaussian(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding with independent normal entries, variance 1 / sketch_size.

    It has the sharpest theory, and the smallest size for a given accuracy. Applying it
    to d columns takes sketch_size * num_rows normal variables and d times as many
    multiplications. S is generated in blocks of columns, so that memory does not grow
    with num_rows.

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
    return _GaussianEmbedding(*check_sizes(key, sketch_size, num_rows))


def rademacher(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding with independent entries ±1 / √sketch_size.

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
    return _RademacherEmbedding(*check_sizes(key, sketch_size, num_rows))


def _fold_blocks(
    add: Callable[[Any, Any, int], Any], total: Any, num_rows: int, size: int
) -> Any:
    """Accumulates a total by `add(index, total, number of rows)` over all blocks."""
    num_blocks, num_left = divmod(num_rows, size)
    start = np.int32(0)
    end = np.int32(num_blocks)
    if num_blocks == 1:
        total = add(start, total, size)
    elif num_blocks:
        total = lax.fori_loop(start, end, lambda i, total: add(i, total, size), total)
    return add(end, total, num_left) if num_left else total


class _DenseEmbedding(Embedding):
    """Dense embedding S = [S_0 S_1 ...], with a separate key for every block S_i."""

    @abc.abstractmethod
    def _entries(self, key: Array, shape: tuple[int, int]) -> Array:
        """Draws independent entries of mean 0 and variance 1, float32."""

    @property
    def _block_size(self) -> int:
        # The block size depends on the shape of S alone, so that S does not depend on
        # the argument of `apply`.
        fitting = _BLOCK_ENTRIES // self.sketch_size // 32 * 32
        return min(max(fitting, 32), self.num_rows)

    def _block(self, index: Any, dtype: Any) -> Array:
        key = jax.random.fold_in(self.key, index)
        entries = self._entries(key, (self.sketch_size, self._block_size))
        return entries.astype(dtype) / self.sketch_size**0.5

    def _apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        size = self._block_size
        # Real also for complex arrays.
        dtype = jnp.finfo(jnp.result_type(*arrays)).dtype

        def add(index: Any, sums: list[Array], num_used: int) -> list[Array]:
            block = self._block(index, dtype)[:, :num_used]

            def added(total: Array, array: Array) -> Array:
                part = lax.dynamic_slice_in_dim(array, index * size, num_used)
                return total + product(block.astype(part.dtype), part)

            return jax.tree.map(added, sums, arrays)

        shapes = [(self.sketch_size, array.shape[1]) for array in arrays]
        zeros = [jnp.zeros(s, a.dtype) for s, a in zip(shapes, arrays)]
        return _fold_blocks(add, zeros, self.num_rows, size)

    def _matrix(self, dtype: Any) -> Array:
        num_blocks = -(-self.num_rows // self._block_size)
        indices = jnp.arange(num_blocks, dtype=jnp.int32)
        blocks = lax.map(lambda index: self._block(index, dtype), indices)
        return jnp.concatenate(list(blocks), axis=1)[:, : self.num_rows]


class _GaussianEmbedding(_DenseEmbedding):
    def _entries(self, key: Array, shape: tuple[int, int]) -> Array:
        return jax.random.normal(key, shape, jnp.float32)


class _RademacherEmbedding(_DenseEmbedding):
    def _entries(self, key: Array, shape: tuple[int, int]) -> Array:
        return random_signs(key, shape)


def srht(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns the subsampled randomised Hadamard transform S = R H D / √sketch_size.

    D flips the signs of rows at random. H is the Hadamard matrix of the next power of
    two M ≥ N, which spreads every row over all rows. R picks rows of H uniformly
    without replacement. If sketch_size exceeds M, R takes every row once (or twice,
    ...) and picks the rest.

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
    return _HadamardEmbedding(*check_sizes(key, sketch_size, num_rows))


class _HadamardEmbedding(Embedding):
    def _drawn(self) -> tuple[Array, Array]:
        """Draws indices of rows of H, (sketch_size,), and random signs, (num_rows,)."""
        row_key, sign_key = jax.random.split(self.key)
        order = jnp.arange(next_power_of_two(self.num_rows), dtype=jnp.int32)
        order = jax.random.permutation(row_key, order)
        picked = jnp.resize(order, (self.sketch_size,))
        return picked, random_signs(sign_key, (self.num_rows,))

    def _apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        picked, signs = self._drawn()
        return [self._transformed(array, picked, signs) for array in arrays]

    def _transformed(self, array: Array, picked: Array, signs: Array) -> Array:
        # H is the Kronecker product of a Hadamard matrix over the blocks and a Hadamard
        # matrix over the rows of a block. The latter is applied block by block. Of the
        # product, only the picked rows are computed.
        size = next_power_of_two(max(self.sketch_size, _HADAMARD_ROWS))
        size = min(size, next_power_of_two(self.num_rows))
        signs = signs.astype(array.dtype)
        outer = picked // size
        inner = picked % size

        def add(index: Any, total: Array, num_used: int) -> Array:
            rows = lax.dynamic_slice_in_dim(array, index * size, num_used)
            sign = lax.dynamic_slice_in_dim(signs, index * size, num_used)
            rows = jnp.pad(rows * sign[:, None], [(0, size - num_used), (0, 0)])
            outer_sign = _parity_sign(outer, index).astype(array.dtype)
            return total + outer_sign[:, None] * _hadamard_transform(rows)[inner]

        total = jnp.zeros((self.sketch_size, array.shape[1]), array.dtype)
        total = _fold_blocks(add, total, self.num_rows, size)
        return total / self.sketch_size**0.5

    def _matrix(self, dtype: Any) -> Array:
        picked, signs = self._drawn()
        columns = jnp.arange(self.num_rows, dtype=jnp.int32)
        entries = _parity_sign(picked[:, None], columns).astype(dtype) * signs
        return entries.astype(dtype) / self.sketch_size**0.5


def _hadamard_transform(rows: Array) -> Array:
    """Multiplies a matrix by H; its number of rows is a small power of two."""
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


def _parity_sign(left: Array, right: Array) -> Array:
    """Returns the entries (-1)^popcount(left & right) of H, int32."""
    return 1 - 2 * (lax.population_count(left & right) & 1)


def _butterflies(parts: list[Array], half: int) -> list[Array]:
    """Returns sums and differences of parts that are `half` positions apart."""
    return [
        parts[i - half] - part if i & half else part + parts[i + half]
        for i, part in enumerate(parts)
    ]


def count_sketch(key: Array, sketch_size: int, num_rows: int) -> Embedding:
    """Returns an embedding with one entry ±1 per column: rows are added to buckets.

    It is the fastest embedding to apply, in one pass over the nonzeros of a matrix. It
    needs a sketch size that grows with the square of the number of columns. See
    `recommended_sketch_size`.

    Args:
      key: PRNG key of either kind.
      sketch_size: The number of buckets, which are the rows of S, at least 1.
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
    return _SparseEmbedding(*check_sizes(key, sketch_size, num_rows), num_nonzeros=1)


def sparse_sign(
    key: Array, sketch_size: int, num_rows: int, num_nonzeros: int | None = None
) -> Embedding:
    """Returns an embedding with a few entries ±1 / √num_nonzeros in every column.

    Also called OSNAP. With the default of 8, it is about as accurate as `gaussian` at
    an equal sketch size on most matrices. It takes 8 passes over the matrix.

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
    num_nonzeros = check_up_to("num_nonzeros", num_nonzeros, sketch_size=sketch_size)
    return _SparseEmbedding(key, sketch_size, num_rows, num_nonzeros=num_nonzeros)


class _SparseEmbedding(Embedding):
    num_nonzeros: Static[int]

    def _draw(self) -> tuple[Array, Array]:
        """Draws buckets and signs, int32 and float32 (num_nonzeros, num_rows)."""
        # All bits come from one draw, since compiling a draw takes most of the compile
        # time.
        num_signs = -(-self.num_nonzeros // 32)
        shape = self.num_nonzeros + num_signs, self.num_rows
        bits = jax.random.bits(self.key, shape, jnp.uint32)
        buckets = _distinct(bits[: self.num_nonzeros], self.sketch_size)
        order = np.arange(self.num_nonzeros, dtype=np.uint32)
        signs = bits[self.num_nonzeros + order // 32] >> (order % 32)[:, None] & 1
        return buckets, 1 - 2 * signs.astype(jnp.float32)

    def _apply_to_columns(self, arrays: list[Array]) -> list[Array]:
        return self._apply_to_part(arrays, self._draw(), None)

    def _apply_to_part(self, arrays, drawn, start):
        size = len(arrays[0])
        if start is not None:
            # The last rows of the arrays may be zero padding, so that buckets and signs
            # are padded, too.
            padded = (jnp.pad(part, [(0, 0), (0, size)]) for part in drawn)
            drawn = (lax.dynamic_slice_in_dim(part, start, size, 1) for part in padded)
        columns = [array.reshape(size, -1) for array in arrays]
        sums = _bucket_sums(columns, *drawn, self.sketch_size)
        shapes = [(self.sketch_size, *array.shape[1:]) for array in arrays]
        root = self.num_nonzeros**0.5
        return [(total / root).reshape(shape) for total, shape in zip(sums, shapes)]

    def _apply_to_entries(self, entries: Any, shape: tuple[int, ...]) -> Array:
        buckets, signs = self._draw()
        total = bucket_entries(entries, buckets, signs, (self.sketch_size, shape[1]))
        return total / self.num_nonzeros**0.5

    def _matrix(self, dtype: Any) -> Array:
        buckets, signs = self._draw()
        entries = signs.astype(dtype) / self.num_nonzeros**0.5
        zeros = jnp.zeros((self.sketch_size, self.num_rows), dtype)
        return zeros.at[buckets, jnp.arange(self.num_rows)].set(entries)


def _distinct(bits: Array, size: int) -> Array:
    """Draws distinct numbers below `size` in every column, one per row of bits, int32.

    Floyd's algorithm draws all subsets with equal probability (up to 2**-32 times the
    size), in `count` steps for any size.
    """
    count = len(bits)
    last = np.arange(size - count, size, dtype=np.int32)[:, None]
    drawn = (bits % (last + 1).astype(np.uint32)).astype(jnp.int32)

    def choose(step: Any, chosen: Array) -> Array:
        is_taken = (chosen == drawn[step]).any(axis=0)
        new = jnp.where(is_taken, size - count + step, drawn[step])
        return chosen.at[step].set(new)

    # -1 means not chosen yet: no drawn number is equal to it.
    return lax.fori_loop(0, count, choose, jnp.minimum(drawn, -1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _bucket_sums(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds every row, times its signs, to one bucket per row of `buckets`."""
    by_rows = functools.partial(_row_by_row, num_buckets=num_buckets)
    at_once = functools.partial(_all_at_once, num_buckets=num_buckets)
    return lax.platform_dependent(arrays, buckets, signs, cpu=by_rows, default=at_once)


@_bucket_sums.defjvp
def _bucket_sums_jvp(num_buckets: int, primals: Any, tangents: Any) -> Any:
    # The sums are linear in the arrays. Derivatives use `_all_at_once`, which
    # transposes to a gather.
    arrays, buckets, signs = primals
    change = _all_at_once(tangents[0], buckets, signs, num_buckets)
    return _bucket_sums(arrays, buckets, signs, num_buckets), change


def _row_by_row(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    """Adds wide rows to buckets in place, on CPUs 3 to 10 times as fast as a scatter.

    Sums are taken in two levels, which keeps rounding small for any number of rows.
    """
    size = max(_SUM_ROWS, num_buckets)
    zeros = [jnp.zeros((num_buckets, array.shape[1]), array.dtype) for array in arrays]

    def add_block(index: Any, totals: list[Array], num_used: int) -> list[Array]:
        def add_row(i: Any, sums: list[Array]) -> list[Array]:
            step = i // num_used
            i = index * size + i % num_used
            bucket = buckets[step, i]
            sign = signs[step, i]
            parts = []
            for array, total in zip(arrays, sums):
                row = lax.dynamic_slice_in_dim(array, i, 1) * sign.astype(array.dtype)
                row += lax.dynamic_slice_in_dim(total, bucket, 1)
                parts.append(lax.dynamic_update_slice_in_dim(total, row, bucket, 0))
            return parts

        sums = lax.fori_loop(0, num_used * len(buckets), add_row, zeros)
        return jax.tree.map(jnp.add, totals, sums)

    return _fold_blocks(add_block, zeros, len(arrays[0]), size)


def _all_at_once(
    arrays: list[Array], buckets: Array, signs: Array, num_buckets: int
) -> list[Array]:
    def sums(array: Array) -> Array:
        total = jnp.zeros((num_buckets, array.shape[1]), array.dtype)
        for bucket, sign in zip(buckets, signs.astype(array.dtype)):
            total += jax.ops.segment_sum(array * sign[:, None], bucket, num_buckets)
        return total

    return [sums(array) for array in arrays]
