"""What the least-squares solvers ask of X and y in every iteration."""

import jax
import jax.numpy as jnp

from jaxwgc._product import product
from jaxwgc.sketching._row_blocks import sum_over_blocks


def residual_products(
    matrix: jax.Array, target: jax.Array, solution: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Xᵀr and rᵀr of r = y - Xθ, in one pass over the memory of X."""

    def products(rows: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        residual = target - product(rows, solution)
        return product(residual, rows), jnp.sum(residual**2)

    return sum_over_blocks(products, matrix, target)
