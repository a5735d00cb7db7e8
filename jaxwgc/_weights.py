"""Decoding weights of any code, with its segments, clusters and messages.

The shapes here are those of the general case: weights
(..., num_segments, num_messages), and mixing (..., num_segments, num_parts,
num_segments), where entry (u, j, v) is the share of segment v of part j in segment u
of the decoded gradient.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxwgc import _decoders, _dtypes, _validation
from jaxwgc.codes._gradient_code import GradientCode

# Parts are decoded one and all where the weights of the code without its target, of
# ones instead, miss by no more than this share.
_DECODED = 1e-3

DECODERS = ("least_squares", "lagrange", "one_step", "peeling", "group")


def check_decoder(code: GradientCode, decoder: str | None) -> str:
    """The decoder by name, the code's own for None."""
    decoder = code.decoder if decoder is None else decoder
    _validation.check_choice("decoder", decoder, DECODERS)
    needs = {
        "least_squares": (True, ""),
        "lagrange": (
            code.point_step is not None and code.num_segments == 1,
            "evaluated at roots of unity, such as codes.reed_solomon",
        ),
        "one_step": (
            code.one_step_scale is not None,
            "whose columns add up to the same, such as codes.bernoulli",
        ),
        "peeling": (
            code.batch_size is not None,
            "of zeros and ones, such as codes.ldgm",
        ),
        "group": (
            code.groups is not None,
            "of groups of workers that send the same, such as "
            "codes.fractional_repetition",
        ),
    }
    fits, kind = needs[decoder]
    if not fits:
        raise ValueError(f"decoder {decoder!r} needs a code {kind}; got {code}")
    if decoder != "least_squares" and code.messages_per_worker > 1:
        raise ValueError(
            "a code of several messages a worker needs decoder 'least_squares'; got "
            f"decoder = {decoder!r} and {code}"
        )
    return decoder


def check_received(code: GradientCode, received: Any) -> jax.Array:
    """A bool mask (..., num_workers), or integers for a code of several messages."""
    given, dtype = received, _dtypes.dtype_of(received)
    several = code.messages_per_worker > 1
    if not (dtype == np.bool_ or (several and jnp.issubdtype(dtype, jnp.integer))):
        also = ", or the number of parts that each has finished" if several else ""
        raise TypeError(
            f"received must be a bool mask of the workers that answered{also}; got "
            f"{dtype}"
        )
    received = jnp.asarray(received)
    if received.ndim == 0 or received.shape[-1] != code.num_workers:
        raise ValueError(
            f"received must have shape (..., num_workers) with num_workers = "
            f"{code.num_workers}; got {received.shape}"
        )
    if several and not _validation.is_traced(given, code.assignment):
        counts, loads = np.asarray(given), np.asarray(code.loads)
        if dtype != np.bool_ and np.any((counts < 0) | (counts > loads)):
            raise ValueError(
                "received must count parts from 0 to those that the worker holds, "
                f"{loads.tolist()}; got {counts.tolist()}"
            )
    by_batch = _sharding_by_batch(received, 1)
    if by_batch is not None and jax.typeof(received).sharding.spec[-1] is not None:
        received = jax.sharding.reshard(received, by_batch)
    return received


def _sharding_by_batch(masks: jax.Array, num_axes: int) -> NamedSharding | None:
    """That of the batch axes of `masks`, with `num_axes` more that are whole.

    None where masks have no sharding in their type.
    """
    sharding = jax.typeof(masks).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    spec = PartitionSpec(*sharding.spec[:-1], *[None] * num_axes)
    return NamedSharding(sharding.mesh, spec)


def check_one_round(code: GradientCode, received: Any) -> jax.Array:
    """The same with no batch axes."""
    received = check_received(code, received)
    if received.ndim != 1:
        raise ValueError(
            f"received must have shape (num_workers,) = ({code.num_workers},); got "
            f"{received.shape}"
        )
    return received


def answered(code: GradientCode, received: jax.Array) -> jax.Array:
    """Which workers have sent all that they send, bool (..., num_workers)."""
    if received.dtype == np.bool_:
        return received
    return received == jnp.asarray(code.loads)


def message_mask(code: GradientCode, received: jax.Array) -> jax.Array:
    """Which messages have arrived, bool (..., num_messages)."""
    if code.messages_per_worker == 1:
        return received
    if received.dtype == np.bool_:
        return jnp.repeat(received, code.messages_per_worker, axis=-1)
    # A traced count of more parts than there are is no answer.
    possible = received <= jnp.asarray(code.loads)
    arrived = received[..., None] >= jnp.asarray(code.required_parts)
    arrived &= possible[..., None]
    return arrived.reshape(*received.shape[:-1], code.num_messages)


def solve(code: GradientCode, mask: jax.Array, decoder: str) -> jax.Array:
    """Decoding weights for the messages that have arrived, constants to `jax.grad`."""
    matrix = jax.lax.stop_gradient(working(code.encoding_matrix))
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    target = jax.lax.stop_gradient(working(code.target)).astype(matrix.dtype)
    # Tiny or huge weights would under- or overflow in squares. Dividing both leaves the
    # decoding weights as they are.
    scale = target_scale(code).astype(matrix.dtype)
    matrix, target = matrix / scale, target / scale
    assignment = jnp.asarray(code.assignment)
    decode = functools.partial(_solve_clusters, code, decoder)
    by_batch = _sharding_by_batch(mask, 2)
    if by_batch is not None:
        # Inside, where masks go side by side and are sorted, the compiler may choose.
        decode = jax.sharding.auto_axes(out_sharding=by_batch)(decode)
    return decode(mask, matrix, assignment, target)


