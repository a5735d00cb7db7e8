"""Decoding weights of a round, and quantities derived from them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _flat_vectors, _validation
from jaxwgc._arrays import product, promoted, working
from jaxwgc._pytrees import register
from jaxwgc._targets import effective, mixing, residual, squared_error, target_scale
from jaxwgc.codes import GradientCode
from jaxwgc.coding._arrivals import arrived_messages
from jaxwgc.coding._weighted_sums import (
    collapse,
    collapse_leaves,
    combine,
    floor_weights,
)
from jaxwgc.decoders import Decoder, DecoderLike


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Decoding:
    """Decoding weights of a round, and quantities derived from them.

    Returned by `jaxwgc.decoding`. To use known weights, call
    `Decoding(code, mask, weights)`. A pytree.

    Attributes:
      code: Gradient code.
      mask: Which messages arrived, bool (..., num_messages).
      weights: Decoding weights, (..., num_segments, num_messages), zero at messages
        that did not arrive.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> decoding = jaxwgc.decoding(code, jnp.array([True, True, False]))
      >>> decoding.effective_weights, float(decoding.error), bool(decoding.failed())
      (Array([1., 1., 0.], dtype=float32), 1.0, True)
      >>> decoding.collapse(jnp.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]]))
      Array([3., 5.], dtype=float32)

    References:
      The paper's sections 2.2 and 4.
    """

    code: GradientCode
    mask: jax.Array
    weights: jax.Array

    @property
    def received(self) -> jax.Array:
        """Which workers have sent all their messages, bool (..., num_workers)."""
        shape = self.code.num_workers, self.code.messages_per_worker
        return self.mask.reshape(*self.mask.shape[:-1], *shape).all(axis=-1)

    @property
    def effective_weights(self) -> jax.Array:
        """Effective weight of each partial gradient, real (..., num_parts)."""
        return effective(self._mixed)

    @property
    def error(self) -> jax.Array:
        """Squared norm of aᵀB - target, real (...), averaged over segments."""
        return squared_error(self._mixed, self._target)

    @property
    def residual(self) -> jax.Array:
        """Norm of aᵀB - target, real (...)."""
        return residual(self._mixed, self._target, 0.0)[0]

    @property
    def share(self) -> jax.Array:
        """Fraction of the gradient recovered, cᵀ target / ‖target‖², real (...).

        1 if decoding is exact. If whole parts are lost, their fraction is missing.
        """
        return _share(self.effective_weights, self._target)

    @property
    def requests(self) -> jax.Array:
        """Returns the factors by which each worker multiplies its messages on request.

        They are the decoding weights at the messages that arrived, real
        (..., num_workers, messages_per_worker): see `jaxwgc.coding.answer_request`.

        Raises:
          ValueError: If the code has segments or complex messages: their sums do not
            allow rounding errors to be cleared.
        """
        code = self.code
        code.check_requests()
        shape = code.num_workers, code.messages_per_worker
        return self.weights.reshape(*self.weights.shape[:-2], *shape)

    def failed(self, tolerance: jax.typing.ArrayLike = 1e-3) -> jax.Array:
        """Returns whether the residual exceeds a fraction of the target's norm.

        The result is bool (...), the fraction is `tolerance`.
        """
        _validation.check_number("tolerance", tolerance, minimum=0)
        return residual(self._mixed, self._target, tolerance)[1]

    def combine(
        self,
        messages: jax.Array,
        params: Any,
        message_dtype: jax.typing.DTypeLike | None = None,
    ) -> Any:
        """Decodes the gradient from messages, as `jaxwgc.decode` does.

        Args:
          messages: (..., num_messages, length), see `jaxwgc.decode`.
          params: Pytree with the structure, shapes and dtypes of the gradient.
          message_dtype: Dtype that messages were rounded to. Defaults to their dtype.

        Returns:
          A pytree like params, with the batch axes in front.

        Raises:
          ValueError, TypeError: See `jaxwgc.decode`.
        """
        _validation.check_message_dtype(message_dtype)
        code, name, kind = self.code, "params", "real or complex floats"
        _validation.require(params is not None, name, "be given with messages", params)
        _validation.check_dtypes(name, params, kind, abstract=True)
        params = jax.tree.map(
            lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), params
        )
        num_blocks = code.num_segments * (2 if code.is_complex else 1)
        length = -(-_flat_vectors.raveled_size(params) // num_blocks)
        messages = check_messages_of(code, messages, length)
        dtype = messages.dtype if message_dtype is None else jnp.dtype(message_dtype)
        floors = floor_weights(
            self._matrix, self._target, self.weights, self.mask, dtype
        )
        # Messages are promoted before jit, which would truncate integers of 64 bits.
        flat = combine(self.weights, floors, promoted(messages), self.mask)
        return _flat_vectors.unravel(flat, params)

    def collapse(self, partial_gradients: Any) -> Any:
        """Decodes the gradient from partial gradients, without forming messages.

        Equal to `combine` up to rounding, at about the cost of summing the gradients.
        In a round that decodes with a residual, `combine` also clears entries of the
        size of the residual, since it cannot tell them from zeros.

        Args:
          partial_gradients: Pytree with leaves (num_parts, ...). Alternatively a linear
            function of real weights (num_parts,) that returns the weighted sum of the
            partial gradients, a pytree.

        Raises:
          ValueError: If a leading axis is not num_parts, or the decoding has batch
            axes.
        """
        rule, shape = "be of one round (use jax.vmap for more)", self.mask.shape
        _validation.require(len(shape) == 1, "mask", rule, f"shape {shape}")
        mixed = self._mixed
        # A function is recognised as a callable leaf, because gradients such as Equinox
        # modules are callable, too, but are not leaves.
        if isinstance(partial_gradients, jax.tree_util.Partial) or (
            callable(partial_gradients)
            and jax.tree_util.all_leaves([partial_gradients])
        ):
            return collapse(mixed, self._target, partial_gradients)
        name, num_parts = "partial_gradients", self.code.num_parts
        _validation.check_leading_axis(name, partial_gradients, num_parts, "num_parts")
        return collapse_leaves(mixed, self._target, partial_gradients)

    @property
    def _matrix(self):
        # Shapes are checked here, because a pytree can be built from arbitrary leaves.
        sizes = self.code.num_segments, self.code.num_messages
        axes = "(..., num_segments, num_messages)"
        _validation.check_shape("weights", self.weights, axes, ("...", *sizes))
        axes = "(..., num_messages)"
        _validation.check_shape("mask", self.mask, axes, ("...", sizes[1]))
        return working(self.code.encoding_matrix)

    @property
    def _mixed(self):
        return mixing(self._matrix, self.weights)

    @property
    def _target(self):
        return working(self.code.target)


@jax.jit
def _share(effective_weights, target):
    """Returns cᵀ target / ‖target‖² for effective weights c, real (..., num_parts)."""
    scale = target_scale(target)
    target = target / scale
    norm = product(target, target)
    return product(effective_weights / scale, target) / jnp.where(norm > 0, norm, 1)


def decoding(
    code: GradientCode,
    received: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> Decoding:
    """Computes the decoding weights of a round.

    The weights a minimise the norm of aᵀB - target over the messages that arrived. If
    the code tolerates the stragglers of the round, aᵀB equals the target, and the
    decoded gradient is exact.

    `decoding_weights`, `effective_weights`, `decoding_error` and `decode` take the same
    arguments and return quantities of this round. To compute several of them, pass the
    `Decoding` in place of `received`.

    Args:
      code: Gradient code with encoding matrix B.
      received: Which workers responded with all of their messages, bool
        (..., num_workers). Alternatively an `Arrivals` of a straggler model (its
        finished parts count for codes with several messages per worker), an
        `ErrorLocation` (its mask counts), or a `Decoding`, which is returned unchanged.
      decoder: Decoder, or class of decoders that the code has. Defaults to
        `code.decoders[0]`.
      finished: Number of parts each worker has finished, int (..., num_workers), for
        codes with several messages per worker, in place of `received`. A traced number
        that exceeds the parts of a worker counts as no response.

    Returns:
      A `Decoding`. Its weights are constants for `jax.grad`.

    Raises:
      ValueError: If `received` or `finished` has the wrong shape, not exactly one of
        them is given, `finished` exceeds the parts of a worker, or the decoder does not
        fit the code.
      TypeError: If `received` is not boolean, `finished` not integer, or `decoder` is
        not a decoder.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> decoding = jaxwgc.decoding(code, jnp.array([True, True, False, True]))
      >>> decoding.weights
      Array([[1., 1., 0., 0.]], dtype=float32)

    References:
      The paper's section 2.2 and theorem 4.1; Halbawi et al., ISIT 2018; Charles,
      Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random graphs",
      2017 (one-step and optimal decoding); Horii, Yoshida, Kobayashi, Matsushima,
      "Distributed stochastic gradient descent using LDGM codes", 2019 (peeling).
    """
    GradientCode.check(code)
    if isinstance(received, Decoding):
        _check_same_code(code, received.code)
        return received
    mask = arrived_messages(code, received, finished)
    return decode_mask(code, mask, code.choose_decoder(decoder))


def decode_mask(code: GradientCode, mask: jax.Array, decoder: Decoder) -> Decoding:
    """Returns the decoding of the messages in a mask, bool (..., num_messages)."""
    weights = decoder.checked_weights(code.encoding_matrix, code.segment_targets, mask)
    return Decoding(code, mask, weights)


def _check_same_code(code: GradientCode, other: GradientCode) -> None:
    """Rejects a decoding of another code, as far as encoding matrices are known."""
    matrices = code.encoding_matrix, other.encoding_matrix
    are_known = all(isinstance(matrix, np.ndarray) for matrix in matrices)
    is_same = np.shape(matrices[0]) == np.shape(matrices[1])
    is_same = is_same and not (are_known and not np.array_equal(*matrices))
    _validation.require(is_same, "received", "be a decoding of the same code", other)


def decoding_weights(
    code: GradientCode,
    received: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes decoding weights a with aᵀB = target; see `decoding`.

    Args:
      code: See `decoding`.
      received: See `decoding`.
      decoder: See `decoding`.
      finished: See `decoding`.

    Returns:
      (..., num_messages), complex for a complex code, zero at stragglers; num_messages
      is num_workers for codes with one message per worker. For a code with segments
      (..., num_segments, num_messages), the weights for each segment.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([1., 1., 0., 0.], dtype=float32)
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.LeastSquares).round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)
    """
    weights = decoding(code, received, decoder, finished=finished).weights
    return weights.squeeze(-2) if code.num_segments == 1 else weights


