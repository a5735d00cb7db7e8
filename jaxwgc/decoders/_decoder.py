"""What every decoder is: a small pytree that finds the weights of messages."""

import abc
import dataclasses
from typing import Any, ClassVar, NoReturn, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp

from jaxwgc import _validation
from jaxwgc._pytrees import register


@dataclass_transform(frozen_default=True)
class Decoder(abc.ABC):
    """How decoding weights are found.

    A decoder owns what it needs besides the code, so that anyone can write one: a
    subclass is made a frozen dataclass and a pytree as it is defined, without a
    decorator; what it does when it is made, it does with tracers too. Fields are arrays
    (or pytrees of them), unless annotated as `Static[int]` or the like, which makes
    them part of the structure.

    Attributes:
      needs: what kind of code it decodes, for the message where a code has no decoder
        of a class.
      is_optimal: whether no other weights miss the target by less, on which the search
        for worst patterns relies. False for a subclass with `weights` of its own,
        unless it says so itself.

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
        # Other weights than those of the class above need not be optimal.
        if "weights" in vars(cls) and "is_optimal" not in vars(cls):
            cls.is_optimal = False
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

    def checked_weights(self, code: Any, mask: jax.Array) -> jax.Array:
        """`weights`, if they are numbers of the right shape."""
        weights = _validation.as_array("weights of a decoder", self.weights(code, mask))
        _validation.check_dtypes(f"weights of {self}", weights, "numbers or bools")
        expected = (*mask.shape[:-1], code.num_segments, code.num_messages)
        if weights.shape != expected:
            raise ValueError(
                "weights of a decoder must have shape (..., num_segments, "
                f"num_messages) = {expected}; got {weights.shape} from {self}"
            )
        if jnp.iscomplexobj(weights) and not code.is_complex:
            raise TypeError(
                f"weights of a decoder must be real for {code}; got {weights.dtype} "
                f"from {self}"
            )
        return jnp.asarray(weights)

    def check(self, code: Any) -> None:
        """Raises ValueError, naming the rule, where it cannot decode the code.

        Of the shapes and static fields of a code; its entries may be traced.
        """
        del code

    def check_entries(self, code: Any) -> None:
        """The same of a code's entries, where it is not the code's own decoder.

        Called where they are NumPy's; others may be traced.
        """
        del code

    def is_a(self, kind: type["Decoder"]) -> bool:
        """Whether it decodes in the way of that class."""
        return isinstance(self, kind)

    @classmethod
    def refuse(cls, code: Any) -> NoReturn:
        """Says which codes it is for."""
        raise ValueError(f"decoder {cls.__name__} needs a code {cls.needs}; got {code}")

    def __str__(self) -> str:
        return type(self).__name__


# A decoder, a class for the code's own of that class, or None for the code's first.
DecoderLike: TypeAlias = Decoder | type[Decoder] | None
