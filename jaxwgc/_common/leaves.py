"""Leaves of pytrees by name, and the first difference between two pytrees."""

from typing import Any

import jax


def by_name(name: str, tree: Any) -> dict[str, Any]:
    """Returns a dict of the leaves of a pytree, with keys such as "params['w']".

    Args:
      name: Name of the tree, with which paths begin.
      tree: Pytree.
    """
    return {
        name + jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def difference(
    before: dict[str, Any], now: dict[str, Any], text: str = "{before}, and now {now}"
) -> str:
    """Returns a text on the first leaf whose dtype or shape differs.

    The text is empty if no leaf differs.

    Args:
      before: Leaves by name.
      now: Leaves by name.
      text: Text with the leaves `{before}` and `{now}`.
    """

    def shown(leaf):
        return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"

    for name in now | before:
        shown_before = shown(before.get(name))
        shown_now = shown(now.get(name))
        if shown_before != shown_now:
            return f"{name} = {text.format(before=shown_before, now=shown_now)}"
    return ""
