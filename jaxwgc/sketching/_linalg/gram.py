"""Gram matrices, and scales that equalise columns."""

import jax.numpy as jnp
from jax import Array

from jaxwgc._arrays import inverse_power_of_two, product
from jaxwgc.sketching._linalg.rows import Rows


def gram(rows: Array) -> Array:
    """Computes the Gram matrix of the columns; symmetry saves a quarter of the work."""
    half = rows.shape[1] // 2
    if half < 32:
        return product(rows.T, rows)
    upper = product(rows[:, :half].T, rows)
    corner = product(rows[:, half:].T, rows[:, half:])
    lower = jnp.concatenate([upper[:, half:].T, corner], axis=1)
    return jnp.concatenate([upper, lower], axis=0)


def scaled_gram(block: Array, scale: Array) -> Array:
    """Returns the Gram matrix of a block with scaled columns."""
    return gram(block * scale)


def column_scale(rows: Rows, root: Array | None = None) -> tuple[Array, Array]:
    """Returns whether X seems to be finite, and a power of two for every column.

    Scales avoid overflow of squares. Powers of two are exact. A maximum may lose a NaN
    (on CPUs it does); sums over columns of scaled entries do not.
    """
    if rows.is_on_host:
        # Only QR factorisations are computed here, and they need no scales.
        return jnp.bool_(True), jnp.ones(rows.shape[1], rows.dtype)
    largest = rows.largest()
    if root is not None:
        largest = jnp.maximum(largest, root)
    finite = jnp.isfinite(largest).all()
    # A column of zeros counts as small: for a large one, rounding would count.
    is_there = largest > 0
    least = jnp.min(largest, initial=jnp.max(largest), where=is_there)
    largest = jnp.where(is_there, largest, least)
    return finite, jnp.where(finite, inverse_power_of_two(largest), 0)
