"""Decoding weights, errors and gradients of a round: the public functions."""

from typing import Any

import jax

from jaxwgc.codes import GradientCode
from jaxwgc.coding._arrived import Arrived, Finished, Received
from jaxwgc.coding._decoding import Decoding
from jaxwgc.decoders import Decoder, DecoderLike


def decoding(
    code: GradientCode,
    received: Received | None = None,
    decoder: DecoderLike = None,
    *,
    finished: Finished | None = None,
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
        (..., num_workers). Alternatively an `Arrivals` of a straggler model, an
        `ErrorLocation` (its mask counts), or a `Decoding`, which is returned unchanged.
        The finished parts of an `Arrivals` count for codes with several messages per
        worker.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      finished: Number of parts each worker has finished, int (..., num_workers), for
        codes with several messages per worker, in place of `received`. A traced number
        that exceeds the parts of a worker counts as no response.

    Returns:
      A `Decoding`. Its weights, (..., num_segments, num_messages), are constants for
      `jax.grad`.

    Raises:
      ValueError: If not exactly one of `received` and `finished` is given, or it has
        the wrong shape. If `finished` exceeds the parts of a worker, or the decoder
        does not fit the code.
      TypeError: If `received` is not boolean, `finished` not integer, or `decoder` is
        not a decoder.

    Example:
      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> decoding = jaxwgc.decoding(code, jnp.array([True, True, False, True]))
      >>> decoding.weights
      Array([[1., 1., 0., 0.]], dtype=float32)
      >>> bool(decoding.failed())
      False

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2 (aᵀB = target) and theorem 4.1 (weighted
      targets); Halbawi, Azizan, Salehi, Hassibi, "Improving distributed gradient
      descent using Reed-Solomon codes", ISIT 2018 (closed form); Charles,
      Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random graphs",
      2017 (one-step and optimal decoding); Horii, Yoshida, Kobayashi, Matsushima,
      "Distributed stochastic gradient descent using LDGM codes", 2019 (peeling).
    """
    GradientCode.check(code)
    arrived = Arrived.of(code, received, finished)
    return arrived.decode(code, code.choose_decoder(decoder))


def decoding_weights(
    code: GradientCode,
    received: Received | None = None,
    decoder: DecoderLike = None,
    *,
    finished: Finished | None = None,
) -> jax.Array:
    """Computes the decoding weights a of a round, which minimise ‖aᵀB - target‖₂.

    If the code tolerates the stragglers, aᵀB equals the target. If several weights do,
    decoders differ in the weights that they return.

    Args:
      code: Gradient code with encoding matrix B.
      received: Which workers responded with all of their messages, bool (...,
        num_workers); or an `Arrivals`, an `ErrorLocation` or a `Decoding` of the round.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      finished: Number of parts that each worker has finished, int (..., num_workers),
        in place of `received`; for codes with several messages per worker.

    Returns:
      (..., num_messages), complex for a complex code, zero at stragglers; num_messages
      is num_workers for codes with one message per worker. For a code with segments
      (..., num_segments, num_messages), the weights for each segment.

    Raises:
      ValueError: If not exactly one of `received` and `finished` is given, or it has
        the wrong shape. If `finished` exceeds the parts of a worker, or the decoder
        does not fit the code.
      TypeError: If `received` is not boolean, `finished` not integer, or `decoder` is
        not a decoder.

    Example:
      Workers 1 and 3 hold the same block. One of them is used, or each by half:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(4, num_stragglers=1)
      >>> received = jnp.array([True, True, False, True])
      >>> jaxwgc.decoding_weights(code, received).round(3)
      Array([1., 1., 0., 0.], dtype=float32)
      >>> jaxwgc.decoding_weights(code, received, jaxwgc.decoders.LeastSquares).round(3)
      Array([1. , 0.5, 0. , 0.5], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    GradientCode.check(code)
    arrived = Arrived.of(code, received, finished)
    weights = arrived.weights(code, code.choose_decoder(decoder))
    return weights.squeeze(-2) if code.num_segments == 1 else weights


def effective_weights(
    code: GradientCode,
    received: Received | None = None,
    decoder: DecoderLike = None,
    *,
    finished: Finished | None = None,
) -> jax.Array:
    """Computes the weight of each partial gradient in the decoded gradient, c = aᵀB.

    They are all ones, or the weights of a weighted code, if the code tolerates the
    stragglers. For a complex code this is the real part, for a code with segments the
    mean over segments. In rounds that cannot be decoded exactly, packed halves and
    segments of a gradient also leak into each other. `decode`, `coded_aggregate`,
    `decoded_value_and_grad` and `decoding_error` include these leaks.

    Args:
      code: Gradient code with encoding matrix B.
      received: Which workers responded with all of their messages, bool (...,
        num_workers); or an `Arrivals`, an `ErrorLocation` or a `Decoding` of the round.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      finished: Number of parts that each worker has finished, int (..., num_workers),
        in place of `received`; for codes with several messages per worker.

    Returns:
      Real (..., num_parts).

    Raises:
      ValueError: If not exactly one of `received` and `finished` is given, or it has
        the wrong shape. If `finished` exceeds the parts of a worker, or the decoder
        does not fit the code.
      TypeError: If `received` is not boolean, `finished` not integer, or `decoder` is
        not a decoder.

    Example:
      Without a code, the parts of a straggler are lost:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.effective_weights(code, jnp.array([True, False, True]))
      Array([1., 0., 1.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    return decoding(code, received, decoder, finished=finished).effective_weights


def decoding_error(
    code: GradientCode,
    received: Received | None = None,
    decoder: DecoderLike = None,
    *,
    finished: Finished | None = None,
) -> jax.Array:
    """Computes the squared decoding error: the squared norm of aᵀB - target.

    Zero up to rounding if the code tolerates the stragglers. Divided by the number of
    parts, it is the fraction of the gradient that is lost. For a code with segments it
    is the mean over segments. It is differentiable in the entries of B if the weights
    are the least-squares ones: they minimise the error, so that their own derivative
    does not contribute to first order.

    Args:
      code: Gradient code with encoding matrix B.
      received: Which workers responded with all of their messages, bool (...,
        num_workers); or an `Arrivals`, an `ErrorLocation` or a `Decoding` of the round.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      finished: Number of parts that each worker has finished, int (..., num_workers),
        in place of `received`; for codes with several messages per worker.

    Returns:
      Real (...).

    Raises:
      ValueError: If not exactly one of `received` and `finished` is given, or it has
        the wrong shape. If `finished` exceeds the parts of a worker, or the decoder
        does not fit the code.
      TypeError: If `received` is not boolean, `finished` not integer, or `decoder` is
        not a decoder.

    Example:
      Two of three parts are lost:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.uncoded(3)
      >>> jaxwgc.decoding_error(code, jnp.array([True, False, False]))
      Array(2., dtype=float32)

    References:
      Charles, Papailiopoulos, Ellenberg, "Approximate gradient coding via sparse random
      graphs", 2017.
    """
    return decoding(code, received, decoder, finished=finished).error


def decode(
    code: GradientCode,
    messages: jax.Array,
    received: Received | None = None,
    params: Any = None,
    decoder: DecoderLike = None,
    *,
    finished: Finished | None = None,
) -> Any:
    """Decodes the gradient from the messages that arrived.

    Args:
      code: Gradient code with which the messages were encoded.
      messages: (..., num_messages, length), from `encode`. Decoded in at least float32.
        Messages that did not arrive may hold anything, including NaN.
      received: Which workers responded with all of their messages, bool (...,
        num_workers); or an `Arrivals`, an `ErrorLocation` or a `Decoding` of the round.
        Batch axes are broadcast against messages.
      params: Pytree of floats, or of `jax.ShapeDtypeStruct`, with the structure, shapes
        and dtypes of the gradient.
      decoder: Decoder instance, or decoder class supported by the code. Defaults to
        `code.decoders[0]`.
      finished: Number of parts that each worker has finished, int (..., num_workers),
        in place of `received`; for codes with several messages per worker.

    Returns:
      The sum over j of cⱼ gⱼ with the `effective_weights` c: a pytree like params, with
      the batch axes in front. In a round that decodes, entries that are zero in every
      partial gradient are exactly zero: rounding errors from entries that are packed
      with them are cleared.

    Raises:
      ValueError: If messages, `received` or `finished` have the wrong shape, if not
        exactly one of the last two is given, or if the decoder does not fit the code.
      TypeError: If params are not floats, messages are not numbers, complex for a real
        code, or real for a complex one, or `received` is not boolean.

    Example:
      The message of worker 1 is lost:

      >>> import jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.cyclic_mds(3, num_stragglers=1)
      >>> messages = jaxwgc.encode(code, {"w": jnp.arange(6.0).reshape(3, 2)})
      >>> received = jnp.array([True, False, True])
      >>> jaxwgc.decode(code, messages, received, {"w": jnp.zeros(2)})["w"].round()
      Array([6., 9.], dtype=float32)

    References:
      Charalambides, Pilanci, Hero, "Weighted gradient coding with leverage score
      sampling", ICASSP 2020, section 2.2.
    """
    if isinstance(params, Decoder):
        raise TypeError(
            f"params must be the parameters of the model; got the decoder {params}. "
            "Pass it by name: decoder=..."
        )
    decoded = decoding(code, received, decoder, finished=finished)
    return decoded.combine(messages, params)
