"""One-step decoding: equal weights for all responses."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc._pytrees import Static
from jaxwgc.decoders._decoder import Array, Decoder


class OneStep(Decoder):
    """Equal weights for all responses, scaled to be unbiased.

    For codes with about equally many copies of each part.

    Attributes:
      scale: Sum of the weights, or each weight.
      shared: Whether `scale` is the sum, divided among the responses.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, False, False, True])
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.OneStep)
      Array([1., 0., 0., 1.], dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017.
    """

    scale: jax.typing.ArrayLike
    shared: Static[bool] = True

    needs: ClassVar[str] = "with equal column sums, such as codes.bernoulli"

    def check(self, matrix: Array, target: Array) -> None:
        self.check_one_segment(target)
        _validation.check_number("scale", self.scale)
        _validation.check_bool("shared", self.shared)

    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        weight = jnp.asarray(self.scale, jnp.result_type(float))
        if self.shared:
            weight = weight / jnp.maximum(mask.sum(-1, keepdims=True), 1)
        return jnp.where(mask, weight, 0)[..., None, :]
