"""The result of locating the errors of a round."""

import dataclasses

import jax

from jaxwgc._pytrees import register


@register
@dataclasses.dataclass(frozen=True)
class ErrorLocation:
    """The workers that sent something wrong in a round, as far as the code can tell.

    Made by `jaxwgc.locate_errors`, and taken by `jaxwgc.decoding`, `jaxwgc.decode` and
    the like in the place of `received`. A pytree.

    Attributes:
      wrong: bool (num_workers,), whose messages are wrong; nobody's where refused.
      mask: bool (num_messages,), the messages to decode from: they are there, finite,
        and of nobody who is wrong. None where refused.
      disputed: bool (num_workers,), where refused: who has a part in checks that fail.
      unique: bool scalar, whether nothing else explains the errors by as few workers.
      checks: int scalar, independent checks of the messages that were there. Errors in
        general position are found in one less, any errors in half as many.
      refused: bool scalar, whether checks fail in a way that cannot be explained, or
        some message is there that nothing checks: too few others are.
    """

    wrong: jax.Array
    mask: jax.Array
    disputed: jax.Array
    unique: jax.Array
    checks: jax.Array
    refused: jax.Array
