"""What the least-squares solvers ask of X and y in every iteration."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxwgc.sketching._arithmetic import matmul
from jaxwgc.sketching._row_blocks import block_size


def residual_products(
    matrix: jax.Array, target: jax.Array, solution: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Xᵀr and rᵀr of r = y - Xθ, in one pass over the memory of X."""
    size = block_size(*matrix.shape)
    num_blocks = matrix.shape[0] // size

    def products(rows: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        residual = target - matmul(rows, solution)
        return matmul(residual, rows), jnp.sum(residual**2)

    def add(i: jax.Array, total: tuple[jax.Array, jax.Array]):
        rows = lax.dynamic_slice_in_dim(matrix, i * size, size)
        block = products(rows, lax.dynamic_slice_in_dim(target, i * size, size))
        return jax.tree.map(jnp.add, total, block)

    rest = products(matrix[num_blocks * size :], target[num_blocks * size :])
    return lax.fori_loop(0, num_blocks, add, rest)
