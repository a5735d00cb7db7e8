"""Arrays on one device."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxwgc._common.arrays import product
from jaxwgc._common.pytrees import register
from jaxwgc.sketching._linalg.matrix import QRMatrix, Triangle
from jaxwgc.sketching._linalg.rows import (
    block_size,
    column_scale,
    transposed_product,
    triangle,
)

T = TypeVar("T")


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Dense(QRMatrix):
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

    def triangle(self, root_ridge):
        scale = column_scale(self.column_maxima(), root_ridge)
        return Triangle(triangle(self.array * scale), scale)

    def triangle_and_products(self, target, root_ridge):
        squared = jnp.sum(target**2, axis=0)
        return self.triangle(root_ridge), self.rmv(jnp.asarray(target)), squared
