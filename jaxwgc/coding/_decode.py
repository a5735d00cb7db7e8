"""Messages that arrived in a round, and their decoding."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common.array_validation import is_traced
from jaxwgc._common.arrays import Array, sharding_by_batch
from jaxwgc._common.pytrees import register
from jaxwgc._common.validation import in_short
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decoding import Decoding
from jaxwgc.decoders import Decoder
from jaxwgc.decoders._decoder import DecoderLike
from jaxwgc.stragglers import Arrivals


@register
@dataclasses.dataclass(frozen=True)
class ErrorLocation:
    """Workers found to have sent corrupted messages in a round.

    Returned by `jaxwgc.locate_errors`. `jaxwgc.decoding`, `jaxwgc.decode` and similar
    functions accept it as `received`. A pytree.

    Attributes:
      wrong: Workers with corrupted messages, bool (num_workers,); all False if
        `rejected`.
      mask: Messages to decode from, bool (num_messages,): finite messages that arrived
        from workers that are not corrupted. All False if `rejected`.
      disputed: If `rejected`, the workers in failed checks, bool (num_workers,).
      checks: Number of independent checks of the messages that arrived, int scalar.
        Errors in general position are found in up to checks - 1 messages, others in
        up to half of checks.
      rejected: Whether the round is rejected, bool scalar: failed checks cannot be
        explained, or a message takes part in no check because too few others arrived.

    Example:
      Worker 4 of 6 sends wrong numbers, and is excluded from decoding:

      >>> import jax, jax.numpy as jnp, jaxwgc
      >>> code = jaxwgc.codes.fractional_repetition(6, num_stragglers=2)
      >>> messages = jaxwgc.encode(code, jnp.ones((6, 3))).at[4].set(9.0)
      >>> received = jnp.ones(6, bool)
      >>> location = jaxwgc.locate_errors(code, messages, received, jax.random.key(1))
      >>> location.wrong.nonzero()[0].tolist(), bool(location.rejected)
      ([4], False)
      >>> jaxwgc.decode(code, messages, location, jnp.zeros(3))
      Array([6., 6., 6.], dtype=float32)
    """

    wrong: jax.Array
    mask: jax.Array
    disputed: jax.Array
    checks: jax.Array
    rejected: jax.Array


# Descriptions of a round that functions take: a mask of workers, or an object that has
# such a mask.
Received: TypeAlias = ArrayLike | Sequence[bool] | Arrivals | ErrorLocation | Decoding
# Number of parts that each worker has finished.
Finished: TypeAlias = ArrayLike | Sequence[int]


class Arrived(NamedTuple):
    """Messages that have arrived in a round, as a mask.

    For functions of your own that take `received` or `finished`.

    Attributes:
      mask: Which messages arrived, bool (..., num_messages).
      decoding: Decoding of the round if it is known, otherwise None.
      joined: Workers that started with the parameters of this round, bool
        (num_workers,); None in rounds that are not simulated.
      late: Workers with a response to an earlier round that arrived in this round, bool
        (num_workers,); None if there are none.

    Example:
      Each message is one part, and workers have finished different numbers of them:

      >>> import jaxwgc
      >>> code = jaxwgc.codes.replicated(2, num_parts=4, copies=1)
      >>> arrived = jaxwgc.coding.Arrived.of(code, finished=[2, 1])
      >>> arrived.mask
      Array([ True,  True,  True, False], dtype=bool)
      >>> arrived.decode(code, code.choose_decoder()).effective_weights
      Array([1., 1., 1., 0.], dtype=float32)
    """

    mask: jax.Array
    decoding: Decoding | None = None
    joined: jax.Array | None = None
    late: jax.Array | None = None

    @classmethod
    def of(
        cls,
        code: GradientCode,
        received: Received | None = None,
        finished: Finished | None = None,
        *,
        one_round: bool = False,
    ) -> "Arrived":
        """Converts any description of a round to the messages that have arrived.

        Args:
          code: Gradient code.
          received: Which workers responded with all messages, bool (..., num_workers).
            Alternatively an `Arrivals` (its finished parts count for codes with several
            messages per worker), an `ErrorLocation`, or a `Decoding` of the code. None
            if `finished` is given.
          finished: Number of parts each worker has finished, int (..., num_workers). A
            traced number that exceeds the parts of a worker counts as no response.
          one_round: Whether batch axes are rejected.

        Raises:
          ValueError: If the shape is wrong, a number exceeds the parts of a worker, not
            exactly one of the two arguments is given, or a decoding is of another code.
          TypeError: If received is not bool, or finished not integer.
        """
        decoding = None
        joined = None
        late = None
        if received is None and finished is not None:
            mask = _messages_of_finished(code, finished)
        elif received is None or finished is not None:
            got = "neither" if received is None else "both"
            raise ValueError(f"either received or finished= must be given; got {got}")
        elif isinstance(received, Arrivals):
            if code.messages_per_worker > 1:
                mask = _messages_of_finished(
                    code, received.finished(code.parts_per_worker)
                )
            else:
                mask = _messages_of_workers(code, received.received)
            joined = received.joined
            if joined is None:
                joined = jnp.ones_like(received.received, bool)
            late = received.late
        elif isinstance(received, Decoding):
            decoding = received
            mask = received.mask
            other = received.code
            # Traced matrices cannot be compared, so codes are compared by their known
            # arrays.
            checksums = {code.checksum, other.checksum} - {None}
            is_same = np.shape(code.encoding_matrix) == np.shape(other.encoding_matrix)
            if not is_same or len(checksums) > 1:
                raise ValueError(
                    f"received must be a decoding of the same code; got {other}"
                )
        elif isinstance(received, ErrorLocation):
            mask = received.mask
            if np.shape(mask)[-1] != code.num_messages:
                raise ValueError(
                    f"received.mask must have shape (..., {code.num_messages}) for "
                    f"{code}; got {np.shape(mask)}"
                )
        else:
            mask = _messages_of_workers(code, received)
        if one_round and mask.ndim != 1:
            name = "received" if finished is None else "finished"
            shape = (*mask.shape[:-1], code.num_workers)
            raise ValueError(
                f"{name} must have shape (num_workers,) = ({code.num_workers},); got "
                f"{shape}"
            )
        return cls(mask=mask, decoding=decoding, joined=joined, late=late)

    def decode(self, code: GradientCode, decoder: Decoder) -> Decoding:
        """Computes the decoding weights of the round."""
        if self.decoding is not None:
            return self.decoding
        weights = decoder.checked_weights(
            code.encoding_matrix, code.segment_targets, self.mask
        )
        return Decoding(code, self.mask, weights)


def _messages_of_workers(
    code: GradientCode, received: ArrayLike | Sequence[bool]
) -> jax.Array:
    """Returns a mask of messages for a mask of workers."""
    mask = received if isinstance(received, jax.Array) else np.asarray(received)
    if mask.dtype != bool:
        raise TypeError(f"received must be a bool mask; got {mask.dtype}")
    mask = _by_worker("received", mask, code)
    if code.messages_per_worker == 1:
        return mask
    return jnp.repeat(mask, code.messages_per_worker, axis=-1)


def _messages_of_finished(code: GradientCode, finished: Finished) -> jax.Array:
    """Returns a mask of messages for numbers of finished parts."""
    counts = finished if isinstance(finished, jax.Array) else np.asarray(finished)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"finished must be integers; got {counts.dtype}")
    counts = _by_worker("finished", counts, code)
    if not is_traced(finished, code.assignment):
        known = np.asarray(finished)
        if np.any((known < 0) | (known > np.asarray(code.parts_per_worker))):
            raise ValueError(
                "finished must be from 0 to the number of parts of each worker; got "
                f"{in_short(known.tolist())}"
            )
    parts = jnp.asarray(code.parts_per_worker)
    required = parts[:, None] if code.required_parts is None else code.required_parts
    mask = counts[..., None] >= jnp.asarray(required)
    mask &= (counts <= parts)[..., None]
    return mask.reshape(*counts.shape[:-1], code.num_messages)


def _by_worker(name: str, array: Array, code: GradientCode) -> jax.Array:
    """Checks that the last axis has an entry per worker, and replicates this axis."""
    by_worker = jnp.asarray(array)
    if by_worker.shape[-1:] != (code.num_workers,):
        raise ValueError(
            f"{name} must have shape (..., num_workers) = (..., {code.num_workers}); "
            f"got {by_worker.shape}"
        )
    by_batch = sharding_by_batch(by_worker, 1)
    if by_batch is not None and jax.typeof(by_worker).sharding.spec[-1] is not None:
        by_worker = jax.sharding.reshard(by_worker, by_batch)
    return by_worker


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

    The `Decoding` has these weights, the `effective_weights` of the partial gradients
    and the squared decoding `error`. Functions that take `received` also take it, so
    that a round is decoded once.

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
      `jax.grad`; num_messages is num_workers for codes with one message per worker.

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
      >>> decoding = jaxwgc.decoding(code, received)
      >>> decoding.weights
      Array([[1., 1., 0., 0.]], dtype=float32)
      >>> decoding.effective_weights, bool(decoding.failed())
      (Array([1., 1., 1., 1.], dtype=float32), False)
      >>> jaxwgc.decoding(code, received, jaxwgc.decoders.LeastSquares).weights.round(3)
      Array([[1. , 0.5, 0. , 0.5]], dtype=float32)

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
      The sum over j of cⱼ gⱼ with the effective weights c of `jaxwgc.decoding`: a
      pytree like params, with the batch axes in front. In a round that decodes, entries
      that are zero in every partial gradient are exactly zero: rounding errors from
      entries that are packed with them are cleared.

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
