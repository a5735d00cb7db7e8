"""Abstract base classes of the kinds of matrices."""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

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
    """Products of a matrix with the residual at a point and with a direction.

    The residual is r = y - Xθ, and d is the direction.

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
    """A real matrix of any kind.

    The matrix X has shape (N, p). Each kind of matrix is a subclass and a pytree:
    `Dense`, `Sparse`, `Sharded`, `BlockMatrix` and `Operator`. Arrays with N rows
    are global arrays for every kind.
    """

    # Whether X is read from outside of JAX, such as from a disk, once per product.
    # Functions of such a matrix run on the host and have no derivatives.
    is_streamed = False

    # How error messages call this kind of matrix.
    description: ClassVar[str]

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Returns the numbers of rows and columns."""

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Returns the dtype of the matrix and of its products."""

    @abc.abstractmethod
    def mv(self, vector: Array) -> Array:
        """Multiplies vectors by the matrix."""

    @abc.abstractmethod
    def rmv(self, vector: Array) -> Array:
        """Multiplies vectors by the transposed matrix."""

    @abc.abstractmethod
    def sketch(self, embedding: "Embedding", *arrays: Array) -> list[Array]:
        """Multiplies the matrix, and arrays of as many rows, by an embedding."""

    def line_products(
        self, target: Array, solution: Array, direction: Array
    ) -> LineProducts:
        """Computes products with the residual at a point and with a direction."""
        residual = target - self.mv(solution)
        moved = self.mv(direction)
        return LineProducts(
            gradient=self.rmv(residual),
            squared=jnp.sum(residual**2, axis=0),
            image=self.rmv(moved),
            curvature=jnp.sum(moved**2, axis=0),
        )


class RowMatrix(Matrix):
    """A matrix with access to its rows, in blocks."""

    @abc.abstractmethod
    def sum_rows(
        self, function: Callable[..., T], *args: Any, along: tuple[Array, ...] = ()
    ) -> T:
        """Sums a function of blocks of rows over all blocks.

        Args:
          function: Returns a pytree of arrays. It is a function at the top level of a
            module, so that streamed chunks share its compiled program. Blocks may be
            padded with rows of zeros.
          args: Pytrees of arrays.
          along: Arrays with N rows, of which `slices` are the rows of the block.
        """

    @abc.abstractmethod
    def row_norms(self, basis: Array, scale: Array) -> Array | np.ndarray:
        """Computes squared row norms of the scaled matrix times another one.

        For a streamed matrix, they are a NumPy array.
        """

    @abc.abstractmethod
    def row_scaled(self, factors: Array) -> "RowMatrix":
        """Returns the matrix with each row multiplied by a factor."""

    @abc.abstractmethod
    def column_maxima(self) -> Array:
        """Computes the largest absolute value in each column.

        For a streamed matrix, they are estimates from its first rows.
        """

    def gram_products(self, basis: Array, scale: Array) -> Array:
        """Computes products of the Gram matrix of scaled columns with given columns.

        Returns ZᵀZQ stacked on (ZQ)ᵀZQ for Z = X diag(scale), (p + l, l).
        """
        return self.sum_rows(gram_products_of_block, scale, basis)

    def line_products(
        self, target: Array, solution: Array, direction: Array
    ) -> LineProducts:
        return self.sum_rows(
            _line_products_of_block, solution, direction, along=(target,)
        )

    def triangle(self) -> Array:
        """Computes the triangular factor of a QR decomposition.

        Sparse and sharded matrices have no QR factorisation, only a Gram matrix.
        """
        raise NotImplementedError

    @property
    def is_wide(self) -> bool:
        """Returns whether a matrix that is not streamed has more columns than rows."""
        num_rows, num_columns = self.shape
        return num_rows < num_columns and not self.is_streamed


def gram_of_block(block: Array, scale: Array, basis: Array | None = None) -> Array:
    """Computes the contribution of one block of rows to the Gram matrix."""
    rows = block * scale
    return gram(rows if basis is None else product(rows, basis))


def gram_products_of_block(block: Array, scale: Array, basis: Array) -> Array:
    """Computes the contribution of one block of rows to `RowMatrix.gram_products`."""
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
    """A matrix that is an array on one device."""

    description = "an array on one device"

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
        """Returns the matrix with scaled columns."""
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
        """Computes one number per row, by a function of blocks of rows."""
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
