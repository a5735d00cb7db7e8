"""Decoded gradients on a mesh of devices, computed by one JAX program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxwgc._common import array_validation, arrays, validation
from jaxwgc.codes import GradientCode
from jaxwgc.coding import Arrived
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.distributed._placement import (
    PlacedParts,
    as_tuples,
    check_mesh,
    held_parts,
)
from jaxwgc.gradients._gradients import scalar_loss


def mesh_value_and_grad(
    loss: Callable[[Any, Any], Any],
    code: GradientCode,
    mesh: Mesh,
    *,
    axis: str | None = None,
    decoder: DecoderLike = None,
) -> Callable:
    """Returns a function that computes the decoded gradient on a mesh of devices.

    The result equals `jaxwgc.decoded_value_and_grad` to rounding, for any number of
    devices, and of processes that are joined by `jax.distributed.initialize`. Each
    device computes its parts one after the other and weights their gradients. One sum
    over the devices follows.

    The mask excludes responses, for example in a study of stragglers or if the data of
    a worker have not arrived. All devices run one program, so a step waits for a dead
    device whatever the mask.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part.
      code: Gradient code. Not traced.
      mesh: Mesh of devices.
      axis: Name of the axis of the mesh over which workers are spread; the first by
        default. Params may be sharded over the others.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.

    Returns:
      A function of `params`, `parts` and `received`. Params are a pytree of floats,
      replicated or sharded over other axes. Parts come from `place_parts` with this
      code, mesh and axis. `received` is the bool mask (num_workers,) of responses; for
      codes with several messages per worker, `finished`, int (num_workers,), may take
      its place. The function returns `(value, gradient)`, replicated: the scalar sum
      over j of cⱼ lossⱼ, with the effective weights c, and a pytree like params. A
      whole optax step around it can be compiled by `jax.jit`.

    Raises:
      ValueError: If an argument has an invalid value, or the mesh has no such axis.
        When called: if parts are placed for another code or mesh, or `received` has the
        wrong shape.
      TypeError: If an argument has the wrong type, the loss does not return a scalar of
        real floats, or params are not floats.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import distributed
      >>> mesh = jax.make_mesh((jax.device_count(),), ("workers",))
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> parts = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 0.0]]])
      >>> placed = distributed.place_parts(parts, code, mesh)
      >>> step = distributed.mesh_value_and_grad(loss, code, mesh)
      >>> received = jnp.array([True, False, True])
      >>> value, gradient = step({"w": jnp.ones(2)}, placed, received)
      >>> gradient["w"].round(3)
      Array([20.,  8.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    axis = check_mesh(code, mesh, axis)
    held = held_parts(code, mesh.shape[axis])
    decoder = code.choose_decoder(decoder)
    value_and_grad = jax.value_and_grad(scalar_loss(loss))
    # Only `axis` is manual: the compiler partitions the other axes of the mesh. With
    # `check_vma=True`, JAX would sum gradients over all shards before they are
    # weighted.
    weighted_sum = jax.shard_map(
        functools.partial(_weighted_sum, value_and_grad, axis),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axis), PartitionSpec(axis)),
        out_specs=PartitionSpec(),
        axis_names={axis},
        check_vma=False,
    )
    by_shard = NamedSharding(mesh, PartitionSpec(axis))
    expected = as_tuples(held)

    @jax.jit
    def compute(params, parts, arrived):
        round_decoding = arrived.decode(code, decoder)
        values = []

        def sum_over_parts(weights):
            # The last part is repeated to fill the shards. Repetitions get weight zero,
            # so that the part counts once.
            weights = jnp.pad(weights, (0, held.size - code.num_parts))
            if AxisType.Explicit in mesh.axis_types:
                weights = jax.sharding.reshard(weights, by_shard)
            value, gradient = weighted_sum(params, parts, weights)
            values.append(value)
            return gradient

        gradient = round_decoding.collapse(sum_over_parts)
        # The first call of `sum_over_parts` has the effective weights, which also give
        # the value. Further calls only correct the gradient for leakage between blocks.
        return values[0], gradient

    def step(params, parts, received=None, *, finished=None):
        array_validation.check_dtypes("params", params, "real or complex floats")
        validation.check_instance("parts", parts, PlacedParts, ", from place_parts")
        if parts.held != expected:
            raise ValueError(
                "parts must be placed by place_parts with the code, mesh and axis that "
                "mesh_value_and_grad was given; got parts for another code, mesh or "
                "axis"
            )
        arrived = Arrived.of(code, received, finished, one_round=True)
        return compute(params, parts.arrays, arrived)

    return step


def _weighted_sum(
    value_and_grad: Callable[[Any, Any], Any],
    axis: str,
    params: Any,
    parts: Any,
    weights: jax.Array,
) -> Any:
    """Computes weighted sums of losses and gradients over the parts of all devices."""

    def add(total, part_and_weight):
        part, weight = part_and_weight

        def weighted(leaf):
            leaf = arrays.promoted(leaf)
            product = weight.astype(leaf.dtype) * leaf
            # A gradient of weight zero may hold NaN, and 0 * NaN is NaN. It is replaced
            # by zero.
            return jnp.where(weight == 0, 0, product)

        summands = jax.tree.map(weighted, value_and_grad(params, part))
        return jax.tree.map(jnp.add, total, summands), None

    def zeros(leaf):
        return arrays.promoted(jnp.zeros(leaf.shape, leaf.dtype))

    first_part = jax.tree.map(lambda leaf: leaf[0], parts)
    like = jax.eval_shape(value_and_grad, params, first_part)
    total, _ = jax.lax.scan(add, jax.tree.map(zeros, like), (parts, weights))
    total = jax.lax.psum(total, axis)
    return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), total, like)