class _Plan(NamedTuple):
    """What `_part_by_part` is compiled for; `point_step` for Lagrange's weights."""

    num_segments: int
    num_stragglers: int
    messages_per_worker: int
    point_step: int | None
    is_even: bool


def _solve_clusters(code, decoder, mask, matrix, assignment, target):
    """The same, cluster by cluster."""
    decode = functools.partial(_solve_cluster, code, decoder)
    clusters = code.num_clusters
    if clusters == 1:
        return decode(mask, matrix, assignment, target)
    masks = mask.reshape(*mask.shape[:-1], clusters, -1)
    decode_all = jax.vmap(decode, in_axes=(-2, 0, 0, 0), out_axes=-2)
    weights = decode_all(
        masks,
        _diagonal_blocks(matrix, clusters),
        _diagonal_blocks(assignment, clusters),
        target.reshape(clusters, -1),
    )
    return weights.reshape(*weights.shape[:-2], code.num_messages)


def working(array: Any) -> jax.Array:
    """`array` in JAX, in no more than its working precision.

    An array of JAX made in double precision keeps it where that is switched off, but
    nothing computes with it there.
    """
    return jnp.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def _diagonal_blocks(matrix, count):
    rows, columns = (size // count for size in matrix.shape)
    index = np.arange(count)
    return matrix.reshape(count, rows, count, columns)[index, :, index, :]


def _solve_cluster(code, decoder, mask, matrix, assignment, target):
    """The same for one cluster of `code`, whose arrays are given."""
    if decoder in ("least_squares", "lagrange"):
        sizes = np.abs(code.target) if isinstance(code.target, np.ndarray) else [0, 1]
        plan = _Plan(
            code.num_segments,
            code.num_stragglers,
            code.messages_per_worker,
            code.point_step if decoder == "lagrange" else None,
            is_even=bool(np.ptp(sizes) == 0),
        )
        return _part_by_part(plan, mask, matrix, target)
    if decoder == "one_step":
        weights = _decoders.one_step(mask, code.one_step_scale, code.one_step_shared)
    elif decoder == "peeling":
        weights = _decoders.peeling(mask, assignment[:, :: code.batch_size])
    else:
        weights = _decoders.group(mask, code.groups, assignment, target)
    return weights.astype(matrix.dtype)


@functools.partial(jax.jit, static_argnames=("plan",))
def _part_by_part(plan, mask, matrix, target):
    """Weights that decode every part, however much it counts, or else the nearest.

    The code is decoded as if its target were ones: where that works, no part is lost
    in the rounding of heavier ones (the paper's theorem 4.1). Where it does not, what
    can be had is fitted to the target itself.
    """
    parts = jnp.where(target == 0, 1, target)
    plain_matrix = matrix / jnp.repeat(parts, plan.num_segments)
    plain_target = segment_target(target / parts, plan.num_segments)
    if plan.point_step is not None:
        weights = _decoders.lagrange_or_least_squares(
            mask, plain_matrix, plain_target, plan.num_stragglers, plan.point_step
        )
    else:
        decodable = False
        if plan.num_stragglers > 0:
            by_worker = mask.reshape(*mask.shape[:-1], -1, plan.messages_per_worker)
            decodable = (~by_worker.all(-1)).sum(-1) <= plan.num_stragglers
        weights = _decoders.least_squares(mask, plain_matrix, plain_target, decodable)
    if plan.is_even:
        return weights
    sizes = jnp.abs(target)
    miss = _decoders.relative_miss(weights, plain_matrix, plain_target)
    lost = ~(miss <= _DECODED) & (sizes.max() > sizes.min())

    def fit():
        target_rows = segment_target(target, plan.num_segments)
        nearest = _decoders.least_squares(mask, matrix, target_rows)
        return jnp.where(lost[..., None, None], nearest, weights)

    return jax.lax.cond(_decoders.in_any_lane(lost.any()), fit, lambda: weights)


def target_scale(code: GradientCode) -> jax.Array:
    """The largest entry of the target, or one where all are zero; a real scalar."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(working(code.target))))
    return jnp.where(largest > 0, largest, 1)


def segment_target(target: jax.Array, num_segments: int) -> jax.Array:
    """What a^T B should be, (num_segments, num_parts * num_segments)."""
    if num_segments == 1:
        return target[None]
    each = target[:, None] * jnp.eye(num_segments, dtype=target.dtype)[:, None, :]
    return each.reshape(num_segments, -1)


def mixing(code: GradientCode, weights: jax.Array) -> jax.Array:
    """a^T B, complex for a complex code."""
    mixed = _decoders.product(weights, working(code.encoding_matrix))
    return mixed.reshape(*mixed.shape[:-1], code.num_parts, code.num_segments)


def effective(mixing: jax.Array) -> jax.Array:
    """What multiplies each partial gradient, real (..., num_parts).

    The mean over the segments, each of which has its own weights.
    """
    return jnp.diagonal(mixing.real, axis1=-3, axis2=-1).mean(-1)


def leakage(mixing: jax.Array) -> jax.Array:
    """What remains of `mixing` when every segment has the effective weights."""
    identity = jnp.eye(mixing.shape[-1])[:, None, :]
    own = effective(mixing)[..., None, :, None] * identity
    return mixing - own.astype(mixing.dtype)


def squared_error(
    code: GradientCode, mixing: jax.Array, scale: jax.typing.ArrayLike = 1
) -> jax.Array:
    """The squared norm of (a^T B - target) / scale, real (...).

    The mean over the segments.
    """
    num_segments = code.num_segments
    target = segment_target(working(code.target), num_segments)
    miss = (mixing - target.reshape(mixing.shape[-3:])) / scale
    return jnp.sum(miss.real**2 + miss.imag**2, axis=(-3, -2, -1)) / num_segments
