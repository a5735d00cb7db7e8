"""Functions of some rows of an array, computed at the cost of these rows only."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.tree_util import Partial

T = TypeVar("T")

# Maximum number of entries in a batch, and minimum number of rows. Longer rows are
# computed one by one, because a batch of them takes too long if it brings no gain.
_ENTRIES_TOGETHER = 512
_FEWEST_TOGETHER = 16


@custom_vmap
def any_under_vmap(condition: jax.Array) -> jax.Array:
    """Returns whether a condition is true for any element under `jax.vmap`.

    The result is for `lax.cond`: a condition that is mapped by vmap would turn the cond
    into a select, which runs both branches.
    """
    return condition


@any_under_vmap.def_vmap
def _any_under_vmap_rule(axis_size, in_batched, condition):
    del axis_size, in_batched
    return any_under_vmap(condition.any(axis=0)), False


def compute_if(condition: jax.Array, function: Callable[[], T], default: T) -> T:
    """Returns `function()` if a condition is true, and `default` otherwise.

    Under `jax.vmap`, the function is computed only if the condition is true for any
    element.
    """
    computed = jax.lax.cond(any_under_vmap(condition), function, lambda: default)
    # One `cond` compiles to a smaller program than one `select` per array.
    return jax.lax.cond(condition, lambda: computed, lambda: default)


def in_batches(function: Callable[[jax.Array], T], rows: jax.Array, size: int) -> T:
    """Applies a function to batches of rows, one batch after the other.

    Args:
      function: Maps rows (number, c) to arrays with that leading axis.
      rows: (..., c).
      size: Maximum number of rows per batch.

    Returns:
      The arrays with leading axes (...).
    """
    *batch, length = rows.shape
    flat = rows.reshape(-1, length)
    num_rows = len(flat)
    num_batches = math.ceil(num_rows / size)

    def without_batches(leaf):
        return leaf.reshape(-1, *leaf.shape[2:])

    def with_leading_axes(leaf):
        return leaf[:num_rows].reshape(*batch, *leaf.shape[1:])

    if num_batches > 1:
        num_added = num_batches * size - num_rows
        padded = jnp.pad(flat, [(0, num_added), (0, 0)])
        padded = padded.reshape(num_batches, size, length)
        values = jax.tree.map(without_batches, jax.lax.map(function, padded))
    else:
        values = function(flat)
    return jax.tree.map(with_leading_axes, values)


def keep(values: jax.Array, rows: jax.Array, *_: object) -> tuple[jax.Array, jax.Array]:
    """Returns the values unchanged, and True for each row: its value is final."""
    return values, rows[..., 0] | True


@custom_vmap
def masked_map(
    condition: jax.Array,
    function: Partial,
    together: Partial | None,
    values: jax.Array,
    rows: jax.Array,
) -> jax.Array:
    """Computes new values of rows with a true condition, and keeps other values.

    Under `jax.vmap`, too, only those rows are computed. Plain vmap would turn the
    condition into a select that computes every row.

    Args:
      condition: Per row, bool (...).
      function: `function(value, row)` returns the value of one row, and True.
      together: `together(values, rows)` returns the values of several rows, and which
        of them are final. The others are left to `function`. None if rows are computed
        one by one. `jax.vmap` may add axes to the arrays of these two.
      values: (..., *shape).
      rows: (..., c).
    """
    if condition.size == 0:
        return values
    is_open = condition.ravel()
    flat = values.reshape(-1, *values.shape[condition.ndim :])
    rows = rows.reshape(-1, rows.shape[-1])
    if condition.size == 1:
        value, _ = jax.lax.cond(is_open[0], function, keep, flat[0], rows[0])
        return value.reshape(values.shape)
    if together is not None:
        flat, is_open = _replace_together(is_open, together, flat, rows)
    # `searchsorted` in the cumulative count finds each row that is left. Sorting the
    # rows would take longer.
    count = jnp.cumsum(is_open)

    def replace(step, flat):
        place = jnp.searchsorted(count, step + 1)
        value, _ = function(flat[place], rows[place])
        return flat.at[place].set(value)

    flat = jax.lax.fori_loop(0, count[-1], replace, flat)
    return flat.reshape(values.shape)


def _replace_together(
    is_open: jax.Array, function: Partial, values: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes rows in batches; returns all values, and which rows are not final.

    Ends early if fewer than half of the computed values are final.
    """
    size = min(_ENTRIES_TOGETHER // rows.shape[1], len(rows))
    if size < _FEWEST_TOGETHER:
        return values, is_open
    count = jnp.cumsum(is_open)

    def pays(state):
        step, _, is_open = state
        num_final = count[-1] - is_open.sum()
        return (step < count[-1] // size) & (2 * num_final >= step * size)

    def replace(state):
        step, values, is_open = state
        places = jnp.searchsorted(count, step * size + 1 + jnp.arange(size))
        computed, is_final = function(values[places], rows[places])
        values = values.at[places].set(computed)
        return step + 1, values, is_open.at[places].set(~is_final)

    _, values, is_open = jax.lax.while_loop(pays, replace, (0, values, is_open))
    return values, is_open


@masked_map.def_vmap
def _add_axis(axis_size, in_batched, condition, function, together, values, rows):
    """Computes `masked_map` under `jax.vmap`."""
    if any(jax.tree.leaves(in_batched[1:3])):
        # Elements with different functions are computed one by one, because the arrays
        # in a function would otherwise be repeated for each row.
        axes = jax.tree.map(lambda has_axis: 0 if has_axis else None, tuple(in_batched))
        one_by_one = jax.vmap(sequential_vmap(masked_map), axes)
        return one_by_one(condition, function, together, values, rows), True

    # The axis of vmap becomes one more leading axis of the rows.
    def with_axis(array, has_axis):
        shape = array.shape if has_axis else (axis_size, *array.shape)
        return jnp.broadcast_to(array, shape)

    condition = with_axis(condition, in_batched[0])
    values = with_axis(values, in_batched[3])
    rows = with_axis(rows, in_batched[4])
    return masked_map(condition, function, together, values, rows), True
