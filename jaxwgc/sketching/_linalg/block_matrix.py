"""Matrices whose rows are read on the host, block by block."""

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxwgc._common.arrays import is_sparse
from jaxwgc.sketching._linalg.blocks import (
    NUM_THREADS,
    SPARSE_ROWS,
    Chunks,
    some_rows,
)
from jaxwgc.sketching._linalg.factors import factors_of
from jaxwgc.sketching._linalg.matrix import (
    Dense,
    RowMatrix,
    gram_products_of_block,
)
from jaxwgc.sketching._linalg.rows import transposed_product

if TYPE_CHECKING:
    from jaxwgc.sketching._embeddings._embedding import Embedding

T = TypeVar("T")


@jax.tree_util.register_static
class BlockMatrix(RowMatrix):
    """A matrix given as `Blocks`. Each product or sum reads all blocks once.

    Blocks are read in chunks of rows. Sums over chunks are in float64, even if x64 is
    not enabled. Loops run in Python.
    """

    is_streamed = True
    description = "Blocks"

    def __init__(self, chunks: Chunks):
        self._chunks = chunks

    def row_scaled(self, factors):
        return BlockMatrix(self._chunks.row_scaled(np.asarray(factors)))

    @property
    def shape(self):
        return self._chunks.shape

    @property
    def dtype(self):
        return self._chunks.dtype

    def mv(self, vector):
        vector = np.asarray(vector)
        images = []
        for chunk in self._chunks:
            image = chunk.rows @ vector
            images.append(image[: chunk.size])
        return jnp.asarray(np.concatenate(images))

    def rmv(self, vector):
        return self.sum_rows(_rmv_of_block, along=(vector,))

    def sketch(self, embedding, *arrays):
        drawn = _drawn(embedding)
        sums: Any = None
        for start, rows, slices in self._dense_chunks(arrays):
            parts = _chunk_sketch(embedding, [rows, *slices], drawn, start)
            sums = _added(sums, parts)
        return [jnp.asarray(total, self.dtype) for total in sums]

    def sum_rows(self, function, *args, along=()):
        sums: Any = None
        for _, rows, slices in self._dense_chunks(along):
            sums = _added(sums, _chunk_sum(rows, slices, args, function))
        return jax.tree.map(lambda total: jnp.asarray(total, self.dtype), sums)

    def gram_products(self, basis, scale):
        """Computes `RowMatrix.gram_products`. Sparse blocks are multiplied by SciPy.

        Raises:
          ValueError: If a product overflows.
        """
        sums: Any = None
        for chunk in self._chunks:
            if is_sparse(chunk.rows):
                image = _sparse_gram_products(chunk.rows, np.asarray(scale), basis)
            else:
                image = _chunk_sum(
                    chunk.rows, (), (scale, basis), gram_products_of_block
                )
            if not np.isfinite(np.asarray(image)).all():
                raise ValueError(
                    "blocks must not contain rows far larger than the first rows; got "
                    f"overflow in products of the rows from {chunk.start} on. Scale "
                    "these rows, or put them into the first block"
                )
            sums = _added(sums, image)
        return jnp.asarray(sums, self.dtype)

    def row_norms(self, basis, scale):
        basis = np.asarray(basis)
        scale = np.asarray(scale)
        norms = []
        for chunk in self._chunks:
            if is_sparse(chunk.rows):
                images = chunk.rows @ (scale * basis.T).T
            else:
                images = (chunk.rows * scale) @ basis
            norms_of_chunk = np.sum(images**2, axis=1)
            norms.append(norms_of_chunk[: chunk.size])
        return np.concatenate(norms)

    def column_maxima(self):
        """Returns the largest absolute value in the first chunk, for every column."""
        return jnp.full(self.shape[1], self._chunks.largest)

    def triangle(self):
        # The target is a view of a single zero: one zero per row may not fit in memory.
        zeros = np.broadcast_to(np.zeros((), self.dtype), self.shape[:1])
        triangle, _, _ = self.triangle_and_products(zeros)
        return triangle

    def triangle_and_products(
        self, target: Array | np.ndarray
    ) -> tuple[Array, Array, Array]:
        """Computes R of X = QR, Xᵀy and ‖y‖² in one pass, for targets y.

        X is this matrix. The factor R is triangular.
        """
        num_columns = self.shape[1]
        sums: Any = None
        # Stacked factors R of the chunks read so far. To bound memory, a QR
        # factorisation reduces a stack of more than 2p rows to p rows.
        factors = np.zeros((0, num_columns))
        for _, rows, slices in self._dense_chunks((target,)):
            [target_rows] = slices
            factor, products = _chunk_products(rows, target_rows)
            sums = _added(sums, products)
            factors = np.concatenate([factors, np.asarray(factor, float)])
            if len(factors) > 2 * num_columns:
                factors = np.linalg.qr(factors, mode="r")
        triangle = jnp.asarray(np.linalg.qr(factors, mode="r"), self.dtype)
        gradient, squared = (jnp.asarray(total, self.dtype) for total in sums)
        return triangle, gradient, squared

    def _dense_chunks(
        self, along: Iterable[Array | np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray, list[np.ndarray]]]:
        """Yields (start, dense rows, the same rows of each array) for each chunk.

        `start` is the index of the first row of the chunk.
        """
        for start, rows, size in self._chunks:
            slices = []
            for array in along:
                part = np.zeros((rows.shape[0], *array.shape[1:]), array.dtype)
                part[:size] = array[start : start + size]
                slices.append(part)
            yield start, rows.toarray() if is_sparse(rows) else rows, slices


