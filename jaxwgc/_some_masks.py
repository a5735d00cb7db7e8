"""Computations for a subset of many masks, at the cost of that subset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

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
    # A second condition compiles to a smaller program than selects.
    return jax.lax.cond(condition, lambda: computed, lambda: default)


def is_nowhere(condition: jax.Array) -> bool:
    """Returns whether a condition is known to be false for all masks.

    Outside of `jax.jit` the exceptional branch is then not compiled.
    """
    return not _validation.is_traced(condition) and not np.asarray(condition).any()


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
    chunk: int = 1,
) -> jax.Array:
    """Returns `function` for the masks with a true condition, and `default` elsewhere.

    Under `jax.vmap`, too, only those masks are computed. Plain vmap would turn the
    condition into a select that computes every mask.

    Args:
      condition: Per mask, bool (...).
      function: `function(*mapped, *shared)` of one mask.
      default: (..., *shape); shape is the output shape of the function.
      mapped: Arrays with leading axes (...).
      shared: Pytrees that all masks share. `jax.vmap` may add axes to their arrays.
      chunk: Number of masks computed at once. Values above 1 are faster if `function`
        consists of matrix products; up to chunk - 1 masks are computed in vain.
    """
    if condition.size == 0:
        return default
    num_mapped = len(mapped)
    shared_arrays, structure = jax.tree.flatten(shared)
    base = [array.ndim for array in shared_arrays]

    @custom_vmap
    def compute(condition, default, *arrays):
        batch = condition.shape
        size = condition.size

        def flatten(array):
            return array.reshape(size, *array.shape[len(batch) :])

        condition = flatten(condition)
        mapped = [flatten(array) for array in arrays[:num_mapped]]
        # Shared arrays with their added axes flattened, and the entry of each mask.
        lists, owners = [], []
        for array, ndim in zip(arrays[num_mapped:], base, strict=True):
            axes_of_its_own = array.shape[: array.ndim - ndim]
            lists.append(array.reshape(-1, *array.shape[len(axes_of_its_own) :]))
            entries = jnp.arange(len(lists[-1])).reshape(axes_of_its_own)
            owners.append(jnp.broadcast_to(entries, batch).reshape(size))

        def at(place):
            own = [
                entries[0 if len(entries) == 1 else owner[place]]
                for entries, owner in zip(lists, owners, strict=True)
            ]
            rest = jax.tree.unflatten(structure, own)
            return function(*[array[place] for array in mapped], *rest)

        values = flatten(default)
        if size == 1:
            values = jax.lax.cond(condition[0], lambda: at(0)[None], lambda: values)
            return values.reshape(default.shape)
        at_once = min(chunk, size)
        # Running number of masks to compute; sorting would take longer.
        count = jnp.cumsum(condition)

        def compute_chunk(step, values):
            numbers = step * at_once + jnp.arange(1, at_once + 1)
            places = jnp.minimum(jnp.searchsorted(count, numbers), size - 1)
            # Mask by mask, conditions in the function are not turned into selects.
            computed = jax.vmap(at)(places) if at_once > 1 else at(places[0])[None]
            chosen = jnp.where(numbers <= count[-1], places, size)
            return values.at[chosen].set(computed, mode="drop")

        num_chunks = jax.lax.div(count[-1] + (at_once - 1), at_once)
        values = jax.lax.fori_loop(0, num_chunks, compute_chunk, values)
        return values.reshape(default.shape)

    @compute.def_vmap
    def _(axis_size, in_batched, *arrays):
        num_axes = arrays[0].ndim + (0 if in_batched[0] else 1)
        first = num_mapped + 2
        batched = [
            array if has_axis else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, has_axis in zip(arrays[:first], in_batched[:first], strict=True)
        ]
        # Axes of length one, so that added axes precede the mask axes.
        for array, has_axis, ndim in zip(
            arrays[first:], in_batched[first:], base, strict=True
        ):
            if has_axis:
                axis, *shape = array.shape
                ones = [1] * (num_axes - (array.ndim - ndim))
                array = array.reshape(axis, *ones, *shape)
            batched.append(array)
        return compute(*batched), True

    return compute(condition, default, *mapped, *shared_arrays)
