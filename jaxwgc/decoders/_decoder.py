"""What every decoder is: a small pytree that finds the weights of messages."""

import abc
import dataclasses
from typing import Any, ClassVar, NoReturn, dataclass_transform

import jax

from jaxwgc._pytrees import register


@dataclass_transform(frozen_default=True)
class Decoder(abc.ABC):
    """How decoding weights are found.

    A decoder owns what it needs besides the code, so that anyone can write one: a
    subclass is made a frozen dataclass and a pytree as it is defined. Fields are arrays
    (or pytrees of them), unless annotated as `Static[int]` or the like, which makes
    them part of the structure.

    Attributes:
      needs: what kind of code it decodes, for the message where a code has no decoder
        of a class.
      is_optimal: whether no other weights miss the target by less.

    Example:
      Weights no larger than a limit, so that no message is amplified by more:

      >>> import jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import decoders
      >>> class Clipped(decoders.Decoder):
      ...     inner: decoders.Decoder
      ...     limit: float
      ...
      ...     def weights(self, code, mask):
      ...         return jnp.clip(self.inner.weights(code, mask), max=self.limit)
      >>> code = jaxwgc.codes.uncoded(3)
      >>> received = jnp.array([True, True, False])
      >>> decoder = Clipped(decoders.LeastSquares(), limit=0.5)
      >>> jaxwgc.decoding_weights(code, received, decoder)
      Array([0.5, 0.5, 0. ], dtype=float32)
    """

    needs: ClassVar[str] = "that names it among its decoders"
    is_optimal: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        register(dataclasses.dataclass(frozen=True)(cls))

    @abc.abstractmethod
    def weights(self, code: Any, mask: jax.Array) -> jax.Array:
        """Decoding weights for the messages that have arrived.

        Args:
          code: a `jaxwgc.GradientCode`; its arrays are constants to `jax.grad`.
          mask: bool (..., num_messages), at least one axis.

        Returns:
          (..., num_segments, num_messages). Whatever stands at messages that have not
          arrived is taken for zero.
        """

    def check(self, code: Any) -> None:
        """Raises ValueError, naming the rule, where it cannot decode the code.

        Of the shapes and static fields of a code; its entries may be traced.
        """
        del code

    def is_a(self, kind: type["Decoder"]) -> bool:
        """Whether it decodes in the way of that class."""
        return isinstance(self, kind)

    def __str__(self) -> str:
        return type(self).__name__


def choose_decoder(code: Any, decoder: Any) -> Decoder:
    """The code's first decoder for None, its own of a class, or the one that is given.

    A class whose decoders have no fields needs none of the code's.
    """
    if decoder is None:
        if not code.decoders:
            raise ValueError(f"decoder must be given, since the code has none: {code}")
        decoder = code.decoders[0]
    elif isinstance(decoder, type) and issubclass(decoder, Decoder):
        own = code.decoders_of(decoder)
        decoder = own[0] if own else _without_fields(decoder, code)
    elif not isinstance(decoder, Decoder):
        raise TypeError(
            "decoder must be a jaxwgc.decoders.Decoder, or a class of them for the "
            f"code's own; got {decoder!r}"
        )
    decoder.check(code)
    return decoder


def _without_fields(kind: type[Decoder], code: Any) -> Decoder:
    if dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        refuse(kind, code)
    return kind()


def refuse(kind: type[Decoder], code: Any) -> NoReturn:
    """Says which codes a class of decoders is for."""
    raise ValueError(f"decoder {kind.__name__} needs a code {kind.needs}; got {code}")
