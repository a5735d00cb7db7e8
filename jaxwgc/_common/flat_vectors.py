"""Conversion between pytrees and flat vectors, and blocks of flat vectors."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._common import arrays


def ravel(tree: Any, num_batch_axes: int = 0) -> jax.Array:
    """Concatenates the leaves of a pytree into a flat real vector.

    The result is real, (*batch, size). The dtype is the widest of the leaves, at
    least float32, so that gradients in bfloat16 or float16 are coded in float32. A
    complex leaf gives its real parts, then its imaginary parts.
    """
    rows = []
    for leaf in jax.tree.leaves(tree):
        array = arrays.promoted(leaf)
        batch = array.shape[:num_batch_axes]
        row = array.reshape(*batch, math.prod(array.shape[num_batch_axes:]))
        if jnp.iscomplexobj(row):
            rows.append(row.real)
            rows.append(row.imag)
        else:
            rows.append(row)
    return jnp.concatenate(rows, axis=-1)


def unravel(flat: jax.Array, like: Any) -> Any:
    """Splits a flat vector into a pytree with the shapes and dtypes of `like`.

    Inverts `ravel`.
    """
    leaves, structure = jax.tree.flatten(like)
    dtypes = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(structure, _cut(flat, tuple(shapes), tuple(dtypes)))


@functools.partial(jax.jit, static_argnames=("shapes", "dtypes"))
def _cut(
    flat: jax.Array, shapes: tuple[tuple[int, ...], ...], dtypes: tuple[np.dtype, ...]
) -> list[jax.Array]:
    """Splits a flat vector into leaves with the given shapes and dtypes."""
    batch = flat.shape[:-1]
    unraveled = []
    start = 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        size = math.prod(shape)
        row = flat[..., start : start + size]
        start += size
        if jnp.issubdtype(dtype, jnp.complexfloating):
            row = jax.lax.complex(row, flat[..., start : start + size])
            start += size
        unraveled.append(row.reshape(*batch, *shape).astype(dtype))
    return unraveled


def raveled_size(like: Any) -> int:
    """Returns the length of the flat vector into which `ravel` turns a pytree."""
    size = 0
    for leaf in jax.tree.leaves(like):
        numbers_per_entry = 2 if jnp.iscomplexobj(leaf) else 1
        size += numbers_per_entry * math.prod(leaf.shape)
    return size


def blocks(flat: jax.Array, count: int) -> jax.Array:
    """Splits a flat vector into `count` equal blocks, the last padded with zeros.

    Reshapes (..., size) to (..., count, ceil(size / count)).
    """
    size = flat.shape[-1]
    length = -(-size // count)
    if size % count:
        no_padding = [(0, 0)] * (flat.ndim - 1)
        flat = jnp.pad(flat, [*no_padding, (0, count * length - size)])
    return flat.reshape(*flat.shape[:-1], count, length)


def real_form(matrix: Any) -> Any:
    """Returns a complex matrix as a real one, for vectors of real and imaginary parts.

    The real form is (..., n, 2, k, 2). On the CPU real products are several times
    faster than complex ones.
    """
    xp = arrays.array_module(matrix)
    first = xp.stack([matrix.real, -matrix.imag], axis=-1)
    second = xp.stack([matrix.imag, matrix.real], axis=-1)
    return xp.stack([first, second], axis=-3)
