"""Meshes whose axes are explicit: shardings that are part of an array's type."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharding_by_batch(masks: jax.Array, num_axes: int) -> NamedSharding | None:
    """That of the batch axes of `masks`, with `num_axes` more that are whole.

    None where masks have no sharding in their type.
    """
    sharding = jax.typeof(masks).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = PartitionSpec(*sharding.spec[:-1], *[None] * num_axes)
    return NamedSharding(sharding.mesh, spec)
