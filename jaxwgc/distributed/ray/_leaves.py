"""Leaves of pytrees by name, and the first leaf that differs."""

from typing import Any

import jax


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
