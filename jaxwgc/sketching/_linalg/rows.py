"""Access to the rows of a matrix: dense, sparse, sharded or in blocks."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxwgc._arrays import product
from jaxwgc._pytrees import Static, register

# Entries per block, about 4 MiB in float64, so that a block and its product stay in a
# cache. Sums over rows are taken in two levels, which keeps their rounding small.
_BLOCK_ENTRIES = 2**19
_MIN_ROWS = 256
_MAX_ROWS = 8192
# Least number of rows per block of a QR factorisation.
_MIN_QR_ROWS = 256


class Products:
    """A matrix X (N, p) that supports products with vectors.

    Subclasses define `times(v)`, Xv for v (p,) or (p, c), and `transposed_times(u)`,
    Xᵀu for u (N,) or (N, c).
    """

    times: Callable[[Array], Array]
    transposed_times: Callable[[Array], Array]

    shape: Any
    dtype: Any
    # Whether computations run op by op, with control flow in Python.
    is_on_host = False

    def residual_products(
        self, target: Array, solution: Array, direction: Array
    ) -> tuple[Array, ...]:
        """Computes Xᵀr, rᵀr, XᵀXd and dᵀXᵀXd for r = y - Xθ, in one pass over X."""
        residual = target - self.times(solution)
        moved = self.times(direction)
        squares = jnp.sum(residual**2, axis=0), jnp.sum(moved**2, axis=0)
        gradient, image = map(self.transposed_times, (residual, moved))
        return gradient, squares[0], image, squares[1]

    def length(self, vector: Array) -> Array:
        """Returns ‖Xv‖."""
        return jnp.sqrt(self.total(jnp.sum(self.times(vector) ** 2, axis=0)))

    def total(self, value: Array) -> Array:
        """Returns the sum of a value over all devices."""
        return value

    def maximum(self, value: Array) -> Array:
        """Returns the maximum of a value over all devices."""
        return value

    def while_loop(
        self, is_open: Callable[[Any], Any], step: Callable[[Any], Any], state: Any
    ) -> Any:
        """Runs a loop in which steps may read rows."""
        return lax.while_loop(is_open, step, state)


class Rows(Products):
    """A matrix that is read by blocks of rows.

    Subclasses define

    - `sum(function, *args, along=())`, the sum of a pytree of arrays, `function(block,
      *slices, *args)`, over blocks, which may be padded with zero rows; `slices` are
      the matching rows of the arrays `along`;
    - `map(function, *args)`, the numbers (N,) that `function(block, *args)` returns,
      one per row, except for `Blocks`;
    - `sketch(embedding, *along)`, a list of S X and of S times arrays with N rows;
    - `largest()`, the largest absolute value in each column, (p,);
    - `triangle(scale)`, R of the QR factorisation of X diag(scale), except for sparse
      matrices.

    Define functions at the top level of a module, so that blocks on the host share
    compiled programs.
    """

    sum: Callable[..., Any]
    map: Callable[..., Any]
    sketch: Callable[..., list[Array]]
    largest: Callable[[], Array]
    triangle: Callable[..., Array]

    @property
    def is_wide(self) -> bool:
        """Returns whether to decompose XXᵀ instead of XᵀX."""
        return self.shape[0] < self.shape[1] and not self.is_on_host

    def residual_products(self, target, solution, direction):
        return self.sum(_residual_products, solution, direction, along=(target,))

    def norms_of(self, basis: Array, scale: Array) -> Any:
        """Computes the squared row norms of X diag(scale) Q."""
        return self.map(row_squares, scale, basis)

    def products(self, basis: Array, scale: Array) -> Array:
        """Computes X'ᵀX'Q stacked on (X'Q)ᵀX'Q for X' = X `scale`, (p + l, l)."""
        return self.sum(image_of, scale, basis)


def _residual_products(
    block: Array, target: Array, solution: Array, direction: Array
) -> tuple[Array, ...]:
    # Two products with vectors are faster on CPUs than one with a matrix of both.
    return Products.residual_products(DenseRows(block), target, solution, direction)


def row_squares(block: Array, scale: Array, basis: Array) -> Array:
    """Returns the squared row norms of a block times diag(scale) Q."""
    return jnp.sum(product(block * scale, basis) ** 2, axis=1)


def image_of(block: Array, scale: Array, basis: Array) -> Array:
    """Computes the term of one block in `Rows.products`."""
    block = block * scale
    rows = product(block, basis)
    return jnp.concatenate([product(block.T, rows), product(rows.T, rows)])


@register
@dataclasses.dataclass(frozen=True, eq=False)
class DenseRows(Rows):
    """The rows of an array."""

    matrix: Array

    @property
    def shape(self) -> Any:
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    @property
    def T(self) -> Any:
        """Returns the rows of the transposed matrix."""
        return DenseRows(self.matrix.T)

    def scaled(self, scale: Array) -> Any:
        """Returns X diag(scale)."""
        return DenseRows(self.matrix * scale)

    def largest(self):
        return jnp.abs(lax.stop_gradient(self.matrix)).max(axis=0)

    def sum(self, function, *args, along=()):
        arrays = [self.matrix, *along]
        size = block_size(*self.shape)
        num_blocks, num_left = divmod(self.shape[0], size)
        if num_blocks == 1 and not num_left:
            return function(*arrays, *args)

        def add(i: Array, total: Any) -> Any:
            rows = (lax.dynamic_slice_in_dim(array, i * size, size) for array in arrays)
            return jax.tree.map(jnp.add, total, function(*rows, *args))

        last = function(*(array[num_blocks * size :] for array in arrays), *args)
        return lax.fori_loop(0, num_blocks, add, last)

    def map(self, function, *args):
        num_rows = self.shape[0]
        size = block_size(*self.shape)
        num_blocks = -(-num_rows // size)
        if num_blocks == 1:
            return function(self.matrix, *args)

        def fill(i: Array, values: Array) -> Array:
            # The last block starts early enough to be full, and repeats some rows.
            start = jnp.minimum(i * size, num_rows - size)
            block = lax.dynamic_slice_in_dim(self.matrix, start, size)
            block = function(block, *args)
            return lax.dynamic_update_slice_in_dim(values, block, start, 0)

        return lax.fori_loop(0, num_blocks, fill, jnp.zeros(num_rows, self.dtype))

    def sketch(self, embedding, *along):
        return embedding @ [self.matrix, *along]

    def triangle(self, scale):
        return triangle(self.matrix * scale)

    def times(self, vector):
        return product(self.matrix, vector)

    def transposed_times(self, vector):
        return product(self.matrix.T, vector)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class ShardedRows(DenseRows):
    """The rows of one device, inside `jax.shard_map`; sums are over all devices."""

    axes: Static[Any]

    @property
    def is_wide(self) -> bool:
        return False

    def largest(self):
        return self.maximum(super().largest())

    def sum(self, function, *args, along=()):
        return self.total(super().sum(function, *args, along=along))

    def sketch(self, embedding, *along):
        start = lax.axis_index(self.axes) * self.shape[0]
        arrays = [self.matrix, *along]
        drawn = embedding._draw()
        return self.total(embedding._apply_to_part(arrays, drawn, start))

    def triangle(self, scale):
        own = super().triangle(scale)
        return triangle(lax.all_gather(own, self.axes, tiled=True))

    def transposed_times(self, vector):
        return self.total(super().transposed_times(vector))

    def total(self, value):
        return lax.psum(value, self.axes)

    def maximum(self, value):
        return lax.pmax(value, self.axes)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class SparseRows(Rows):
    """The entries of a sparse matrix, sorted by rows; duplicates are summed.

    Products with vectors take time proportional to the entries. On CPUs, segment sums
    are three times as fast as products with BCOO. Blocks of rows are densified one at a
    time.

    Attributes:
      row, column, data: The entries, padded with zeros beyond the last row.
      starts: The index of the first entry of each block of rows, and the number of
        entries.
    """

    row: Array
    column: Array
    data: Array
    starts: Array
    window: Static[int]
    shape: Static[tuple[int, int]]

    @classmethod
    def of(cls, matrix: Any) -> Self:
        """Returns the rows of a BCOO, without entries out of bounds (padding)."""
        # Indices become unsigned, so that negative ones are out of bounds, too.
        entries = *matrix.indices.T.astype(jnp.uint32), matrix.data
        return cls._of_entries(entries, matrix.shape, matrix.indices_sorted)

    @classmethod
    def _of_entries(cls, entries: Any, shape: Any, is_sorted: bool = False) -> Self:
        row, column, data = entries
        num_rows, num_columns = shape
        is_inside = (row < num_rows) & (column < num_columns)
        data = jnp.where(is_inside, data, 0)
        column = jnp.where(is_inside, column, 0)
        if not is_sorted:
            row, column, data = lax.sort((row, column, data), num_keys=1)
        size = block_size(num_rows, num_columns)
        num_blocks = -(-num_rows // size)
        firsts = size * jnp.arange(num_blocks + 1, dtype=jnp.uint32)
        starts = jnp.searchsorted(row, firsts)
        # Entries are read in windows of one size, about the entries of an average
        # block.
        window = max(256, -(-data.shape[0] // num_blocks))
        row = jnp.pad(row, (0, window), constant_values=np.uint32(2**32 - 1))
        column, data = (jnp.pad(part, (0, window)) for part in (column, data))
        return cls(row, column, data, starts, window, (num_rows, num_columns))

    @property
    def T(self) -> Self:
        """Returns the rows of the transposed matrix."""
        entries = self.column, self.row, self.data
        return self._of_entries(entries, self.shape[::-1])

    def scaled(self, scale: Array) -> Self:
        """Returns X diag(scale)."""
        return dataclasses.replace(self, data=self.data * scale[self.column])

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def largest(self):
        values = jnp.abs(lax.stop_gradient(self.data))
        return jnp.zeros(self.shape[1], self.dtype).at[self.column].max(values)

    def sum(self, function, *args, along=()):
        size = block_size(*self.shape)
        num_blocks = len(self.starts) - 1
        padding = num_blocks * size - self.shape[0]
        along = [jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) for a in along]

        def part(i: Any) -> Any:
            slices = [lax.dynamic_slice_in_dim(a, i * size, size) for a in along]
            return function(self._block(i), *slices, *args)

        def add(i: Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, part(i))

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, 0))
        return lax.fori_loop(0, num_blocks, add, zeros)

    def map(self, function, *args):
        indices = jnp.arange(len(self.starts) - 1)
        values = lax.map(lambda i: function(self._block(i), *args), indices)
        return values.reshape(-1)[: self.shape[0]]

    def sketch(self, embedding, *along):
        entries = self.row, self.column, self.data
        small = embedding._apply_to_entries(entries, self.shape)
        return [small, *(embedding @ array for array in along)]

    def times(self, vector):
        moved = scaled(self.data, vector[self.column])
        return jax.ops.segment_sum(moved, self.row, self.shape[0])

    def transposed_times(self, vector):
        moved = vector.at[self.row].get(mode="fill", fill_value=0)
        moved = scaled(self.data, moved)
        return jax.ops.segment_sum(moved, self.column, self.shape[1])

    def column_squares(self, scale: Array) -> Array:
        """Returns the squared norms of the columns of X diag(scale)."""
        squares = (self.data * scale[self.column]) ** 2
        return jax.ops.segment_sum(squares, self.column, self.shape[1])

    residual_products = Products.residual_products

    def _block(self, i: ArrayLike) -> Array:
        """Returns block i of rows, densified, with zero rows at the end."""
        size = block_size(*self.shape)
        first = jnp.asarray(i * size, jnp.uint32)
        end = self.starts[i + 1]

        def add(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            start, block = carry
            entries = self.row, self.column, self.data
            row, column, data = (
                lax.dynamic_slice_in_dim(part, start, self.window) for part in entries
            )
            # Entries of later blocks are dropped.
            row = jnp.where(row < first + size, row - first, size)
            block = block.at[row, column].add(data, mode="drop")
            return start + self.window, block

        block = jnp.zeros((size, self.shape[1]), self.dtype)
        start = self.starts[i], block
        return lax.while_loop(lambda carry: carry[0] < end, add, start)[1]


def sum_with_ridge(
    rows: Rows, root: Array | None, function: Callable[..., Any], *args: Any
) -> Any:
    """Sums `function` over the rows of X and the rows of `root` I."""
    total = rows.sum(function, *args)
    if root is None:
        return total
    added = function(ridge_rows(rows.shape[1], root), *args)
    return jax.tree.map(jnp.add, total, added)


def ridge_rows(num_columns: int, root: Array) -> Array:
    """Returns `root` I, (p, p), to stack below a matrix (N, p)."""
    return root * jnp.eye(num_columns, dtype=root.dtype)


def triangle(matrix: Array) -> Array:
    """Computes R of QR, block by block if there are many rows.

    The rounding of one long sum over all rows would hide small singular values.
    """
    num_rows, num_columns = matrix.shape
    size = max(_MIN_QR_ROWS, 4 * num_columns)
    num_blocks = num_rows // size
    if num_blocks < 2:
        return jnp.linalg.qr(matrix, mode="r")
    blocks = matrix[: num_blocks * size].reshape(num_blocks, size, num_columns)
    triangles = jnp.linalg.qr(blocks, mode="r").reshape(-1, num_columns)
    return triangle(jnp.concatenate([triangles, matrix[num_blocks * size :]]))


def block_size(num_rows: int, num_columns: int) -> int:
    """Returns the number of rows per block."""
    size = max(_MIN_ROWS, min(_MAX_ROWS, _BLOCK_ENTRIES // num_columns))
    return min(num_rows, size)


def scaled(factors: Array, vectors: Array) -> Array:
    """Returns vectors (n,) or (n, c) times factors (n,)."""
    return (factors * vectors.T).T


def safe(value: Array) -> Array:
    """Replaces values that are not positive by 1, for divisions."""
    return jnp.where(value > 0, value, 1)


def constant(rows: Any) -> Any:
    """Returns rows that are constants to `jax.grad`."""
    return rows if rows.is_on_host else jax.tree.map(lax.stop_gradient, rows)
