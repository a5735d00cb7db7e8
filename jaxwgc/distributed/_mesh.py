"""The coded step on a mesh of devices, all of which run one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxwgc import _dtypes, _flat_vectors, _validation
from jaxwgc._product import product
from jaxwgc._shardings import reshard
from jaxwgc.codes import GradientCode
from jaxwgc.coding import combine, decode_round, decoding_weights, form_messages
from jaxwgc.decoders import Decoder, DecoderLike
from jaxwgc.distributed._placement import (
    PlacedParts,
    check_mesh,
    held_parts,
    workers_per_shard,
)
from jaxwgc.gradients import partial_value_and_grad, scalar_loss


def mesh_value_and_grad(
    loss: Callable[[Any, Any], Any],
    code: GradientCode,
    mesh: Mesh,
    *,
    axis: str | None = None,
    method: str = "collapsed",
    decoder: DecoderLike = None,
) -> Callable:
    """What a coded step computes, with parts and workers spread over devices.

    The result is that of `jaxwgc.decoded_value_and_grad` to rounding, for any number of
    devices, and of processes that are joined by `jax.distributed.initialize`. All of
    them run one program: a device that stops, stops all others. So the mask says whose
    answers are not used, such as in a study of stragglers, or where workers are late
    for reasons of their own (data that have not come); it does not keep a step from
    waiting for a dead device.

    Args:
      loss: `loss(params, part) -> scalar`, summed over the rows of the part.
      code: a gradient code. Not traced.
      mesh: a mesh of devices.
      axis: the axis of the mesh that workers are spread over; the first by default.
        Params may be sharded over the others.
      method: `"collapsed"` computes each part once, one after the other on a device,
        and weighs its gradient; one sum over the devices follows. `"redundant"` does
        what workers do: each computes all of its parts and forms its message, one
        worker after the other on a device, which adds up its share of the decoded
        gradient as it goes; the sum over the devices is the decoding. A device holds
        the partial gradients of one worker at a time, and no array of all messages.
        Messages are flat vectors, whole on each device that forms them, also where
        params are sharded.
      decoder: as for `jaxwgc.decoding_weights`.

    Returns:
      A function of `params` (the same on all devices, or sharded over other axes),
      `parts` (from `place_parts` with this code, mesh, axis and method) and `received`,
      or `finished` in its place (as for `jaxwgc.decoding_weights`, without batch axes).
      It returns `(value, gradient)`, the same on all devices: the scalar sum over j of
      c_j loss_j, with the effective weights c, and a pytree like params. A whole optax
      step around it goes under `jax.jit`.

    Raises:
      ValueError: where an argument breaks its rule, the mesh has no such axis, or (when
        called) parts are placed for something else or received has the wrong shape.
      TypeError: where an argument has the wrong type, loss gives no scalar of real
        floats, or params are not floats.

    Example:
      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import distributed
      >>> mesh = jax.make_mesh((jax.device_count(),), ("workers",))
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> loss = lambda params, part: jnp.sum((part @ params["w"]) ** 2)
      >>> parts = jnp.array([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 0.0]]])
      >>> placed = distributed.place_parts(parts, code, mesh, method="redundant")
      >>> step = distributed.mesh_value_and_grad(loss, code, mesh, method="redundant")
      >>> received = jnp.array([True, False, True])
      >>> value, gradient = step({"w": jnp.ones(2)}, placed, received)
      >>> gradient["w"].round(3)
      Array([20.,  8.], dtype=float32)

    References:
      The paper's section 2.2.
    """
    axis = check_mesh(code, mesh, axis, method)
    num_shards = mesh.shape[axis]
    held = held_parts(code, num_shards, method)
    decoder = code.choose_decoder(decoder)
    if method == "collapsed":
        compute = _collapsed(loss, code, mesh, axis, decoder, held)
    else:
        compute = _redundant(loss, code, mesh, axis, decoder, held)
    compute = jax.jit(compute)
    expected = tuple(map(tuple, held.tolist()))

    def step(params, parts, received=None, *, finished=None):
        _validation.check_dtypes("params", params, "real or complex floats")
        if not isinstance(parts, PlacedParts):
            raise TypeError(
                f"parts must be PlacedParts, from place_parts; got {type(parts)}"
            )
        if parts.held != expected:
            raise ValueError(
                "parts must be placed for the same code, axis and method; got those of "
                f"{len(parts.held)} shards, the first with parts {parts.held[0]}; "
                f"needs {len(expected)}, the first with {expected[0]}"
            )
        _validation.check_one_round(
            code.num_workers, received=received, finished=finished
        )
        return compute(params, parts.arrays, received, finished)

    return step


class _Found(Decoder):
    """Weights that are known."""

    found: jax.Array

    def weights(self, code: Any, mask: jax.Array) -> jax.Array:
        return self.found


def _weights_and_params(code, decoder, axis, params, received, finished):
    """Decoding weights (num_segments, num_messages), and params that come after them.

    One device finds them for all along the axis: each would find the same, and devices
    that share cores would do so one after the other. Before anything else, since
    devices that wait for each other in the middle of their work would find their caches
    empty after that.
    """

    def find():
        weights = decoding_weights(code, received, decoder, finished=finished)
        return weights.reshape(code.num_segments, code.num_messages)

    like = jax.eval_shape(find)
    is_first = jax.lax.axis_index(axis) == 0
    found = jax.lax.cond(is_first, find, lambda: jnp.zeros(like.shape, like.dtype))
    return jax.lax.optimization_barrier((jax.lax.psum(found, axis), params))


def _on_shards(function, mesh, axis, num_sharded):
    """`function(params, received, finished, *arrays)` on each shard of the arrays.

    Other axes of the mesh are left to the compiler. Axes that values vary over are not
    checked: gradients are those of a shard alone, whatever the loss is made of.
    """
    sharded = [PartitionSpec(axis)] * num_sharded
    on_shards = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*[PartitionSpec()] * 3, *sharded),
        out_specs=PartitionSpec(),
        axis_names={axis},
        check_vma=False,
    )

    def compute(params, received, finished, *arrays):
        arrivals = jax.tree.map(lambda own: reshard(own, mesh), (received, finished))
        return on_shards(params, *arrivals, *arrays)

    return compute


def _own_entries(array, axis, num_shards):
    """Those of this shard, with zeros at the end where there are too few."""
    each = -(-len(array) // num_shards)
    missing = each * num_shards - len(array)
    array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    start = jax.lax.axis_index(axis) * each
    return jax.lax.dynamic_slice_in_dim(array, start, each)


def _collapsed(loss, code, mesh, axis, decoder, held):
    value_and_grad = jax.value_and_grad(scalar_loss(loss))

    def of_part(params, part):
        return jax.tree.map(_dtypes.promoted, value_and_grad(params, part))

    def of_shard(params, received, finished, parts):
        weights, params = _weights_and_params(
            code, decoder, axis, params, received, finished
        )
        part = jax.tree.map(lambda leaf: leaf[0], parts)
        wide = jax.eval_shape(of_part, params, part)
        narrow = jax.eval_shape(value_and_grad, params, part)
        values = []

        def weighted_sum(weights):
            def add(total, task):
                part, weight = task
                own = of_part(params, part)

                def added(sums, leaf):
                    # A part that only the lost hold may be anything, NaN included.
                    leaf = jnp.where(weight == 0, 0, leaf)
                    return sums + weight.astype(sums.dtype) * leaf

                return jax.tree.map(added, total, own), None

            start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), wide)
            tasks = parts, _own_entries(weights, axis, len(held))
            total, _ = jax.lax.scan(add, start, tasks)
            value, gradient = jax.tree.map(
                lambda leaf, like: leaf.astype(like.dtype),
                jax.lax.psum(total, axis),
                narrow,
            )
            values.append(value)
            return gradient

        found = decode_round(
            code,
            received,
            finished=finished,
            partial_gradients=weighted_sum,
            decoder=_Found(weights),
        )
        # The first are those of the effective weights, others of what leaks.
        return values[0], found.gradient

    on_shards = _on_shards(of_shard, mesh, axis, 1)

    def compute(params, parts, received, finished):
        return on_shards(params, received, finished, parts)

    return compute


def _redundant(loss, code, mesh, axis, decoder, held):
    partial = partial_value_and_grad(scalar_loss(loss))
    places, rows = _tasks(code, held)

    def of_worker(params, parts, task):
        """A worker's share of the decoded gradient and of the value."""
        places, rows, weights = task
        own = jax.tree.map(lambda leaf: leaf[places], parts)
        values, gradients = partial(params, own)
        messages = form_messages(rows, gradients)
        # Those of stragglers have none, and may hold anything.
        is_used = jnp.any(weights != 0, axis=0)
        mixed = product(weights, rows.astype(weights.dtype))
        mixed = mixed.reshape(code.num_segments, len(places), code.num_segments)
        effective = jnp.diagonal(mixed.real, axis1=0, axis2=2).mean(-1)
        wide = _dtypes.promoted(values)
        value = product(effective.astype(wide.dtype), wide)
        return combine(weights, messages, is_used), jnp.where(is_used.any(), value, 0)

    def of_shard(params, received, finished, parts, places, rows):
        weights, params = _weights_and_params(
            code, decoder, axis, params, received, finished
        )
        shape = (code.num_segments, code.num_workers, code.messages_per_worker)
        weights = jnp.moveaxis(weights.reshape(shape), 1, 0)
        tasks = places, rows, _own_entries(weights, axis, len(held))

        def add(total, task):
            return jax.tree.map(jnp.add, total, of_worker(params, parts, task)), None

        first = jax.tree.map(lambda leaf: leaf[0], tasks)
        like = jax.eval_shape(of_worker, params, parts, first)
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        total, _ = jax.lax.scan(add, start, tasks)
        flat, value = jax.lax.psum(total, axis)
        values, _ = jax.eval_shape(partial, params, parts)
        return flat, value.astype(values.dtype)

    on_shards = _on_shards(of_shard, mesh, axis, 3)

    def compute(params, parts, received, finished):
        tasks = [reshard(own, mesh, axis) for own in (places, rows)]
        flat, value = on_shards(params, received, finished, parts, *tasks)
        return value, _flat_vectors.unravel(flat, params)

    return compute


def _tasks(code: GradientCode, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each worker's parts are among those of its shard, and its rows of B.

    (workers, load) and (workers, messages_per_worker, load * num_segments), with
    workers that do nothing at the end. A worker with fewer parts than others takes one
    of them again, times zero.
    """
    each = workers_per_shard(code, len(held))
    assignment = np.asarray(code.assignment)
    matrix = np.asarray(code.encoding_matrix).reshape(
        code.num_workers, code.messages_per_worker, code.num_parts, code.num_segments
    )
    most = max(1, int(assignment.sum(1).max()))
    places = np.zeros((len(held) * each, most), np.int32)
    shape = (len(places), code.messages_per_worker, most, code.num_segments)
    rows = np.zeros(shape, matrix.dtype)
    for worker, own in enumerate(map(np.flatnonzero, assignment)):
        if len(own):
            of_shard = held[worker // each]
            found = np.array([np.flatnonzero(of_shard == part)[0] for part in own])
            places[worker] = np.pad(found, (0, most - len(own)), mode="edge")
            rows[worker, :, : len(own)] = matrix[worker][:, own]
    return places, rows.reshape(*rows.shape[:2], -1)
