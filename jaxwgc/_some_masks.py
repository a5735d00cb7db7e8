"""Computations for a subset of many masks, at the cost of that subset."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap, sequential_vmap

from jaxwgc import _validation


@custom_vmap
def any_under_vmap(condition: jax.Array) -> jax.Array:
    """Reduces `condition` by `or` over every axis of an enclosing vmap.

    `lax.cond` on a condition that is mapped by vmap becomes a select, which runs both
    branches.
    """
    return condition


@any_under_vmap.def_vmap
def _any_under_vmap_rule(axis_size, in_batched, condition):
    del axis_size, in_batched
    return any_under_vmap(condition.any(axis=0)), False


def compute_if(condition: jax.Array, function: Callable[[], Any], default: Any) -> Any:
    """Returns `function()` if `condition` holds in any vmap lane, else `default`."""
    computed = jax.lax.cond(any_under_vmap(condition), function, lambda: default)
    # A second condition compiles to a smaller program than one select per array.
    return jax.lax.cond(condition, lambda: computed, lambda: default)


def in_batches(function: Callable[[jax.Array], Any], rows: jax.Array, size: int) -> Any:
    """Applies `function` to rows in batches.

    Args:
      function: Maps rows (number, c) to arrays with that leading axis.
      rows: (..., c).
      size: Maximum number of rows per batch.

    Returns:
      The arrays with leading axes (...).
    """
    *batch, length = rows.shape
    flat = rows.reshape(-1, length)
    num_batches = -(-len(flat) // size)
    if num_batches > 1:
        padded = jnp.pad(flat, [(0, num_batches * size - len(flat)), (0, 0)])
        padded = padded.reshape(num_batches, size, length)
        values = jax.lax.map(function, padded)
        values = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), values)
    else:
        values = function(flat)
    return jax.tree.map(
        lambda leaf: leaf[: len(flat)].reshape(*batch, *leaf.shape[1:]), values
    )


def masked_map(
    condition: jax.Array,
    function: Callable[..., jax.Array],
    default: jax.Array,
    mapped: tuple[jax.Array, ...],
    shared: tuple[Any, ...],
) -> jax.Array:
    """Returns `function` for the masks with a true condition, and `default` elsewhere.

    Under `jax.vmap`, too, only those masks are computed, one after the other. Plain
    vmap would turn the condition into a select that computes every mask.

    Args:
      condition: Per mask, bool (...).
      function: `function(*mapped, *shared)` of one mask, hashable.
      default: (..., *shape); shape is the output shape of the function.
      mapped: Arrays with leading axes (...).
      shared: Pytrees that all masks share. `jax.vmap` may add axes to their arrays.
    """
    # Outside of jit, the function is compiled only if it is needed.
    if not _validation.is_traced(condition) and not np.asarray(condition).any():
        return default
    return _masked_map(condition, function, default, mapped, shared)


@functools.partial(jax.jit, static_argnums=1)
def _masked_map(condition, function, default, mapped, shared):
    if condition.size == 0:
        return default
    compute = custom_vmap(lambda *arrays: _compute_some(function, *arrays))
    compute.def_vmap(functools.partial(_add_axis, compute))
    return compute(condition, default, mapped, shared)


def _compute_some(function, condition, default, mapped, shared):
    """Computes `masked_map` in a loop over the masks with a true condition."""
    values, *rows = (
        array.reshape(-1, *array.shape[condition.ndim :])
        for array in (default, *mapped)
    )

    def replace(place, values):
        own = function(*[row[place] for row in rows], *shared)
        return values.at[place].set(own)

    if condition.size == 1:
        is_one = condition.reshape(())
        values = jax.lax.cond(is_one, lambda: replace(0, values), lambda: values)
    else:
        # The cumulative count of these masks finds each mask. Sorting would take
        # longer.
        count = jnp.cumsum(condition)
        values = jax.lax.fori_loop(
            0,
            count[-1],
            lambda step, values: replace(jnp.searchsorted(count, step + 1), values),
            values,
        )
    return values.reshape(default.shape)


def _add_axis(compute, axis_size, in_batched, *arrays):
    """Applies `compute` over an axis that `jax.vmap` adds to some of its arrays."""
    (*masks, shared), (*of_masks, of_shared) = arrays, in_batched
    if not any(jax.tree.leaves(of_shared)):
        # The new axis becomes another axis of masks.
        def with_axis(array, has_axis):
            shape = array.shape if has_axis else (axis_size, *array.shape)
            return jnp.broadcast_to(array, shape)

        return compute(*jax.tree.map(with_axis, masks, of_masks), shared), True

    # Codes are processed one by one, because arrays that masks share must not be
    # repeated for each mask.
    axes = jax.tree.map(lambda has_axis: 0 if has_axis else None, tuple(in_batched))
    return jax.vmap(sequential_vmap(compute), axes)(*arrays), True