def _rmv_of_block(block: Array, vector: Array) -> Array:
    return transposed_product(block, vector)


def _added(sums: Any, parts: Any) -> Any:
    """Adds the pytree `parts` to `sums` in float64; `sums=None` stands for zeros."""
    parts = jax.tree.map(lambda part: np.asarray(part, float), parts)
    return parts if sums is None else jax.tree.map(np.add, sums, parts)


@functools.partial(jax.jit, static_argnames="function")
def _chunk_sum(
    rows: Array,
    slices: Iterable[Array],
    args: tuple[Any, ...],
    function: Callable[..., T],
) -> T:
    return Dense(rows).sum_rows(function, *args, along=tuple(slices))


@jax.jit
def _chunk_products(rows: Array, target: Array) -> tuple[Array, tuple[Array, Array]]:
    """Computes R with RᵀR = XᵀX, Xᵀy and ‖y‖² for rows X and targets y of a chunk.

    Returns (R, (Xᵀy, ‖y‖²)). R is square but not triangular. It is computed from Gram
    matrices, which are far faster than QR and as accurate.
    """
    matrix = Dense(rows)
    factors = factors_of(matrix, None, 0.0)
    vectors = factors.vectors / factors.scale[:, None]
    factor = factors.singular_values[:, None] * vectors.T
    # For a zero column of X, the same column of R holds rounding errors. Set them to 0.
    factor = jnp.where(jnp.any(rows != 0, axis=0), factor, 0)
    gradient = matrix.sum_rows(_rmv_of_block, along=(target,))
    return factor, (gradient, jnp.sum(target**2, axis=0))


@jax.jit
def _drawn(embedding: "Embedding") -> tuple[Array, Array]:
    return embedding.draw()


@jax.jit
def _chunk_sketch(
    embedding: "Embedding",
    arrays: list[Array],
    drawn: tuple[Array, Array],
    start: Array,
) -> list[Array]:
    return embedding.apply_to_part(arrays, drawn, start)


def _sparse_gram_products(rows: Any, scale: np.ndarray, basis: Array) -> np.ndarray:
    """Computes `gram_products_of_block` for sparse rows, by SciPy in several threads.

    Time is linear in the number of entries.
    """
    scaled_basis = np.asarray(basis) * scale

    def products_of_part(start: int) -> np.ndarray:
        part = some_rows(rows, start, start + SPARSE_ROWS)
        with np.errstate(over="ignore", invalid="ignore"):
            images = part @ scaled_basis
            return np.concatenate([(part.T @ images) * scale, images.T @ images])

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        starts = range(0, rows.shape[0], SPARSE_ROWS)
        products = list(threads.map(products_of_part, starts))
    return np.sum(products, axis=0, dtype=np.float64)
