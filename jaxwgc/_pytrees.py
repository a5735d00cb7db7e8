"""The one way in which the library's dataclasses become pytrees."""

import dataclasses
from typing import Annotated, Any, TypeAlias, TypeVar

import jax

T = TypeVar("T")

# A field that is part of the pytree's structure, not one of its arrays: Static[int].
Static: TypeAlias = Annotated[T, "static"]


def register(cls: type[T]) -> type[T]:
    """Makes a dataclass a pytree, with the class in what is static.

    `jax.tree_util.register_dataclass` does not: there, the structures of two classes
    with the same fields compare as equal, and where their hashes agree in the few bits
    that a cache looks at, `jax.jit` runs the program of one for the other: seen in two
    of 36 processes. Others met the same: https://github.com/cusp-ai-oss/kUPS/pull/114.
    """
    names = {True: [], False: []}
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        # Annotations are strings under `from __future__ import annotations`.
        is_static = "static" in getattr(field.type, "__metadata__", ())
        is_static |= isinstance(field.type, str) and "Static[" in field.type
        names[is_static].append(field.name)

    def flatten(tree: T) -> tuple[Any, Any]:
        children = [
            (jax.tree_util.GetAttrKey(name), getattr(tree, name))
            for name in names[False]
        ]
        return children, (cls, *(getattr(tree, name) for name in names[True]))

    def unflatten(static: Any, children: Any) -> T:
        arrays = dict(zip(names[False], children, strict=True))
        return cls(**arrays, **dict(zip(names[True], static[1:], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
