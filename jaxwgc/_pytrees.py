"""Registration of the library's dataclasses as pytrees."""

import dataclasses
from typing import Annotated, Any, TypeAlias, TypeVar

import jax

T = TypeVar("T")

# Marks a field as part of the pytree's structure, not as an array: Static[int].
Static: TypeAlias = Annotated[T, "static"]


def register(cls: type[T]) -> type[T]:
    """Registers a dataclass as a pytree with the class in its structure.

    With `jax.tree_util.register_dataclass` two classes with equal fields have equal
    structures. If their hashes collide in the few bits that a cache compares,
    `jax.jit` runs the program of one class for the other. This happened in 2 of 36
    processes; see also https://github.com/cusp-ai-oss/kUPS/pull/114.
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
        # JAX also rebuilds pytrees with placeholders for arrays, which `__init__` may
        # reject.
        tree = object.__new__(cls)
        for name, value in zip(names[False], children, strict=True):
            object.__setattr__(tree, name, value)
        for name, value in zip(names[True], static[1:], strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls
