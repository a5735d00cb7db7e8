"""Decoding: the weights of messages, and the gradient that they give."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxwgc import _flat_vectors, _validation
from jaxwgc._dtypes import working
from jaxwgc._targets import mixing, residual, squared_error
from jaxwgc.codes import GradientCode
from jaxwgc.coding import _collapsed
from jaxwgc.coding._arrivals import arrived_messages, arrived_workers
from jaxwgc.coding._combining import combine, floor_weights
from jaxwgc.decoders import DecoderLike


def find_weights(
    code: GradientCode,
    received: Any,
    decoder: DecoderLike = None,
    finished: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Which messages have arrived, bool (..., num_messages), and their weights.

    Weights are (..., num_segments, num_messages), constants to `jax.grad`.
    """
    GradientCode.check(code)
    mask = arrived_messages(code, received, finished)
    return mask, code.weights_of(mask, decoder)


def _without_decoders(code: GradientCode) -> GradientCode:
    """For what is compiled inside: equal programs whatever the decoders."""
    return jax.tree.map(working, dataclasses.replace(code, decoders=()))


def decoding_weights(
    code: GradientCode,
    received: jax.typing.ArrayLike | None = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The a that makes aᵀB the target, or as near as can be, for each mask.

    Args:
      code: a gradient code.
      received: bool (..., num_workers), the workers that answered, with all that they
        send.
      decoder: None for the code's first; a class of `jaxwgc.decoders` for the code's
        own of that class; or a decoder.
      finished: in the place of received, int (..., num_workers), how many of its parts
        each worker has finished (`Arrivals.finished` of a straggler model), for codes
        of several messages a worker. A traced number of more parts than it has counts
        as no answer.

    Returns:
      (..., num_messages), complex for a complex code, zero at stragglers; num_messages
      is num_workers, except for codes of several messages a worker. For a code with
      segments (..., num_segments, num_messages), the weights for each segment.

    Raises:
      ValueError: where received or finished has the wrong shape, not exactly one of
        them is given, finished counts more parts than there are, or the decoder does
        not fit the code.
      TypeError: where received is not bool, finished is not of integers, or the decoder
        is none.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([1., 1., 0., 0.], dtype=float32)
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.LeastSquares).round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)

    References:
      The paper's section 2.2 and theorem 4.1; Halbawi et al., ISIT 2018; Charles,
      Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random graphs",
      2017 (one-step and optimal decoding); Horii, Yoshida, Kobayashi, Matsushima,
      "Distributed stochastic gradient descent using LDGM codes", 2019 (peeling).
    """
    _, weights = find_weights(code, received, decoder, finished)
    return weights.squeeze(-2) if code.num_segments == 1 else weights


def effective_weights(
    code: GradientCode,
    received: jax.typing.ArrayLike | None = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """What multiplies each partial gradient in the decoded one: c = aᵀB.

    All ones, or the weights of a weighted code, as long as no more than s workers
    fail. For a complex code this is the real part. The imaginary part is rounding as
    long as decoding is exact; beyond, it is what the two packed halves of the gradient
    leak into each other, which `decode`, `coded_aggregate` and
    `decoded_value_and_grad` all account for, and so does `decoding_error`. For a code
    with segments, which leak into each other in the same way, it is their mean.

    Args:
      code: a gradient code.
      received: as for `decoding_weights`.
      decoder: as for `decoding_weights`.
      finished: as for `decoding_weights`.

    Returns:
      Real (..., num_parts).

    Raises:
      ValueError, TypeError: as for `decoding_weights`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.effective_weights(code, jnp.array([True, False, True]))
      Array([1., 0., 1.], dtype=float32)

    References:
      The paper's section 2.2.
    """
    _, weights = find_weights(code, received, decoder, finished)
    return _effective(_without_decoders(code), weights)


@jax.jit
def _effective(code, weights):
    return _collapsed.effective(mixing(code, weights))


def decoding_error(
    code: GradientCode,
    received: jax.typing.ArrayLike | None = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """The squared decoding error of each mask, the squared norm of aᵀB - target.

    Zero to rounding as long as no more than s workers fail; divided by the number of
    parts, the part of the gradient that is missed. (Of a code with segments, the mean
    over the segments.) Differentiable in the entries of B, at the decoding weights of
    least squares: those minimise it, so that their own change does not count to first
    order.

    Args:
      code: a gradient code.
      received: as for `decoding_weights`.
      decoder: as for `decoding_weights`.
      finished: as for `decoding_weights`.

    Returns:
      Real (...).

    Raises:
      ValueError, TypeError: as for `decoding_weights`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.decoding_error(code, jnp.array([True, False, False]))
      Array(2., dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse
      random graphs", 2017 ("optimal decoding").
    """
    _, weights = find_weights(code, received, decoder, finished)
    return _error(_without_decoders(code), weights)


@jax.jit
def _error(code, weights):
    return squared_error(code, mixing(code, weights))


def decode(
    code: GradientCode,
    messages: jax.Array,
    received: jax.typing.ArrayLike | None = None,
    params: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: jax.typing.ArrayLike | None = None,
) -> Any:
    """The gradient from the messages that were received.

    A straggler's message is selected away, so it may hold anything, NaN included.

    Args:
      code: the gradient code of the messages.
      messages: (..., num_messages, length), from `encode`. Decoded in at least float32,
        whatever their dtype.
      received: as for `decoding_weights`. Its batch axes and those of the messages are
        broadcast against each other.
      params: a pytree of arrays of floats (or `jax.ShapeDtypeStruct`) with the
        structure, shapes and dtypes of the gradient.
      decoder: as for `decoding_weights`.
      finished: as for `decoding_weights`.

    Returns:
      The decoded gradient, the sum over j of cⱼ gⱼ with the weights c of
      `effective_weights`: a pytree like params, leaves with the batch axes in front.
      For a complex code and too few answers, with what the two halves of the gradient
      leak into each other besides. In a round that decodes, entries that are zero in
      every partial gradient are exactly zero: what rounding alone would leave of the
      entries that are packed with them is cleared.

    Raises:
      ValueError: where messages or received have the wrong shape.
      TypeError: where received is not bool, params are not floats, or messages are not
        numbers, or complex for a real code, or real for a complex one.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.reed_solomon(4, num_parts=4, replication=2)
      >>> messages = jaxwgc.encode(code, {"w": jnp.arange(8.0).reshape(4, 2)})
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decode(code, messages, received, {"w": jnp.zeros(2)})["w"].round()
      Array([12., 16.], dtype=float32)

    References:
      The paper's section 2.2.
    """
    GradientCode.check(code)
    messages, params = check_messages(code, messages, params)
    mask, weights = find_weights(code, received, decoder, finished)
    floors = _floors(_without_decoders(code), weights, mask, messages.dtype)
    return _flat_vectors.unravel(combine(weights, floors, messages, mask), params)


@functools.partial(jax.jit, static_argnames="message_dtype")
def _floors(code, weights, mask, message_dtype):
    mixed = mixing(code, weights)
    return floor_weights(code, weights, mixed, mask, message_dtype)


class DecodedRound(NamedTuple):
    """What a server makes of one round.

    Attributes:
      gradient: the decoded gradient, a pytree.
      effective_weights: real (num_parts,), what multiplies each partial gradient in it.
      residual: real scalar, the norm of aᵀB - target; the square root of
        `jaxwgc.decoding_error`.
      failed: bool scalar, whether the residual is above the tolerance.
      received: bool (num_workers,), who has sent all that it sends.
    """

    gradient: Any
    effective_weights: jax.Array
    residual: jax.Array
    failed: jax.Array
    received: jax.Array


def decode_round(
    code: GradientCode,
    received: jax.typing.ArrayLike | None = None,
    *,
    messages: jax.Array | None = None,
    params: Any = None,
    partial_gradients: Any = None,
    finished: jax.typing.ArrayLike | None = None,
    decoder: DecoderLike = None,
    tolerance: jax.typing.ArrayLike = 1e-3,
    message_dtype: jax.typing.DTypeLike | None = None,
) -> DecodedRound:
    """The decoded gradient of one round, and how far it can be trusted.

    From messages that arrived, or from the partial gradients themselves: to rounding
    that is the same, at about the price of their sum.

    Args:
      code: a gradient code.
      received: bool (num_workers,), as for `decoding_weights`.
      messages: (num_messages, length), as for `decode`; with
      params: a pytree with the structure, shapes and dtypes of the gradient.
      partial_gradients: in the place of messages and params, a pytree; leaves
        (num_parts, ...). Or a function that is linear, of real weights (num_parts,) to
        the pytree of the sum of as many gradients so weighted.
      decoder: as for `decoding_weights`.
      finished: as for `decoding_weights`.
      tolerance: a round has failed where the norm of aᵀB - target is above this share
        of the norm of the target.
      message_dtype: what messages were rounded to on their way, where their dtype does
        not say it.

    Returns:
      A `DecodedRound`.

    Raises:
      ValueError: where shapes are wrong, or neither messages nor partial gradients are
        given, or both.
      TypeError: as for `decode`.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> received = jnp.array([True, True, False])
      >>> gradients = jnp.array([[1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
      >>> decoded = jaxwgc.coding.decode_round(
      ...     code, received, partial_gradients=gradients
      ... )
      >>> decoded.gradient, bool(decoded.failed), float(decoded.residual)
      (Array([3., 5.], dtype=float32), True, 1.0)

    References:
      The paper's sections 2.2 and 4.
    """
    GradientCode.check(code)
    _validation.check_one_round(code.num_workers, received=received, finished=finished)
    _validation.check_number("tolerance", tolerance, minimum=0)
    _validation.check_message_dtype(message_dtype)
    if (messages is None) == (partial_gradients is None):
        raise ValueError(
            "messages or partial_gradients must be given, and not both; got "
            f"{'neither' if messages is None else 'both'}"
        )
    if messages is not None:
        messages, params = check_messages(code, messages, params)
        if messages.ndim != 2:
            raise ValueError(
                "messages must have shape (num_messages, length), of one round; got "
                f"{messages.shape}"
            )
    mask, weights = find_weights(code, received, decoder, finished)
    plain = _without_decoders(code)
    mixed, effective, miss, failed = _quality(plain, weights, tolerance)
    if messages is not None:
        dtype = messages.dtype if message_dtype is None else jnp.dtype(message_dtype)
        floors = _floors(plain, weights, mask, dtype)
        flat = combine(weights, floors, messages, mask)
        gradient = _flat_vectors.unravel(flat, params)
    else:
        sums = partial_gradients
        # Gradients like an Equinox module can be called, too, but are no leaf.
        is_function = isinstance(sums, jax.tree_util.Partial) or (
            callable(sums) and jax.tree_util.all_leaves([sums])
        )
        if not is_function:
            _validation.check_leading_axis(
                "partial_gradients", sums, code.num_parts, "num_parts"
            )
            sums = _collapsed.weighted_sums(sums)
        gradient = _collapsed.collapse(code, mixed, sums)
    return DecodedRound(
        gradient=gradient,
        effective_weights=effective,
        residual=miss,
        failed=failed,
        received=arrived_workers(code, mask),
    )


@jax.jit
def _quality(code, weights, tolerance):
    mixed = mixing(code, weights)
    return mixed, _collapsed.effective(mixed), *residual(code, mixed, tolerance)


def check_messages(
    code: GradientCode, messages: Any, params: Any
) -> tuple[jax.Array, Any]:
    """Messages (..., num_messages, length) of a gradient like `params`, as arrays."""
    if params is None:
        raise ValueError("params must be given with messages; got None")
    messages = _validation.as_array("messages", messages)
    params = jax.tree.map(lambda leaf: _validation.as_array("params", leaf), params)
    _validation.check_dtypes("messages", messages, "numbers or bools")
    _validation.check_dtypes("params", params, "real or complex floats", abstract=True)
    size = _flat_vectors.raveled_size(params)
    length = -(-size // (code.num_segments * (2 if code.is_complex else 1)))
    expected = (code.num_messages, length)
    if messages.ndim < 2 or messages.shape[-2:] != expected:
        raise ValueError(
            f"messages must have shape (..., num_messages, length) = (..., "
            f"{expected[0]}, {expected[1]}) for {size} parameters; got {messages.shape}"
        )
    if jnp.iscomplexobj(messages) != code.is_complex:
        kind = "complex" if code.is_complex else "real"
        raise TypeError(f"messages must be {kind} for {code}; got {messages.dtype}")
    return messages, params
