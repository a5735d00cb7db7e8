"""Matrices in blocks of rows, which are read on the host."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxwgc._arrays import is_sparse, product
from jaxwgc._validation import require
from jaxwgc.sketching._linalg.blocks import (
    NUM_THREADS,
    SPARSE_ROWS,
    Blocks,
    Chunks,
    some_rows,
)
from jaxwgc.sketching._linalg.dense import Dense
from jaxwgc.sketching._linalg.factors import factors_of
from jaxwgc.sketching._linalg.matrix import (
    QRMatrix,
    Triangle,
    gram_products_of_block,
)


@jax.tree_util.register_static
class BlockMatrix(QRMatrix):
    """The matrix of `Blocks`. Each method reads all chunks once.

    Chunks are summed in float64, in any mode. Loops run in Python.
    """

    is_streamed = True

    def __init__(self, blocks: Blocks):
        self._chunks = Chunks(blocks)

    @property
    def shape(self):
        return self._chunks.shape

    @property
    def dtype(self):
        return self._chunks.dtype

    def mv(self, vector):
        vector = np.asarray(vector)
        images = [(chunk @ vector)[:size] for _, chunk, size in self._chunks]
        return jnp.asarray(np.concatenate(images))

    def rmv(self, vector):
        return self.sum_rows(_rmv_of_block, along=(vector,))

    def sketch(self, embedding, *arrays):
        drawn = _drawn(embedding)
        sums = []
        for start, chunk, slices in self._dense_chunks(arrays):
            parts = _chunk_sketch(embedding, [chunk, *slices], drawn, start)
            sums = _added(sums or None, parts)
        return [jnp.asarray(total, self.dtype) for total in sums]

    def sum_rows(self, function, *args, along=()):
        sums: Any = None
        for _, chunk, slices in self._dense_chunks(along):
            sums = _added(sums, _chunk_sum(chunk, slices, args, function))
        return jax.tree.map(lambda total: jnp.asarray(total, self.dtype), sums)

    def gram_products(self, basis, scale):
        """Computes `RowMatrix.gram_products`, by SciPy for sparse blocks."""
        sums: Any = None
        for start, chunk, _ in self._chunks:
            if is_sparse(chunk):
                image = _sparse_gram_products(chunk, np.asarray(scale), basis)
            else:
                args = scale, basis
                image = np.asarray(_chunk_sum(chunk, (), args, gram_products_of_block))
            given = f"rows from {start} on that are far larger than the first ones"
            require(np.isfinite(image).all(), "blocks", "not overflow", given)
            sums = _added(sums, image)
        return jnp.asarray(sums, self.dtype)

    def row_norms(self, basis, scale):
        basis = np.asarray(basis)
        scale = np.asarray(scale)
        norms = []
        for _, chunk, size in self._chunks:
            if is_sparse(chunk):
                rows = chunk @ (scale * basis.T).T
            else:
                rows = (chunk * scale) @ basis
            norms.append(np.sum(rows**2, axis=1)[:size])
        return np.concatenate(norms)

    def column_maxima(self):
        """Returns the largest absolute value of the first chunk for all columns."""
        return jnp.full(self.shape[1], self._chunks.largest)

    def triangle(self, root):
        # A view of one zero, since N zeros may not fit in memory.
        nothing = np.broadcast_to(np.zeros((), self.dtype), self.shape[:1])
        triangle, _, _ = self.triangle_and_products(nothing, root)
        return triangle

    def triangle_and_products(self, target, root):
        del root
        num_columns = self.shape[1]
        sums: Any = None
        folded = np.zeros((0, num_columns))
        for _, chunk, (some,) in self._dense_chunks((target,)):
            own, *products = _chunk_factor(chunk, some)
            sums = _added(sums, products)
            folded = np.concatenate([folded, np.asarray(own, float)])
            if len(folded) > 2 * num_columns:
                folded = np.linalg.qr(folded, mode="r")
        factor = jnp.asarray(np.linalg.qr(folded, mode="r"), self.dtype)
        gradient, squared = (jnp.asarray(total, self.dtype) for total in sums)
        # QR needs no scales.
        return Triangle(factor, jnp.ones(num_columns, self.dtype)), gradient, squared

    def while_loop(self, is_open, step, state):
        while is_open(state):
            state = step(state)
        return state

    def _dense_chunks(self, along: Any) -> Iterator[tuple[int, Any, list[np.ndarray]]]:
        """Yields the start of each chunk, the dense chunk, and rows of other arrays."""
        for start, chunk, size in self._chunks:
            slices = [_padded(array[start : start + size], chunk) for array in along]
            yield start, chunk.toarray() if is_sparse(chunk) else chunk, slices


def _rmv_of_block(block: Array, vector: Array) -> Array:
    return product(block.T, vector)


def _padded(array: Any, chunk: Any) -> np.ndarray:
    """Pads rows of an array with zeros to the number of rows of a chunk."""
    array = np.asarray(array)
    missing = chunk.shape[0] - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))


def _added(sums: Any, parts: Any) -> Any:
    parts = jax.tree.map(lambda part: np.asarray(part, float), parts)
    return parts if sums is None else jax.tree.map(np.add, sums, parts)


@functools.partial(jax.jit, static_argnames="function")
def _chunk_sum(
    chunk: Array, slices: Any, args: Any, function: Callable[..., Any]
) -> Any:
    return Dense(chunk).sum_rows(function, *args, along=tuple(slices))


@jax.jit
def _chunk_factor(chunk: Array, target: Array) -> tuple[Array, ...]:
    """Returns R with RᵀR = XᵀX of a chunk, and the Xᵀy and yᵀy of the chunk.

    R is square but not triangular. It is computed by Gram matrices, which are far
    faster than QR and as accurate.
    """
    matrix = Dense(chunk)
    factors = factors_of(matrix, None, 0.0)
    vectors = factors.vectors / factors.scale[:, None]
    factor = factors.singular_values[:, None] * vectors.T
    # In a column of zeros, the computed factor is rounding alone, and is removed.
    factor = jnp.where(jnp.any(chunk != 0, axis=0), factor, 0)
    pulled = matrix.sum_rows(_rmv_of_block, along=(target,))
    return factor, pulled, jnp.sum(target**2, axis=0)


@jax.jit
def _drawn(embedding: Any) -> Any:
    return embedding._draw()


@jax.jit
def _chunk_sketch(embedding: Any, arrays: Any, drawn: Any, start: Array) -> Any:
    return embedding._apply_to_part(arrays, drawn, start)


def _sparse_gram_products(chunk: Any, scale: Any, basis: Array) -> np.ndarray:
    """Computes `gram_products_of_block` by SciPy, in time linear in the entries."""
    scaled = np.asarray(basis) * scale

    def of_some(start: int) -> np.ndarray:
        some = some_rows(chunk, start, start + SPARSE_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = some @ scaled
            return np.concatenate([(some.T @ rows) * scale, rows.T @ rows])

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        starts = range(0, chunk.shape[0], SPARSE_ROWS)
        return np.sum([*threads.map(of_some, starts)], axis=0, dtype=np.float64)
