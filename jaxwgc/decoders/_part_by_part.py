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
from jaxwgc.decoders._nearest_weights import nearest_weights

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
    def _plain_weights(
        self, mask, matrix, target, num_lost, num_stragglers, shape
    ) -> jax.Array:
        """Weights for a target of ones.

        Args:
          mask: bool (..., num_messages).
          matrix: (num_messages, c).
          target: (num_segments, c).
          num_lost: int (...), workers whose messages have not all arrived.
          num_stragglers: what the code survives, traced.
          shape: what `_shape` gives.

        Returns:
          (..., num_segments, num_messages).
        """

    def _shape(self, code: Any) -> int:
        """What shapes inside depend on besides those of code and mask.

        Codes that differ in num_stragglers alone otherwise share what is compiled.
        """
        del code
        return 0

    def weights(self, code: Any, mask: jax.Array) -> jax.Array:
        matrix, target = working(code.encoding_matrix), working(code.target)
        matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        # Dividing both leaves the decoding weights as they are.
        scale = target_scale(target).astype(matrix.dtype)
        sizes = np.abs(code.target) if isinstance(code.target, np.ndarray) else [0, 1]
        return _decode(
            self,
            mask,
            matrix / scale,
            target.astype(matrix.dtype) / scale,
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
    num_stragglers: jax.typing.ArrayLike,
    shape: int,
    num_segments: int,
    messages_per_worker: int,
    is_even: bool,
) -> jax.Array:
    parts = jnp.where(target == 0, 1, target)
    plain_matrix = matrix / jnp.repeat(parts, num_segments)
    plain_target = segment_target(target / parts, num_segments)
    num_workers = mask.shape[-1] // messages_per_worker
    by_worker = mask.reshape(*mask.shape[:-1], num_workers, messages_per_worker)
    num_lost = (~by_worker.all(-1)).sum(-1)
    weights = decoder._plain_weights(
        mask, plain_matrix, plain_target, num_lost, num_stragglers, shape
    )
    if is_even:
        return weights
    sizes = jnp.abs(target)
    miss = relative_miss(weights, plain_matrix, plain_target)
    is_lost = ~(miss <= _DECODED) & (sizes.max() > sizes.min())

    def fit():
        nearest = nearest_weights(mask, matrix, segment_target(target, num_segments))
        return jnp.where(is_lost[..., None, None], nearest, weights)

    return jax.lax.cond(in_any_lane(is_lost.any()), fit, lambda: weights)
