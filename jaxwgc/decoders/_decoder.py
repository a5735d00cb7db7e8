"""Base class of decoders, which compute the weights of messages."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple, TypeAlias, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common.arrays import (
    Array,
    dtype_of,
    scale_of,
    sharding_by_batch,
    working,
    working_constant,
)
from jaxwgc._common.bisection import first_true
from jaxwgc._common.pytrees import register
from jaxwgc._common.tolerances import APPROXIMATES, DECODES
from jaxwgc.decoders._systems import System


class Interpolation(NamedTuple):
    """Points of messages that are values of polynomials, to interpolate at 0.

    Attributes:
      weights: Weights that give the value at 0, (num_messages,), zero at missing
        messages.
      powers: Powers 0, 1, ..., c of the points of the values, complex (c + 1,
        num_messages). The polynomials have num_messages - c coefficients.
    """

    weights: jax.Array
    powers: Array


@dataclass_transform(frozen_default=True)
class Decoder(abc.ABC):
    """Base class of decoders, which compute decoding weights from arrays.

    A decoder contains all that it needs besides the matrix and the target, so that you
    can write your own. Every subclass becomes a frozen dataclass and a pytree, without
    a decorator; its constructor must work with tracers. Fields are arrays (or pytrees
    of arrays), unless they are annotated as static, e.g. `Static[int]`.

    Attributes:
      needs: Kind of code that it decodes, for the error message if a code does not fit.
      is_optimal: Whether its residual is minimal; the search for worst patterns relies
        on this. False by default for a subclass that replaces `weights`.
      runs_on_host: Whether `weights` and `decoding_time` also take NumPy arrays, and
        then return NumPy arrays, so that studies compile nothing.
      is_exact: Whether it decodes exactly if the messages suffice. False for a decoder
        that is inexact on purpose, e.g. a regularised one.

    Example:
      Weights with an upper limit, so that no message is amplified by more:

      >>> import jax.numpy as jnp, jaxwgc
      >>> from jaxwgc import decoders
      >>> class Clipped(decoders.Decoder):
      ...     inner: decoders.Decoder
      ...     limit: float
      ...     is_exact = False
      ...
      ...     def weights(self, matrix, target, mask):
      ...         weights = self.inner.weights(matrix, target, mask)
      ...         return jnp.clip(weights, max=self.limit)
      >>> code = jaxwgc.codes.uncoded(3)
      >>> received = jnp.array([True, True, False])
      >>> decoder = Clipped(decoders.LeastSquares(), limit=0.5)
      >>> jaxwgc.decoding(code, received, decoder).weights
      Array([[0.5, 0.5, 0. ]], dtype=float32)
    """

    needs: ClassVar[str] = "that has it among its decoders"
    is_optimal: ClassVar[bool] = False
    runs_on_host: ClassVar[bool] = False
    is_exact: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        parents: Any = super(cls, cls)
        if "weights" in vars(cls) and parents.weights is not Decoder.weights:
            # Attributes of base classes describe the `weights` of base classes.
            for name in ("is_optimal", "runs_on_host", "decodes", "decoding_time"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(Decoder, name))
        register(dataclasses.dataclass(frozen=True)(cls))

    @abc.abstractmethod
    def weights(self, matrix: Array, target: Array, mask: jax.Array) -> jax.Array:
        """Computes decoding weights of the messages that have arrived.

        Args:
          matrix: B, real or complex (num_messages, columns), with a column for each
            segment of each part.
          target: Target of aᵀB, real (num_segments, columns). Both are NumPy arrays if
            they are known, and constants for `jax.grad`.
          mask: Which messages arrived, bool (..., num_messages), at least one axis.

        Returns:
          (..., num_segments, num_messages). Weights of messages that have not arrived
          are replaced by zero.
        """

    def checked_weights(
        self, matrix: Array, target: Array, mask: jax.Array
    ) -> jax.Array:
        """Computes checked weights, zero for messages that have not arrived.

        They are in at least float32, and constants for `jax.grad`.
        """
        matrix = working_constant(matrix)
        target = working_constant(target)
        find = functools.partial(self.weights, matrix, target)
        by_batch = sharding_by_batch(mask, 2)
        if by_batch is not None:
            # The compiler chooses the sharding inside the function, which batches and
            # sorts masks.
            find = jax.sharding.auto_axes(find, out_sharding=by_batch)
        weights = find(mask)
        shape = (*mask.shape[:-1], len(target), len(matrix))
        if np.shape(weights) != shape:
            raise ValueError(
                f"weights of {self} must have shape (..., num_segments, num_messages) "
                f"= {shape}; got {np.shape(weights)}"
            )
        if jnp.iscomplexobj(weights) and not jnp.iscomplexobj(matrix):
            raise TypeError(
                f"weights of {self} must be real numbers or bools; got "
                f"{dtype_of(weights)}"
            )
        dtype = jnp.promote_types(matrix.dtype, jnp.float32)
        return _at_received(weights, mask, dtype)

    @property
    def tolerance(self) -> float:
        """Largest relative residual with which a round counts as decoded by default.

        The residual is relative to the norm of the target. 0.001; for a decoder that is
        inexact on purpose 0.999, so that its result is nearer to the gradient than a
        zero update.
        """
        return DECODES if self.is_exact else APPROXIMATES

    def decodes(
        self, matrix: Array, target: Array, mask: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        """Returns whether the given messages suffice to decode.

        Computes weights by default. A subclass may use a faster criterion.

        Args:
          matrix: B, real or complex (num_messages, columns).
          target: Target of aᵀB, real (num_segments, columns).
          mask: Which messages arrived, bool (..., num_messages).
          tolerance: Bound of the residual relative to the norm of the target.

        Returns:
          Whether the residual of `weights` is at most the tolerance, up to rounding.
        """
        weights = self.checked_weights(matrix, target, mask)
        return _is_near(weights, working(matrix), working(target), tolerance)

    def decoding_time(
        self, matrix: Array, target: Array, times: jax.Array, tolerance: ArrayLike
    ) -> jax.Array:
        """Returns the time at which enough messages have arrived to decode.

        Found by bisection over the messages in the order of their arrival: more
        messages never increase the residual.

        Args:
          matrix: B, real or complex (num_messages, columns).
          target: Target of aᵀB, real (num_segments, columns).
          times: Time at which each message arrives, (num_messages,); infinity if never.
          tolerance: Bound of the residual relative to the norm of the target.

        Returns:
          A scalar, infinity if all messages together do not suffice.
        """
        in_order = jnp.sort(times)
        count = jnp.isfinite(times).sum()

        def is_enough(number):
            mask = (times <= in_order[number]) & jnp.isfinite(times)
            return self.decodes(matrix, target, mask, tolerance)

        first = first_true(is_enough, count)
        return jnp.where(first < count, in_order[first], jnp.inf)

    def check(self, matrix: Array, target: Array) -> None:
        """Raises an error if fields of the decoder are invalid, or do not fit the code.

        Entries are not checked: if they do not fit, weights have a residual.
        """
        del matrix, target

    def interpolation(self, mask: jax.Array) -> Interpolation | None:
        """Returns the points of a polynomial to interpolate at 0; None without one.

        Args:
          mask: Which messages arrived, bool (num_messages,).
        """
        del mask
        return None

    def is_a(self, kind: type["Decoder"]) -> bool:
        """Returns whether the decoder is of a class, or contains such a decoder."""
        return isinstance(self, kind)

    def check_one_segment(self, target: Array) -> None:
        """Raises ValueError if messages are shorter than the gradient."""
        if len(target) != 1:
            raise ValueError(
                f"num_segments must be 1 for the decoder {self}; got {len(target)}"
            )

    def __str__(self) -> str:
        return type(self).__name__


@functools.partial(jax.jit, static_argnames="dtype")
def _at_received(weights: ArrayLike, mask: jax.Array, dtype: np.dtype) -> jax.Array:
    """Casts decoding weights, and sets them to zero at missing messages.

    The result is constant for `jax.grad`, also in the arrays of a decoder.
    """
    weights = jax.lax.stop_gradient(jnp.asarray(weights, dtype))
    return jnp.where(mask[..., None, :], weights, 0)


@jax.jit
def _is_near(
    weights: jax.Array, matrix: jax.Array, target: jax.Array, tolerance: ArrayLike
) -> jax.Array:
    scale = scale_of(target)
    norms = jnp.ones(len(matrix), scale.dtype)
    system = System(matrix / scale, norms, target / scale)
    return system.residual(weights) <= tolerance


# A decoder, a class (for the decoder of that class that the code has), or None (for the
# first decoder of the code).
DecoderLike: TypeAlias = Decoder | type[Decoder] | None
