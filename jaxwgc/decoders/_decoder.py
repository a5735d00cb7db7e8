"""The base class of decoders: small pytrees that find the weights of messages."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NoReturn, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import sharding_by_batch, working, working_constants
from jaxwgc._pytrees import register
from jaxwgc._targets import target_scale
from jaxwgc.decoders._accuracy import relative_miss

Array: TypeAlias = jax.Array | np.ndarray


@dataclass_transform(frozen_default=True)
class Decoder(abc.ABC):
    """Finds decoding weights, from arrays alone.

    A decoder owns what it needs besides the matrix and the target, so that anyone can
    write one: a subclass is made a frozen dataclass and a pytree as it is defined,
    without a decorator; what it does when it is made, it does with tracers too. Fields
    are arrays (or pytrees of them), unless annotated as `Static[int]` or the like,
    which makes them part of the structure.

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
      ...     def weights(self, matrix, target, mask):
      ...         weights = self.inner.weights(matrix, target, mask)
      ...         return jnp.clip(weights, max=self.limit)
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
    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        """Returns decoding weights for the messages that have arrived.

        Args:
          matrix: B, real or complex (num_messages, columns), a column for each segment
            of each part.
          target: real (num_segments, columns), what aᵀB should be. Both are NumPy's
            where they are known, and constants to `jax.grad`.
          mask: bool (..., num_messages), at least one axis.

        Returns:
          (..., num_segments, num_messages). Whatever stands at messages that have not
          arrived is taken for zero.
        """

    def checked_weights(
        self, matrix: Array, target: Array, mask: jax.Array
    ) -> jax.Array:
        """Returns `weights` if they are of the right shape, zero at missing messages.

        In at least float32, constants to `jax.grad`.
        """
        constant, matrix, target = working_constants((self, matrix, target))

        def find(mask: jax.Array) -> jax.Array:
            weights = constant.weights(matrix, target, mask)
            return constant._checked(weights, matrix, target, mask)

        by_batch = sharding_by_batch(mask, 2)
        if by_batch is not None:
            # Inside, where masks go side by side and are sorted, the compiler may
            # choose.
            find = jax.sharding.auto_axes(out_sharding=by_batch)(find)
        return find(mask)

    def _checked(self, weights, matrix, target, mask):
        kind = "numbers" if jnp.iscomplexobj(matrix) else "real numbers"
        name, axes = f"weights of {self}", "(..., num_segments, num_messages)"
        weights = _validation.as_array(name, weights, f"{kind} or bools")
        expected = (*mask.shape[:-1], len(target), len(matrix))
        _validation.check_shape(name, weights, axes, expected)
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        return _at_answers(weights, mask, dtype)

    def decodes(
        self,
        matrix: Array,
        target: Array,
        mask: jax.Array,
        tolerance: jax.typing.ArrayLike,
    ) -> jax.Array:
        """Returns whether messages are enough to decode, bool (...).

        By their weights; a decoder may know without them.

        Args:
          matrix: as for `weights`.
          target: as for `weights`.
          mask: as for `weights`.
          tolerance: how much the norm of aᵀB - target may be of that of the target.
        """
        weights = self.checked_weights(matrix, target, mask)
        return _is_near(weights, working(matrix), working(target), tolerance)

    def check(self, matrix: Array, target: Array) -> None:
        """Raises ValueError, naming the rule, where it cannot decode these arrays.

        Shapes are there in any case; entries may be traced.
        """
        del matrix, target

    def interpolation(self, mask: jax.Array) -> tuple[jax.Array, Array, int] | None:
        """Returns how polynomials are interpolated, if messages are values of them.

        That is more structure than the matrix shows.

        Args:
          mask: bool (num_messages,), the messages that are there.

        Returns:
          Weights (num_messages,) that give the value at 0, zero at missing messages;
          the points, complex (num_messages,); and the number of coefficients.
        """
        del mask
        return None

    def is_a(self, kind: type["Decoder"]) -> bool:
        """Returns whether it decodes in the way of that class."""
        return isinstance(self, kind)

    @classmethod
    def refuse(cls, given: Any) -> NoReturn:
        """Says which codes it is for."""
        name = cls.__name__
        raise ValueError(f"decoder {name} needs a code {cls.needs}; got {given}")

    def check_matrix(self, is_right: Any, matrix: Array) -> None:
        """Raises ValueError for an encoding matrix that it cannot decode."""
        if not is_right:
            self.refuse(f"an encoding matrix {matrix.shape} for {self}")

    def check_one_segment(self, target: Array) -> None:
        """Raises ValueError for a code whose messages are shorter than the gradient."""
        rule = f"be 1 for the decoder {self}"
        _validation.require(len(target) == 1, "num_segments", rule, len(target))

    def __str__(self) -> str:
        return type(self).__name__


@functools.partial(jax.jit, static_argnames="dtype")
def _at_answers(weights, mask, dtype):
    """Decoding weights in a dtype, and zero at messages that have not arrived."""
    return jnp.where(mask[..., None, :], weights.astype(dtype), 0)


@jax.jit
def _is_near(weights, matrix, target, tolerance):
    scale = target_scale(target)
    miss = relative_miss(weights, matrix / scale, target / scale)
    return miss <= tolerance


# A decoder, a class for the code's own of that class, or None for the code's first.
DecoderLike: TypeAlias = Decoder | type[Decoder] | None
