"""Leaves of pytrees: by name, finite, and the first leaf that differs."""

from typing import Any

import jax
import numpy as np

from jaxwgc.distributed.ray._messages import is_finite


def by_name(name: str, tree: Any) -> dict[str, Any]:
    """Returns leaves by path, such as `params['a.b'][0]`; no two paths are equal.

    Args:
      name: Name of the tree, with which paths begin.
      tree: Pytree.
    """
    return {
        name + jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describes the first leaf by name that differs, or returns an empty string."""

    def shown(leaf):
        return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    for name in now | before:
        shown_before = shown(before.get(name))
        shown_now = shown(now.get(name))
        if shown_before != shown_now:
            return f"{name} = {shown_before}, and now {shown_now}"
    return ""


def finite_leaves(params: Any, like: Any) -> list[np.ndarray]:
    """Converts params to finite NumPy leaves with the dtypes of `like`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = []
    for (path, leaf), shape in zip(leaves, jax.tree.leaves(like)):
        array = np.asarray(leaf, shape.dtype)
        if not is_finite(array):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"params must be finite; got NaN or infinity in {name}")
        arrays.append(array)
    return arrays
