"""The abstract classes of matrices, of which solvers and scores are functions."""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc._common.pytrees import register
from jaxwgc.sketching._linalg.rows import (
    block_size,
    gram,
    transposed_product,
    triangle,
)

if TYPE_CHECKING:
    from jaxwgc.sketching._embeddings._embedding import Embedding

T = TypeVar("T")


class LineProducts(NamedTuple):
    """Products with X of a residual r = y - Xθ and of a direction d.

    Attributes:
      gradient: Xᵀr, (p,) or (p, c).
      squared: ‖r‖², () or (c,).
      image: XᵀXd, (p,) or (p, c).
      curvature: ‖Xd‖², () or (c,).
    """

    gradient: Array
    squared: Array
    image: Array
    curvature: Array


class Matrix(abc.ABC):
    """A real matrix X of shape (N, p).

    Each kind of matrix is a subclass and a pytree: `Dense`, `Sparse`, `Sharded`,
    `BlockMatrix` and `Operator`. Arrays with N rows are global arrays for every kind.
    """

    # Whether X is read from outside of JAX, such as from a disk, once per product.
    # Functions of such a matrix run on the host and have no derivatives.
    is_streamed = False

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Returns (N, p)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Returns the dtype of X and of its products."""

    @abc.abstractmethod
    def mv(self, vector: Array) -> Array:
        """Computes Xv for v (p,) or (p, c)."""

    @abc.abstractmethod
    def rmv(self, vector: Array) -> Array:
        """Computes Xᵀu for u (N,) or (N, c)."""

    @abc.abstractmethod
    def sketch(self, embedding: "Embedding", *arrays: Array) -> list[Array]:
        """Computes S X, and S times arrays with N rows, for an embedding S (m, N)."""

    def line_products(
        self, target: Array, solution: Array, direction: Array
    ) -> LineProducts:
        """Computes `LineProducts` for y (N,) or (N, c), θ and d, in one pass over X."""
        residual = target - self.mv(solution)
        moved = self.mv(direction)
        return LineProducts(
            gradient=self.rmv(residual),
            squared=jnp.sum(residual**2, axis=0),
            image=self.rmv(moved),
            curvature=jnp.sum(moved**2, axis=0),
        )


class RowMatrix(Matrix):
    """A matrix that is read by blocks of rows."""

    @abc.abstractmethod
    def sum_rows(
        self, function: Callable[..., T], *args: Any, along: tuple[Array, ...] = ()
    ) -> T:
        """Sums `function(block, *slices, *args)` over blocks of rows.

        Args:
          function: Returns a pytree of arrays. It is a function at the top level of a
            module, so that streamed chunks share its compiled program. Blocks may be
            padded with rows of zeros.
          args: Pytrees of arrays.
          along: Arrays with N rows, of which `slices` are the rows of the block.
        """

    @abc.abstractmethod
    def row_norms(self, basis: Array, scale: Array) -> Array | np.ndarray:
        """Computes the squared row norms (N,) of X diag(scale) Q for Q (p, l).

        For a streamed matrix, they are a NumPy array.
        """

    @abc.abstractmethod
    def row_scaled(self, factors: Array) -> "RowMatrix":
        """Returns diag(factors) X for factors (N,)."""

    @abc.abstractmethod
    def column_maxima(self) -> Array:
        """Computes the largest absolute value in each column, (p,).

        For a streamed matrix, they are estimates from its first rows.
        """

    def gram_products(self, basis: Array, scale: Array) -> Array:
        """Computes ZᵀZQ stacked on (ZQ)ᵀZQ for Z = X diag(scale), (p + l, l)."""
        return self.sum_rows(gram_products_of_block, scale, basis)

    def line_products(
        self, target: Array, solution: Array, direction: Array
    ) -> LineProducts:
        return self.sum_rows(
            _line_products_of_block, solution, direction, along=(target,)
        )

    def triangle(self) -> Array:
        """Computes R of X = QR, at most (p, p).

        Sparse and sharded matrices have no QR factorisation, only a Gram matrix.
        """
        raise NotImplementedError

    @property
    def is_wide(self) -> bool:
        """Returns whether to decompose XXᵀ instead of XᵀX."""
        num_rows, num_columns = self.shape
        return num_rows < num_columns and not self.is_streamed


def gram_of_block(block: Array, scale: Array, basis: Array | None = None) -> Array:
    """Computes the term of one block in the Gram matrix of X diag(scale) Q."""
    rows = block * scale
    return gram(rows if basis is None else product(rows, basis))


def gram_products_of_block(block: Array, scale: Array, basis: Array) -> Array:
    """Computes the term of one block in `RowMatrix.gram_products`."""
    scaled_block = block * scale
    image = product(scaled_block, basis)
    return jnp.concatenate([product(scaled_block.T, image), product(image.T, image)])


def _line_products_of_block(
    block: Array, target: Array, solution: Array, direction: Array
) -> LineProducts:
    # Two products with vectors are faster on CPUs than one with a matrix of both.
    residual = target - product(block, solution)
    moved = product(block, direction)
    return LineProducts(
        gradient=transposed_product(block, residual),
        squared=jnp.sum(residual**2, axis=0),
        image=transposed_product(block, moved),
        curvature=jnp.sum(moved**2, axis=0),
    )


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Dense(RowMatrix):
    """An array (N, p) on one device."""

    array: Array

    @property
    def shape(self):
        num_rows, num_columns = self.array.shape
        return num_rows, num_columns

    @property
    def dtype(self):
        return self.array.dtype

    @property
    def T(self) -> "Dense":
        """Returns the transposed matrix."""
        return Dense(self.array.T)

    def scaled(self, scale: Array) -> "Dense":
        """Returns X diag(scale)."""
        return Dense(self.array * scale)

    def row_scaled(self, factors):
        return Dense(self.array * factors[:, None])

    def mv(self, vector):
        return product(self.array, vector)

    def rmv(self, vector):
        return transposed_product(self.array, vector)

    def sketch(self, embedding, *arrays):
        return embedding @ [self.array, *arrays]

    def sum_rows(self, function, *args, along=()):
        arrays = [self.array, *along]
        size = block_size(*self.array.shape)
        num_blocks, num_left = divmod(len(self.array), size)
        if num_blocks == 1 and not num_left:
            return function(*arrays, *args)

        def add(i: Array, total: T) -> T:
            slices = [
                lax.dynamic_slice_in_dim(array, i * size, size) for array in arrays
            ]
            return jax.tree.map(jnp.add, total, function(*slices, *args))

        last_slices = [array[num_blocks * size :] for array in arrays]
        return lax.fori_loop(0, num_blocks, add, function(*last_slices, *args))

    def map_rows(self, function: Callable[[Array], Array]) -> Array:
        """Applies `function` to blocks of rows; it returns one number per row."""
        num_rows = len(self.array)
        size = block_size(*self.array.shape)
        num_blocks = -(-num_rows // size)
        if num_blocks == 1:
            return function(self.array)

        def fill(i: Array, values: Array) -> Array:
            # The last block starts early enough to be full, and repeats some rows.
            start = jnp.minimum(i * size, num_rows - size)
            block = function(lax.dynamic_slice_in_dim(self.array, start, size))
            return lax.dynamic_update_slice_in_dim(values, block, start, 0)

        return lax.fori_loop(0, num_blocks, fill, jnp.zeros(num_rows, self.dtype))

    def row_norms(self, basis, scale):
        def norms_of(block: Array) -> Array:
            return jnp.sum(product(block * scale, basis) ** 2, axis=1)

        return self.map_rows(norms_of)

    def column_maxima(self):
        return jnp.abs(lax.stop_gradient(self.array)).max(axis=0)

    def triangle(self):
        return triangle(self.array)
