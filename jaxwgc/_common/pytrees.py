"""Registration of the library's dataclasses as pytrees."""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import jax

T = TypeVar("T")

# Annotation of static fields, e.g. Static[int]: the field is part of the structure of
# the pytree, and no leaf.
Static: TypeAlias = Annotated[T, "static"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class ByIdentity(Generic[T]):
    """Wrapper of an object for static arguments of `jax.jit`, equal by identity.

    The wrapper is also a pytree without arrays.

    Objects of the user's classes may be equal although they compute other results, and
    may have no hash.
    """

    value: T

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def register(cls: type[T]) -> type[T]:
    """Registers a dataclass as a pytree whose structure includes the class.

    With `jax.tree_util.register_dataclass` two classes with equal fields have equal
    structures. If their hashes collide in the few bits that a cache compares,
    `jax.jit` runs the program of one class for the other. This happened in 2 of 36
    processes; see also https://github.com/cusp-ai-oss/kUPS/pull/114.
    """
    static_names = []
    array_names = []
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        if _is_static(field.type):
            static_names.append(field.name)
        else:
            array_names.append(field.name)

    def flatten(tree: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = []
        for name in array_names:
            children.append((jax.tree_util.GetAttrKey(name), getattr(tree, name)))
        static_values = [getattr(tree, name) for name in static_names]
        return children, (cls, *static_values)

    def unflatten(static: tuple[Any, ...], children: Iterable[Any]) -> T:
        # JAX also rebuilds pytrees with placeholders for arrays, which `__init__` may
        # reject.
        tree = object.__new__(cls)
        for name, value in zip(array_names, children, strict=True):
            object.__setattr__(tree, name, value)
        _, *static_values = static
        for name, value in zip(static_names, static_values, strict=True):
            object.__setattr__(tree, name, value)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _is_static(annotation: object) -> bool:
    """Returns whether the annotation of a field is `Static[...]`."""
    # Annotations are strings under `from __future__ import annotations`.
    if isinstance(annotation, str):
        return "Static[" in annotation
    return "static" in getattr(annotation, "__metadata__", ())
