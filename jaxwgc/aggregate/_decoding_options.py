"""Options of decoding for real workers."""

import dataclasses
from typing import Any

from jaxwgc import _validation
from jaxwgc.decoders import DecoderLike


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options of decoding in `jaxwgc.distributed.RayCluster`.

    Args:
      undecodable: Result of a round that cannot be decoded. `"least_squares"` and
        `"skip"` are explained in `jaxwgc.decode_aggregate`. `"raise"` raises an error
        that names the missing workers.
      tolerance: See `jaxwgc.decode_aggregate`.
      decoder: See `jaxwgc.decoding_weights`.
      message_dtype: Dtype to which messages are rounded when sent, e.g. `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        multiplied by the decoding weights in the gradient. None sends messages
        unchanged.

    Example:
      >>> import jaxwgc
      >>> jaxwgc.aggregate.DecodingOptions(undecodable="raise").tolerance
      0.001
    """

    undecodable: str = "least_squares"
    tolerance: float = 1e-3
    decoder: DecoderLike = None
    message_dtype: Any = None

    def __post_init__(self):
        choices = ("least_squares", "skip", "raise")
        _validation.check_choice("undecodable", self.undecodable, choices)
        dtype = _validation.check_message_dtype(self.message_dtype)
        object.__setattr__(self, "message_dtype", dtype)