def effective_weights(
    code: GradientCode,
    received: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the weight of each partial gradient in the decoded gradient, c = aᵀB.

    They are all ones, or the weights of a weighted code, if the code tolerates the
    stragglers. For a complex code this is the real part, for a code with segments the
    mean over segments. In rounds that cannot be decoded exactly, packed halves and
    segments of a gradient also leak into each other. `decode`, `coded_aggregate`,
    `decoded_value_and_grad` and `decoding_error` include these leaks.

    Args:
      code: See `decoding`.
      received: See `decoding`.
      decoder: See `decoding`.
      finished: See `decoding`.

    Returns:
      Real (..., num_parts).

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.effective_weights(code, jnp.array([True, False, True]))
      Array([1., 0., 1.], dtype=float32)
    """
    return decoding(code, received, decoder, finished=finished).effective_weights


def decoding_error(
    code: GradientCode,
    received: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the squared decoding error: the squared norm of aᵀB - target.

    Zero up to rounding if the code tolerates the stragglers. Divided by the number of
    parts, it is the fraction of the gradient that is lost. For a code with segments it
    is the mean over segments. It is differentiable in the entries of B if the weights
    are the least-squares ones: they minimise the error, so that their own derivative
    does not contribute to first order.

    Args:
      code: See `decoding`.
      received: See `decoding`.
      decoder: See `decoding`.
      finished: See `decoding`.

    Returns:
      Real (...).

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.decoding_error(code, jnp.array([True, False, False]))
      Array(2., dtype=float32)
    """
    return decoding(code, received, decoder, finished=finished).error


def decode(
    code: GradientCode,
    messages: jax.Array,
    received: Any = None,
    params: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> Any:
    """Decodes the gradient from the messages that arrived.

    Args:
      code: See `decoding`.
      messages: (..., num_messages, length), from `encode`. Decoded in at least float32.
        Messages that did not arrive may hold anything, including NaN.
      received: See `decoding`. Batch axes are broadcast against messages.
      params: Pytree of floats, or of `jax.ShapeDtypeStruct`, with the structure, shapes
        and dtypes of the gradient.
      decoder: See `decoding`.
      finished: See `decoding`.

    Returns:
      The sum over j of cⱼ gⱼ with the `effective_weights` c: a pytree like params, with
      the batch axes in front. In a round that decodes, entries that are zero in every
      partial gradient are exactly zero: rounding errors from entries that are packed
      with them are cleared.

    Raises:
      ValueError: If messages have the wrong shape, or for a reason in `decoding`.
      TypeError: If params are not floats, or messages are not numbers, complex for a
        real code, or real for a complex one.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> messages = jaxwgc.encode(code, {"w": jnp.arange(6.0).reshape(3, 2)})
      >>> received = jnp.array([True, False, True])
      >>> jaxwgc.decode(code, messages, received, {"w": jnp.zeros(2)})["w"].round()
      Array([6., 9.], dtype=float32)
    """
    decoded = decoding(code, received, decoder, finished=finished)
    return decoded.combine(messages, params)


def check_messages_of(
    code: GradientCode, messages: Any, length: int | str = "any"
) -> jax.Array:
    """Checks messages (..., num_messages, length) of a code, and returns an array."""
    kind, sizes = "numbers or bools", {"num_messages": code.num_messages}
    messages = _validation.as_array(
        "messages", messages, kind, "...", **sizes, length=length
    )
    if jnp.iscomplexobj(messages) != code.is_complex:
        kind = "complex" if code.is_complex else "real"
        raise TypeError(f"messages must be {kind} for {code}; got {messages.dtype}")
    return messages
