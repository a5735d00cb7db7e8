"""Checks of the updates that an aggregator receives."""

from typing import Any

import jax
import numpy as np
import optax

from jaxwgc._validation import check_dtypes, check_leading_axis, require


def shapes_of(tree: Any, num_batch_axes: int = 0) -> Any:
    """Returns a pytree like `tree` with each array replaced by a dict keyed by shape.

    The state that holds it consists of dicts and tuples, which every checkpoint library
    can save.
    """
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    whole = not any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))
    given = "optax.MaskedNode (masks go around transformations after the aggregator)"
    require(whole, "updates and params", "have no masked leaves", given)
    return jax.tree.map(lambda leaf: {str(np.shape(leaf)[num_batch_axes:]): ()}, tree)


_ORDER = (
    " (an aggregator must be the first transformation in optax.chain, and the only "
    "aggregator; wrappers such as optax.MultiSteps or optax.contrib.sam go around "
    "those after it)"
)


def check_updates(
    updates: Any, size: int, axis_name: str, params: Any, shapes: Any
) -> None:
    """Checks that updates are like params with an added leading axis.

    If params is None, they are compared with `shapes`, recorded by `init`; None skips
    the comparison.
    """
    check_leading_axis("updates", updates, size, axis_name, _ORDER)
    check_dtypes("updates", updates, "real or complex floats")
    expected = shapes if params is None else shapes_of(params)
    if expected is None:
        return
    shapes_after_axis = _by_path(shapes_of(updates, num_batch_axes=1))
    shapes_of_params = _by_path(expected)
    rule = f"be like params with a leading axis of {axis_name} = {size} in front"
    if shapes_after_axis.keys() != shapes_of_params.keys():
        only_updates = _leaf_names("updates", shapes_after_axis, shapes_of_params)
        only_params = _leaf_names("params", shapes_of_params, shapes_after_axis)
        raise ValueError(
            f"updates must {rule}; got {only_updates} only in updates, and "
            f"{only_params} only in params (pass the params that the loss was "
            "differentiated by; a wrapper with params of its own, such as "
            "optax.lookahead, goes around the whole chain)"
        )
    for path, shape in shapes_after_axis.items():
        shown = f"{shape} after that axis, params have {shapes_of_params[path]}{_ORDER}"
        require(shape == shapes_of_params[path], f"updates{path}", rule, shown)


def check_one_array(name: str, value: Any, meaning: str) -> None:
    """Checks that the updates of an aggregator are one array."""
    is_one, structure = jax.tree_util.all_leaves([value]), jax.tree.structure(value)
    require(is_one, name, f"be one array, {meaning}", f"{structure}{_ORDER}")


def _by_path(shapes):
    """Converts a result of `shapes_of` to a dict from paths of leaves to shapes."""
    leaves = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda node: isinstance(node, dict) and [()] == [*node.values()]
    )
    return {jax.tree_util.keystr(path): next(iter(leaf)) for path, leaf in leaves}


def _leaf_names(name, shapes, others):
    """Returns the names of the first leaves with a path that `others` lacks."""
    names = [f"{name}{path}" for path in shapes if path not in others]
    if not names:
        return "no leaves"
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
