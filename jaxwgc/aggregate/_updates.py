"""Checks of the updates that an aggregator receives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxwgc._common.array_validation import check_dtypes, check_leading_axis


def shapes_of(tree: Any) -> Any:
    """Returns a pytree like `tree` with each array replaced by a dict keyed by shape.

    The state that holds it consists of dicts and tuples, which every checkpoint library
    can save.
    """
    return jax.tree.map(lambda leaf: {str(np.shape(leaf)): ()}, tree)


def check_unmasked(params: Any) -> None:
    """Raises ValueError if `optax.masked` has left out leaves of params."""
    nodes = jax.tree.leaves(params, is_leaf=_is_masked)
    if any(_is_masked(node) for node in nodes):
        raise ValueError(
            "params must have no masked leaves; got optax.MaskedNode (masks go around "
            "transformations after the aggregator)"
        )


def _is_masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


_ORDER = (
    " (an aggregator must be the first transformation in optax.chain, and the only "
    "aggregator; wrappers such as optax.MultiSteps or optax.contrib.sam go around "
    "those after it)"
)


def check_updates(
    updates: Any, size: int, axis_name: str, params: Any, shapes: Any
) -> None:
    """Checks that updates are floats like params with an added leading axis.

    If params is None, updates are compared with `shapes`, recorded by `init`, unless
    these are None, too.
    """
    expected = shapes if params is None else shapes_of(params)
    leaves, structure = jax.tree.flatten(updates)
    shapes_after_axis = []
    for leaf in leaves:
        shape = np.shape(leaf)
        if shape[:1] == (size,) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            shapes_after_axis.append({str(shape[1:]): ()})
        else:
            # A leaf instead of a shape makes the comparison of structures below fail.
            shapes_after_axis.append(leaf)
    structure_of_shapes = jax.tree.structure(
        jax.tree.unflatten(structure, shapes_after_axis)
    )
    if not leaves or structure_of_shapes != jax.tree.structure(expected):
        _compare_by_path(updates, size, axis_name, expected)


def _compare_by_path(updates: Any, size: int, axis_name: str, expected: Any) -> None:
    """Raises an error that names the first leaf of updates that is unlike params.

    Structures of other types, such as a `FrozenDict` for a dict, are accepted.
    """
    check_leading_axis("updates", updates, size, axis_name, _ORDER)
    check_dtypes("updates", updates, "real or complex floats")
    after_axis = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
    )
    if expected is None:
        return
    shapes = _by_path(shapes_of(after_axis))
    shapes_of_params = _by_path(expected)
    if shapes.keys() != shapes_of_params.keys():
        only_updates = _leaf_names("updates", shapes, shapes_of_params)
        only_params = _leaf_names("params", shapes_of_params, shapes)
        raise ValueError(
            f"updates must be like params with a leading axis of {axis_name} = {size} "
            f"in front; got {only_updates} only in updates, and {only_params} only in "
            "params (pass the params that the loss was differentiated by; a wrapper "
            "with params of its own, such as optax.lookahead, goes around the whole "
            "chain)"
        )
    for path, shape in shapes.items():
        if shape != shapes_of_params[path]:
            raise ValueError(
                f"updates{path} must be like params with a leading axis of {axis_name} "
                f"= {size} in front; got {shape} after that axis, params have "
                f"{shapes_of_params[path]}{_ORDER}"
            )


def check_one_array(name: str, value: Any, meaning: str) -> None:
    """Checks that the updates of an aggregator are one array."""
    if not jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"{name} must be one array, {meaning}; got {jax.tree.structure(value)}"
            f"{_ORDER}"
        )


def _by_path(shapes: Any) -> dict[str, str]:
    """Converts a result of `shapes_of` to a dict from paths of leaves to shapes."""
    by_path = {}
    leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=_is_shape)
    for path, leaf in leaves:
        [shape] = leaf
        by_path[jax.tree_util.keystr(path)] = shape
    return by_path


def _is_shape(node: object) -> bool:
    """Returns whether a node of `shapes_of` stands for an array."""
    return isinstance(node, dict) and list(node.values()) == [()]


def _leaf_names(name: str, shapes: dict[str, str], others: dict[str, str]) -> str:
    """Returns the names of the first leaves with a path that `others` lacks."""
    names = [f"{name}{path}" for path in shapes if path not in others]
    if not names:
        return "no leaves"
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
