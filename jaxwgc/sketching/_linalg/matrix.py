"""Abstract base classes of all kinds of matrices, and dense matrices."""

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
    """Products of a matrix with a residual and with a search direction.

    X is the matrix, r = y - Xθ is the residual at θ, and d is the search direction.

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
    """Abstract base class of all kinds of real matrices.

    The matrix X has shape (N, p). Each kind of matrix is a subclass and a pytree:
    `Dense`, `Sparse`, `Sharded`, `BlockMatrix` and `Operator`. Arrays with N rows
    are global arrays for every kind.
    """

    # Whether each product reads X anew from outside of JAX, such as from a disk.
    # Functions of a streamed matrix run on the host and have no derivatives.
    is_streamed = False

    # The name of this kind of matrix in error messages.
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
        """Returns the products of an embedding with the matrix and with each array."""

    def line_products(
        self, target: Array, solution: Array, direction: Array
    ) -> LineProducts:
        """Computes `LineProducts` for the residual at `solution` and a direction."""
        residual = target - self.mv(solution)
        moved = self.mv(direction)
        return LineProducts(
            gradient=self.rmv(residual),
            squared=jnp.sum(residual**2, axis=0),
            image=self.rmv(moved),
            curvature=jnp.sum(moved**2, axis=0),
        )


class RowMatrix(Matrix):
    """Abstract base class of matrices whose rows can be read, in blocks."""

    @abc.abstractmethod
    def sum_rows(
        self, function: Callable[..., T], *args: Any, along: tuple[Array, ...] = ()
    ) -> T:
        """Sums `function(block, *slices, *args)` over all blocks of rows.

        Args:
          function: Returns a pytree of arrays. It is a function at the top level of a
            module, so that streamed chunks share its compiled program. Blocks may be
            padded with rows of zeros.
          args: Pytrees of arrays.
          along: Arrays with N rows, of which `slices` are the rows of the block.
        """

    @abc.abstractmethod
    def row_norms(self, basis: Array, scale: Array) -> Array | np.ndarray:
        """Computes squared row norms of X diag(scale) `basis`, for this matrix X.

        For a streamed matrix, the norms are a NumPy array.
        """

    @abc.abstractmethod
    def row_scaled(self, factors: Array) -> "RowMatrix":
        """Returns the matrix with each row multiplied by its factor."""

    @abc.abstractmethod
    def column_maxima(self) -> Array:
        """Computes the largest absolute value in each column.

        For a streamed matrix, they are estimates from its first rows.
        """

    def gram_products(self, basis: Array, scale: Array) -> Array:
        """Computes ZᵀZQ, stacked on (ZQ)ᵀZQ, for the scaled matrix Z and `basis` Q.

        Z is X diag(scale). If Q has shape (p, l), the result has shape (p + l, l).
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
        """Returns whether there are more columns than rows; False if streamed."""
        num_rows, num_columns = self.shape
        return num_rows < num_columns and not self.is_streamed


def gram_of_block(block: Array, scale: Array, basis: Array | None = None) -> Array:
    """Computes the Gram matrix of (block * scale) @ basis, for one block of rows.

    The sum over all blocks is the Gram matrix of X diag(scale) `basis`.
    """
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
    # On CPUs, two products with vectors are faster than one product with two columns.
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
    """A matrix that is stored as an array on one device."""

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
        """Returns the matrix with each column multiplied by its scale."""
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
        """Returns one number per row, which `function` computes for blocks of rows."""
        num_rows = len(self.array)
        size = block_size(*self.array.shape)
        num_blocks = -(-num_rows // size)
        if num_blocks == 1:
            return function(self.array)

        def fill(i: Array, values: Array) -> Array:
            # The last block starts early enough to be full. It may repeat some rows.
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
