"""Every part decoded alike, however much it counts."""

import abc
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc._dtypes import working
from jaxwgc._some_masks import in_any_lane
from jaxwgc._targets import segment_target, target_scale
from jaxwgc.decoders._accuracy import relative_miss
from jaxwgc.decoders._decoder import Decoder
from jaxwgc.decoders._nearest_weights import Rows, nearest_weights

# Parts are decoded one and all where the weights of the code without its target, of
# ones instead, miss by no more than this share.
_DECODED = 1e-3


class PartByPart(Decoder):
    """Decodes a weighted code as the code itself, for which all parts count alike.

    So the error of each part is relative to its own weight, and no part is lost in the
    rounding of heavier ones (the paper's theorem 4.1). Where that misses by more than a
    thousandth, what can be had is fitted to the target itself.
    """

    is_optimal: ClassVar[bool] = True

    @abc.abstractmethod
    def _first_weights(
        self,
        rows: Rows,
        is_plain: bool | jax.Array,
        num_stragglers: int | jax.Array,
        shape: int,
    ) -> tuple[jax.Array, jax.Array]:
        """Weights, as near as they come without decomposing a mask.

        Args:
          rows: those of the code, and the target.
          is_plain: whether the target is one of ones: True, or a traced bool.
          num_stragglers: what the code survives, traced.
          shape: what `_shape` gives.

        Returns:
          (..., num_segments, num_messages), times norms, and bool (...), the masks to
          decompose.
        """

    def _shape(self, code: Any) -> int:
        """What shapes inside depend on besides those of code and mask.

        Codes that differ in num_stragglers alone otherwise share what is compiled.
        """
        del code
        return 0

    def weights(self, code: Any, mask: jax.Array) -> jax.Array:
        matrix, target = working(code.encoding_matrix), working(code.target)
        sizes = np.abs(code.target) if isinstance(code.target, np.ndarray) else [0, 1]
        return _decode(
            self,
            mask,
            matrix,
            target,
            code.num_stragglers,
            shape=self._shape(code),
            num_segments=code.num_segments,
            messages_per_worker=code.messages_per_worker,
            is_even=bool(np.ptp(sizes) == 0),
        )


@functools.partial(
    jax.jit,
    static_argnames=(
        "shape",
        "num_segments",
        "messages_per_worker",
        "is_even",
    ),
)
def _decode(
    decoder: PartByPart,
    mask: jax.Array,
    matrix: jax.Array,
    target: jax.Array,
    num_stragglers: int | jax.Array,
    shape: int,
    num_segments: int,
    messages_per_worker: int,
    is_even: bool,
) -> jax.Array:
    matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    # Dividing both leaves the decoding weights as they are.
    scale = target_scale(target).astype(matrix.dtype)
    matrix, target = matrix / scale, target.astype(matrix.dtype) / scale
    parts = jnp.where(target == 0, 1, target)
    plain_matrix = matrix / jnp.repeat(parts, num_segments)
    plain_target = segment_target(target / parts, num_segments)
    num_workers = mask.shape[-1] // messages_per_worker
    by_worker = mask.reshape(*mask.shape[:-1], num_workers, messages_per_worker)
    num_lost = (~by_worker.all(-1)).sum(-1)
    is_decodable = (num_lost <= num_stragglers) & (num_stragglers > 0)

    def nearest(is_plain, matrix, target):
        def first(rows):
            return decoder._first_weights(rows, is_plain, num_stragglers, shape)

        return nearest_weights(mask, matrix, target, is_decodable & is_plain, first)

    if is_even:
        return nearest(True, plain_matrix, plain_target)
    sizes = jnp.abs(target)
    own_target = segment_target(target, num_segments)

    def fit(state):
        is_plain, is_lost, weights, _ = state
        found = nearest(
            is_plain,
            jnp.where(is_plain, plain_matrix, matrix),
            jnp.where(is_plain, plain_target, own_target),
        )
        weights = jnp.where(is_lost[..., None, None], found, weights)
        miss = relative_miss(weights, plain_matrix, plain_target)
        is_lost = ~(miss <= _DECODED) & (sizes.max() > sizes.min())
        return jnp.array(False), is_lost, weights, is_plain & any_lane(is_lost)

    def any_lane(condition):
        return in_any_lane(condition.any())

    # A loop of one step or two, since two copies of all this are a program of twice the
    # size. Made of the mask, what it starts from varies with the device as that does
    # under shard_map.
    every = mask[..., 0] | True
    zeros = jnp.zeros((num_segments, 1), matrix.dtype)
    weights = jnp.where(mask[..., None, :], zeros, 0)
    start = jnp.array(True), every, weights, any_lane(every)
    return jax.lax.while_loop(lambda state: state[-1], fit, start)[2]
