"""Weighted codes decoded as the codes themselves, in which all parts count alike."""

import abc
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._some_masks import any_under_vmap
from jaxwgc._targets import DECODES, target_scale
from jaxwgc.decoders._accuracy import relative_miss
from jaxwgc.decoders._decoder import Array, Decoder
from jaxwgc.decoders._nearest_weights import Rows, nearest_weights


class UniformTarget(Decoder):
    """Decodes a weighted code as the code itself, for which all parts count alike.

    So the error of each part is relative to its own weight, and no part is lost in the
    rounding of heavier ones (the paper's theorem 4.1). Where that misses by more than a
    thousandth, what can be had is fitted to the target itself.
    """

    is_optimal: ClassVar[bool] = True

    @abc.abstractmethod
    def first_weights(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """Returns weights found without decomposing a mask, and which masks need that.

        Args:
          rows: those of the code, and the target.

        Returns:
          (..., num_segments, num_messages), and bool (...), the masks to
          decompose.
        """

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        sizes = np.abs(target).sum(0) if isinstance(target, np.ndarray) else [0, 1]
        is_even = bool(np.ptp(sizes) == 0)
        return _decode(self, mask, matrix, target, is_even)


@functools.partial(jax.jit, static_argnames="is_even")
def _decode(
    decoder: UniformTarget,
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    is_even: bool,
) -> jax.Array:
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    # Dividing both leaves the decoding weights as they are.
    scale = target_scale(target).astype(matrix.dtype)
    matrix, target = matrix / scale, target.astype(matrix.dtype) / scale
    # Each column belongs to one segment.
    columns = target.sum(0)
    columns = jnp.where(columns == 0, 1, columns)
    plain_matrix, plain_target = matrix / columns, target / columns

    def nearest(is_plain, matrix, target):
        return nearest_weights(decoder.first_weights, mask, matrix, target, is_plain)

    if is_even:
        return nearest(True, plain_matrix, plain_target)
    sizes = jnp.abs(target).sum(0)

    def fit(state):
        is_plain, is_lost, weights, _ = state
        fitted = nearest(
            is_plain,
            jnp.where(is_plain, plain_matrix, matrix),
            jnp.where(is_plain, plain_target, target),
        )
        weights = jnp.where(is_lost[..., None, None], fitted, weights)
        miss = relative_miss(weights, plain_matrix, plain_target)
        is_lost = ~(miss <= DECODES) & (sizes.max() > sizes.min())
        return jnp.array(False), is_lost, weights, is_plain & any_lane(is_lost)

    def any_lane(condition):
        return any_under_vmap(condition.any())

    # A loop of one step or two, since two copies of all this are a program of twice the
    # size. Made of the mask, what it starts from varies with the device as that does
    # under shard_map.
    every = mask[..., 0] | True
    zeros = jnp.zeros((len(target), 1), matrix.dtype)
    weights = jnp.where(mask[..., None, :], zeros, 0)
    start = jnp.array(True), every, weights, any_lane(every)
    return jax.lax.while_loop(lambda state: state[-1], fit, start)[2]
