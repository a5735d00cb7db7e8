"""Checks of the updates that an aggregator takes, in the words of optax's chains."""

from typing import Any

import jax
import numpy as np
import optax

from jaxwgc._validation import check_dtypes, check_leading_axis, require


def shapes_of(tree: Any, num_batch_axes: int = 0) -> Any:
    """A pytree like `tree` without arrays: in place of each a dict, its shape the key.

    Made of dicts and tuples alone, so that a state that holds it can be saved by
    whatever saves pytrees.
    """
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    whole = not any(map(is_masked, jax.tree.leaves(tree, is_leaf=is_masked)))
    given = "optax.MaskedNode (masks go around transformations after the aggregator)"
    require(whole, "updates and params", "be whole", given)
    return jax.tree.map(lambda leaf: {str(np.shape(leaf)[num_batch_axes:]): ()}, tree)


_ORDER = (
    " (an aggregator goes first in optax.chain, and only one; what wraps an optimizer, "
    "such as optax.MultiSteps, goes around those after it)"
)


def check_updates(
    updates: Any, size: int, axis_name: str, params: Any, shapes: Any
) -> None:
    """Updates of an aggregator are like params, with a leading axis in front.

    Where params are None, `shapes` are those that `init` has seen; None if it has seen
    none either.
    """
    check_leading_axis("updates", updates, size, axis_name, _ORDER)
    check_dtypes("updates", updates, "real or complex floats")
    expected = shapes if params is None else shapes_of(params)
    given_shapes = shapes_of(updates, num_batch_axes=1)
    structures = jax.tree.structure(given_shapes), jax.tree.structure(expected)
    if expected is None or structures[0] == structures[1]:
        return
    first, second = _by_path(given_shapes), _by_path(expected)
    differ = (path for path in first | second if first.get(path) != second.get(path))
    path, kinds = next(differ, ""), structures
    # Without paths that differ, a tuple stands for a list, or the like.
    if path in first | second:
        kinds = first.get(path, "nothing"), second.get(path, "nothing")
    raise ValueError(
        f"updates{path} must be like params with a leading axis of {axis_name} = "
        f"{size} in front; got {kinds[0]} behind that axis for {kinds[1]}{_ORDER}"
    )


def check_one_array(name: str, value: Any, meaning: str) -> None:
    """Updates of an aggregator that are one array, not like params."""
    is_one, structure = jax.tree_util.all_leaves([value]), jax.tree.structure(value)
    require(is_one, name, f"be one array, {meaning}", f"{structure}{_ORDER}")


def _by_path(shapes):
    """The shapes in the keys of `shapes_of`, by the paths of their leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda node: isinstance(node, dict) and [()] == [*node.values()]
    )
    return {jax.tree_util.keystr(path): next(iter(leaf)) for path, leaf in leaves}
