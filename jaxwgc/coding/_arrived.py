"""Messages that arrived in a round: the only place that looks at `received`."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxwgc._common.array_validation import is_traced
from jaxwgc._common.arrays import Array, sharding_by_batch
from jaxwgc._common.pytrees import register
from jaxwgc.codes import GradientCode
from jaxwgc.coding._decoding import Decoding
from jaxwgc.decoders import Decoder
from jaxwgc.stragglers import Arrivals


@register
@dataclasses.dataclass(frozen=True)
class ErrorLocation:
    """Workers that sent corrupted messages in a round, as far as the code can tell.

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


# Forms in which a caller describes a round: the mask of the workers that responded, or
# an object with their mask.
Received: TypeAlias = ArrayLike | Sequence[bool] | Arrivals | ErrorLocation | Decoding
# Number of parts that each worker has finished.
Finished: TypeAlias = ArrayLike | Sequence[int]


class Arrived(NamedTuple):
    """Messages that arrived in a round.

    Attributes:
      mask: Which messages arrived, bool (..., num_messages).
      decoding: Decoding of the round if it is known, otherwise None.
      joined: Workers that started with the parameters of this round, bool
        (num_workers,); None in rounds that are not simulated.
      late: Workers with a response to an earlier round that arrived in this round, bool
        (num_workers,); None if there are none.
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
        """Converts what is known of a round to the messages that arrived.

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
        if received is None and finished is not None:
            arrived = cls(_messages_of_finished(code, finished))
        elif received is None or finished is not None:
            raise ValueError(
                "received or finished must be given, and not both; got "
                f"{(received, finished)}"
            )
        elif isinstance(received, Decoding):
            _check_same_code(code, received.code)
            arrived = cls(received.mask, decoding=received)
        elif isinstance(received, ErrorLocation):
            if np.shape(received.mask)[-1] != code.num_messages:
                raise ValueError(
                    f"received.mask must have shape (..., {code.num_messages}) for "
                    f"{code}; got {np.shape(received.mask)}"
                )
            arrived = cls(received.mask)
        elif isinstance(received, Arrivals):
            arrived = cls._of_arrivals(code, received)
        else:
            arrived = cls(_messages_of_workers(code, received))
        if one_round and arrived.mask.ndim != 1:
            name = "received" if finished is None else "finished"
            shape = (*arrived.mask.shape[:-1], code.num_workers)
            raise ValueError(
                f"{name} must have shape (num_workers,) = ({code.num_workers},); got "
                f"{shape}"
            )
        return arrived

    @classmethod
    def _of_arrivals(cls, code: GradientCode, arrivals: Arrivals) -> "Arrived":
        if code.messages_per_worker > 1:
            finished = arrivals.finished(code.parts_per_worker)
            mask = _messages_of_finished(code, finished)
        else:
            mask = _messages_of_workers(code, arrivals.received)
        joined = arrivals.joined
        if joined is None:
            joined = jnp.ones_like(arrivals.received, bool)
        return cls(mask, joined=joined, late=arrivals.late)

    def weights(self, code: GradientCode, decoder: Decoder) -> jax.Array:
        """Returns decoding weights, (..., num_segments, num_messages)."""
        if self.decoding is not None:
            return self.decoding.weights
        return decoder.checked_weights(
            code.encoding_matrix, code.segment_targets, self.mask
        )

    def decode(self, code: GradientCode, decoder: Decoder) -> Decoding:
        """Returns the decoding of the round."""
        if self.decoding is not None:
            return self.decoding
        return Decoding(code, self.mask, self.weights(code, decoder))


def _messages_of_workers(
    code: GradientCode, received: ArrayLike | Sequence[bool]
) -> jax.Array:
    """Returns the mask of the messages of workers that sent all of them."""
    mask = received if isinstance(received, jax.Array) else np.asarray(received)
    if mask.dtype != bool:
        raise TypeError(f"received must be a bool mask; got {mask.dtype}")
    mask = _by_worker("received", mask, code)
    if code.messages_per_worker == 1:
        return mask
    return jnp.repeat(mask, code.messages_per_worker, axis=-1)


def _messages_of_finished(code: GradientCode, finished: Finished) -> jax.Array:
    """Returns the mask of the messages that workers can send after some parts."""
    counts = finished if isinstance(finished, jax.Array) else np.asarray(finished)
    if not jnp.issubdtype(counts.dtype, jnp.integer):
        raise TypeError(f"finished must be integers; got {counts.dtype}")
    counts = _by_worker("finished", counts, code)
    if not is_traced(finished, code.assignment):
        known = np.asarray(finished)
        if np.any((known < 0) | (known > np.asarray(code.parts_per_worker))):
            raise ValueError(
                f"finished must be from 0 to parts_per_worker; got {known}"
            )
    parts = jnp.asarray(code.parts_per_worker)
    required = parts[:, None] if code.required_parts is None else code.required_parts
    mask = counts[..., None] >= jnp.asarray(required)
    mask &= (counts <= parts)[..., None]
    return mask.reshape(*counts.shape[:-1], code.num_messages)


def _by_worker(name: str, array: Array, code: GradientCode) -> jax.Array:
    """Checks that the last axis is num_workers, and unshards that axis."""
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


def _check_same_code(code: GradientCode, other: GradientCode) -> None:
    """Rejects a decoding of another code, as far as the two codes are known."""
    checksums = {code.checksum, other.checksum} - {None}
    is_same = np.shape(code.encoding_matrix) == np.shape(other.encoding_matrix)
    if not is_same or len(checksums) > 1:
        raise ValueError(f"received must be a decoding of the same code; got {other}")
