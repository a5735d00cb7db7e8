"""Meshes whose axes are explicit: shardings that are part of an array's type."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def sharding_by_batch(masks: jax.Array, num_axes: int) -> NamedSharding | None:
    """Returns the sharding of the batch axes of `masks`, with `num_axes` whole ones.

    None where masks have no sharding in their type.
    """
    sharding = jax.typeof(masks).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = PartitionSpec(*sharding.spec[:-1], *[None] * num_axes)
    return NamedSharding(sharding.mesh, spec)


def reshard(array: jax.typing.ArrayLike, mesh: Mesh, *axes: str | None) -> jax.Array:
    """The array with its leading axes sharded so, where types say how it is sharded.

    Elsewhere the compiler sees to it.
    """
    array = jnp.asarray(array)
    if AxisType.Explicit not in mesh.axis_types:
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*axes)))
