"""Options of decoding that aggregators and `RayCluster` share."""

import dataclasses

from jax.typing import DTypeLike

from jaxwgc._common import array_validation
from jaxwgc._common.tolerances import APPROXIMATES, DECODES
from jaxwgc.decoders import Decoder
from jaxwgc.decoders._decoder import DecoderLike


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options of decoding: the argument `decoding` of aggregators and of `RayCluster`.

    Args:
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      tolerance: A round is undecodable if the norm of aᵀB - target is above this
        fraction of the norm of the target. By default that of the decoder: 0.001, far
        above the rounding of well-conditioned codes in float32. An approximate code
        decodes hardly any round exactly: raise the tolerance to the residual that you
        accept. For decoders that are inexact on purpose, such as `OneStep`, and with
        `debias`, it is 0.999: a round is undecodable if a zero update is as near to the
        gradient. With `memory` it is 0.001: stored messages complete every round that
        is not exact.
      message_dtype: Dtype to which messages are rounded when sent, e.g. `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        multiplied by the decoding weights in the gradient. Entries that are zero up to
        this rounding become exactly zero. None sends messages unchanged.

    Raises:
      ValueError: If the tolerance is negative, or messages cannot have the dtype.
      TypeError: If an option has the wrong type.

    Example:
      A round without worker 1 counts as decoded:

      >>> import jax.numpy as jnp, jaxwgc
      >>> decoding = jaxwgc.aggregate.DecodingOptions(tolerance=0.6)
      >>> code = jaxwgc.codes.uncoded(3)
      >>> aggregate = jaxwgc.decode_aggregate(code, decoding=decoding)
      >>> params = jnp.zeros(2)
      >>> received = jnp.array([True, False, True])
      >>> gradient, state = aggregate.update(
      ...     jnp.ones((3, 2)), aggregate.init(params), params, received=received
      ... )
      >>> gradient, int(state.num_undecodable)
      (Array([2., 2.], dtype=float32), 0)
    """

    decoder: DecoderLike = None
    tolerance: float | None = None
    message_dtype: DTypeLike | None = None

    def __post_init__(self):
        if self.tolerance is not None:
            array_validation.check_number("tolerance", self.tolerance, minimum=0)
        dtype = array_validation.check_message_dtype(self.message_dtype)
        object.__setattr__(self, "message_dtype", dtype)

    def tolerance_for(
        self, decoder: Decoder, *, memory: bool, debias: str | float | None
    ) -> float:
        """Returns the largest relative residual with which a round counts as decoded.

        Args:
          decoder: Decoder of the code. Its tolerance is the default, without `memory`
            and `debias`.
          memory: Whether stored messages stand for missing ones.
          debias: Correction for lost parts.
        """
        if self.tolerance is not None:
            return self.tolerance
        if memory:
            # Stored messages complete every inexact round, even if the decoder is
            # inexact on purpose. So the tolerance is that of an exact decoder.
            return DECODES
        if debias is not None:
            return APPROXIMATES
        return decoder.tolerance
