"""Leaves of pytrees: by name, finite, and the first leaf that differs."""

from typing import Any

import jax
import numpy as np

from jaxwgc.distributed.ray._messages import is_finite


def by_name(tree: Any) -> dict[str, Any]:
    """Returns leaves by path; a checkpoint keeps names, but not the types of nodes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def difference(before: Any, now: Any) -> str:
    """Describes the first leaf that differs, or returns an empty string."""

    def shown(leaf):
        return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    first = by_name(before)
    second = by_name(now)
    for name in second | first:
        shown_before = shown(first.get(name))
        shown_now = shown(second.get(name))
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
