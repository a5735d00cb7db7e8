"""Options of decoding that all aggregators share."""

import dataclasses

from jax.typing import DTypeLike

from jaxwgc._common import array_validation, validation
from jaxwgc._common.tolerances import APPROXIMATES, DECODES
from jaxwgc.decoders import Decoder, DecoderLike


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Options of decoding, of an aggregator or of `jaxwgc.distributed.RayCluster`.

    `jaxwgc.decode_aggregate` and `jaxwgc.coded_aggregate` take them as keywords.

    Args:
      undecodable: Result of a round that cannot be decoded: `"least_squares"` takes the
        nearest gradient that the responses give, `"skip"` a zero update. `"raise"`, for
        a `RayCluster` only, raises an error that names the missing workers.
      tolerance: A round is undecodable if the norm of aᵀB - target is above this
        fraction of the norm of the target. By default that of the decoder, with
        `debias` 0.999, and with `memory` 0.001.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      message_dtype: Dtype to which messages are rounded when sent, e.g. `"bfloat16"`:
        half the bytes, and a relative error of up to 2^-8 in every entry of a message,
        multiplied by the decoding weights in the gradient. None sends messages
        unchanged.
      memory: Whether to use stored messages for missing ones. Only for aggregators:
        `RayCluster.train` has its own argument.
      debias: Correction for lost parts: `"share"`, or the mean weight of partial
        gradients. Only for aggregators: `RayCluster.train` has its own argument.
      correct_errors: Whether to locate and exclude corrupted messages. Only for
        aggregators: a `RayCluster` takes a `jaxwgc.distributed.Verification`.
      noise: Difference of honest copies of a message, relative to its norm, if it is
        larger than rounding.

    Raises:
      ValueError: If an option has an invalid value, or memory is combined with one of
        debias, correct_errors and `"skip"`.
      TypeError: If an option has the wrong type.

    Example:
      >>> import jaxwgc
      >>> options = jaxwgc.aggregate.DecodingOptions(tolerance=0.1)
      >>> options.tolerance, options.undecodable
      (0.1, 'least_squares')
    """

    undecodable: str = "least_squares"
    tolerance: float | None = None
    decoder: DecoderLike = None
    message_dtype: DTypeLike | None = None
    memory: bool = False
    debias: str | float | None = None
    correct_errors: bool = False
    noise: float = 0.0

    def __post_init__(self):
        choices = ("least_squares", "skip", "raise")
        validation.check_choice("undecodable", self.undecodable, choices)
        if self.tolerance is not None:
            array_validation.check_number("tolerance", self.tolerance, minimum=0)
        dtype = array_validation.check_message_dtype(self.message_dtype)
        object.__setattr__(self, "message_dtype", dtype)
        if isinstance(self.debias, str):
            validation.check_choice("debias", self.debias, ("share",))
        elif self.debias is not None:
            array_validation.check_number("debias", self.debias, positive=True)
        validation.check_bool("correct_errors", self.correct_errors)
        array_validation.check_number("noise", self.noise, minimum=0, finite=True)
        if not validation.check_bool("memory", self.memory):
            return
        if self.correct_errors:
            raise ValueError(
                "correct_errors must be False with memory: a late message arrives "
                "alone, without checks; got True"
            )
        if self.undecodable == "skip":
            raise ValueError('undecodable must not be "skip" with memory; got skip')
        if self.debias is not None:
            raise ValueError(f"debias must be None with memory; got {self.debias}")

    def tolerance_for(self, decoder: Decoder) -> float:
        """Returns the largest relative residual with which a round counts as decoded.

        Args:
          decoder: Decoder of the code. Its tolerance is the default, without `memory`
            and `debias`.
        """
        if self.tolerance is not None:
            return self.tolerance
        if self.memory:
            # Stored messages complete every round that is not exact, also that of a
            # decoder that is inexact on purpose.
            return DECODES
        if self.debias is not None:
            return APPROXIMATES
        return decoder.tolerance
