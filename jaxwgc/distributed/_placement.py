"""Placement of parts on the devices of a mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwgc import _arrays, _validation
from jaxwgc._pytrees import Static, register
from jaxwgc.codes import GradientCode


@register
@dataclasses.dataclass(frozen=True, eq=False)
class PlacedParts:
    """Parts of the data, each on the devices that work on it.

    Attributes:
      arrays: a pytree; leaves (num_shards * parts_per_shard, ...), sharded over the
        axis of the workers.
      held: the parts of each shard in their order, as many for each: the last one again
        where a shard has fewer.
    """

    arrays: Any
    held: Static[tuple[tuple[int, ...], ...]]


def place_parts(
    parts: Any, code: GradientCode, mesh: Mesh, *, axis: str | None = None
) -> PlacedParts:
    """Puts parts of the data on the devices of a mesh, for `mesh_value_and_grad`.

    Each part is computed once, so each device along the axis gets an equal share.

    Args:
      parts: a pytree; leaves (num_parts, ...), in NumPy or JAX; memory-mapped arrays
        are read where they are needed. Or a function `load(j)` that gives part j, a
        pytree of arrays; each process calls it for the parts of its own devices only.
      code: a gradient code. Not traced.
      mesh: a mesh of devices; of all processes, where there are several.
      axis: the axis of the mesh that workers are spread over; the first by default.

    Returns:
      The parts, as `mesh_value_and_grad` takes them.

    Raises:
      ValueError: If the leading axis of parts is not num_parts, loaded parts differ in
        structure, shape or dtype, or the mesh has no such axis.
      TypeError: If an argument has the wrong type.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import distributed
      >>> mesh = jax.make_mesh((jax.device_count(),), ("workers",))
      >>> code = jaxwgc.codes.cyclic_mds(4, num_stragglers=1)
      >>> parts = jnp.arange(8.0).reshape(4, 2)
      >>> placed = distributed.place_parts(parts, code, mesh)
      >>> placed.held if jax.device_count() == 1 else ((0, 1, 2, 3),)
      ((0, 1, 2, 3),)
    """
    axis = check_mesh(code, mesh, axis)
    held = held_parts(code, mesh.shape[axis])
    if callable(parts):
        load = parts
    else:
        _validation.check_leading_axis("parts", parts, code.num_parts, "num_parts")
        _validation.check_dtypes("parts", parts, "numbers, bools or keys")

        def load(index):
            return jax.tree.map(lambda leaf: leaf[index], parts)

    num_held = held.shape[1]
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    places = sharding.addressable_devices_indices_map((held.size,))
    pieces: dict[int, Any] = {}
    on_devices = []
    for device, rows in places.items():
        assert rows is not None
        shard = (rows[0].start or 0) // num_held
        if shard not in pieces:
            pieces[shard] = _stacked(load, held[shard])
        on_devices.append(jax.device_put(pieces[shard], device))
    _check_alike(on_devices)

    def assemble(*leaves):
        shape = (held.size, *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, [*leaves])

    arrays = jax.tree.map(assemble, *on_devices)
    return PlacedParts(arrays, tuple(map(tuple, held.tolist())))


def check_mesh(code: Any, mesh: Any, axis: Any) -> str:
    """Checks code, mesh and axis; returns the axis of the workers."""
    GradientCode.check(code, concrete="it says which device holds what")
    _validation.check_instance("mesh", mesh, Mesh, " of jax.sharding")
    axis = mesh.axis_names[0] if axis is None else axis
    _validation.check_choice("axis", axis, mesh.axis_names)
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    others = [name for name in types if name != axis and types[name] != AxisType.Auto]
    rule = f"have the type Auto for axes other than {axis!r} (axis_types of make_mesh)"
    _validation.require(not others, "mesh", rule, types)
    return axis


def held_parts(code: GradientCode, num_shards: int) -> np.ndarray:
    """Returns the parts of each shard, (num_shards, parts_per_shard)."""
    parts_per_shard = -(-code.num_parts // num_shards)
    parts = np.arange(num_shards * parts_per_shard)
    return np.minimum(parts, code.num_parts - 1).reshape(num_shards, -1)


def _stacked(load, indices):
    """Loads and stacks the parts of one shard on the host."""
    loaded = {int(index): load(int(index)) for index in np.unique(indices)}
    _check_alike(loaded.values())

    def stack(*leaves):
        # JAX stacks keys, because NumPy has no dtype for them.
        is_key = jnp.issubdtype(_arrays.dtype_of(leaves[0]), jax.dtypes.prng_key)
        return (jnp if is_key else np).stack(leaves)

    return jax.tree.map(stack, *(loaded[int(index)] for index in indices))


def _check_alike(trees):
    def describe(leaf):
        return f"{_arrays.dtype_of(leaf)}{list(np.shape(leaf))}"

    described = [jax.tree.map(describe, tree) for tree in trees]
    for other in described[1:]:
        given = f"one of {described[0]} and one of {other}"
        _validation.require(other == described[0], "parts", "be alike", given)
