"""The result of locating the errors of a round."""

import dataclasses

import jax

from jaxwgc._pytrees import register


@register
@dataclasses.dataclass(frozen=True)
class ErrorLocation:
    """Workers that sent corrupted messages in a round, as far as the code can tell.

    Returned by `jaxwgc.locate_errors`. `jaxwgc.decoding`, `jaxwgc.decode` and similar
    functions accept it as `received`. A pytree.

    Attributes:
      wrong: Workers with corrupted messages, bool (num_workers,); all False if
        `refused`.
      mask: Messages to decode from, bool (num_messages,): finite messages that arrived
        from workers that are not corrupted. All False if
        `refused`.
      disputed: If `refused`, the workers in failed checks, bool (num_workers,).
      unique: Whether no other set of as few workers explains the errors, bool scalar.
      checks: Number of independent checks of the messages that arrived, int scalar.
        Errors in general position are found in up to checks - 1 messages, others in
        up to half of checks.
      refused: Whether the round is rejected, bool scalar: failed checks cannot be
        explained, or a message takes part in no check because too few others arrived.
    """

    wrong: jax.Array
    mask: jax.Array
    disputed: jax.Array
    unique: jax.Array
    checks: jax.Array
    refused: jax.Array
