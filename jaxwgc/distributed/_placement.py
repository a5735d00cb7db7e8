"""Placement of parts on the devices of a mesh."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwgc._common import array_validation, validation
from jaxwgc._common.arrays import dtype_of
from jaxwgc._common.pytrees import Static, register
from jaxwgc.codes import GradientCode


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PlacedParts:
    """Parts of the data, sharded over the devices that compute their gradients.

    Attributes:
      arrays: Pytree with leaves (num_shards * parts_per_shard, ...), sharded over the
        axis of the workers.
      held: Indices of the parts of each shard, in order. The last part is repeated
        until all shards have equally many.
    """

    arrays: Any
    held: Static[tuple[tuple[int, ...], ...]]


def place_parts(
    parts: Any, code: GradientCode, mesh: Mesh, *, axis: str | None = None
) -> PlacedParts:
    """Puts parts of the data on the devices of a mesh, for `mesh_value_and_grad`.

    Each part is computed once, so each device along the axis gets an equal share.

    Args:
      parts: Pytree with leaves (num_parts, ...), in NumPy or JAX. Memory-mapped arrays
        are read where they are needed. Or a function `load(j)` that returns part j, a
        pytree of arrays; each process calls it for the parts of its own devices only.
      code: Gradient code. Not traced.
      mesh: Mesh of devices, of all processes if there are several.
      axis: Name of the axis of the mesh over which workers are spread; the first by
        default.

    Returns:
      The argument `parts` of the function of `mesh_value_and_grad`, with `arrays`, a
      pytree with leaves (num_shards * parts_per_shard, ...), sharded over the axis of
      the workers, and `held`, a tuple with a tuple of the indices of the parts of each
      shard, in order. The last part is repeated until all shards have equally many.

    Raises:
      ValueError: If the leading axis of parts is not num_parts, loaded parts differ in
        structure, shape or dtype, or the mesh has no such axis; if an integer needs
        more than 32 bits and x64 is off.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import distributed
      >>> mesh = jax.make_mesh((jax.device_count(),), ("workers",))
      >>> code = jaxwgc.codes.cyclic_mds(4, num_stragglers=1)
      >>> parts = jnp.arange(8.0).reshape(4, 2)
      >>> placed = distributed.place_parts(parts, code, mesh)
      >>> sorted(part for held in placed.held for part in set(held))
      [0, 1, 2, 3]
    """
    axis = check_mesh(code, mesh, axis)
    held = held_parts(code, mesh.shape[axis])
    if callable(parts):
        load = parts
    else:
        array_validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
        array_validation.check_dtypes("parts", parts, "numbers, bools or keys")

        def load(index):
            return jax.tree.map(lambda leaf: leaf[index], parts)

    sharding = NamedSharding(mesh, PartitionSpec(axis))
    order = held.ravel()
    local_parts = set()
    # The map has the slice of `order` that each device of this process holds.
    for places in sharding.addressable_devices_indices_map(order.shape).values():
        local_parts.update(order[places].tolist())
    loaded = {part: load(part) for part in sorted(local_parts)}
    for part, loaded_part in loaded.items():
        array_validation.check_integers_are_kept(f"part {part}", loaded_part)
    check_alike(list(loaded.values()))

    def place(*leaves):
        leaf_of_part = dict(zip(loaded, leaves, strict=True))
        # NumPy has no dtype for PRNG keys, so JAX stacks them.
        is_key = jnp.issubdtype(dtype_of(leaves[0]), jax.dtypes.prng_key)
        stack = jnp.stack if is_key else np.stack

        def shard(index):
            parts_of_shard = order[index[0]].tolist()
            return stack([leaf_of_part[part] for part in parts_of_shard])

        shape = (*order.shape, *np.shape(leaves[0]))
        return jax.make_array_from_callback(shape, sharding, shard)

    arrays = jax.tree.map(place, *loaded.values())
    return PlacedParts(arrays=arrays, held=as_tuples(held))


def as_tuples(held: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Converts the array of part indices to hashable nested tuples, one per shard."""
    return tuple(tuple(parts) for parts in held.tolist())


def check_mesh(code: GradientCode, mesh: Mesh, axis: str | None) -> str:
    """Returns the axis of the workers; raises if code, mesh or axis is invalid."""
    GradientCode.check(code, concrete="it determines which device holds which part")
    validation.check_instance("mesh", mesh, Mesh, " of jax.sharding")
    if axis is None:
        axis = str(mesh.axis_names[0])
    validation.check_choice("axis", axis, mesh.axis_names)
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for name, axis_type in types.items():
        if name != axis and axis_type != AxisType.Auto:
            raise ValueError(
                f"mesh must have type Auto for all axes except {axis!r}; got {types}. "
                "Pass axis_types to jax.make_mesh"
            )
    return axis


def held_parts(code: GradientCode, num_shards: int) -> np.ndarray:
    """Returns the part indices of each shard, int (num_shards, parts_per_shard).

    The last part is repeated to fill the shards.
    """
    parts_per_shard = -(-code.num_parts // num_shards)
    parts = np.arange(num_shards * parts_per_shard)
    return np.minimum(parts, code.num_parts - 1).reshape(num_shards, -1)


def check_alike(parts: Sequence[Any]) -> None:
    """Raises ValueError if parts differ in structure, shapes or dtypes."""
    signatures = [signature(part) for part in parts]
    for other in signatures[1:]:
        if other != signatures[0]:
            raise ValueError(
                "all parts must have equal structure, shapes and dtypes; got a part of "
                f"{signatures[0]} and a part of {other}"
            )


def signature(part: Any) -> str:
    """Returns the names, dtypes and shapes of a part's leaves as text."""
    descriptions = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(part):
        name = jax.tree_util.keystr(path)
        shape = list(np.shape(leaf))
        descriptions.append(f"{name} {dtype_of(leaf)}{shape}")
    return ", ".join(descriptions).strip()
