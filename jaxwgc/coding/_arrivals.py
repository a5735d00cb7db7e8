"""Masks of the messages that arrived and are not corrupted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import sharding_by_batch
from jaxwgc._pytrees import register
from jaxwgc.codes import GradientCode
from jaxwgc.stragglers import Arrivals


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


def arrived_messages(code: GradientCode, received: Any, finished: Any) -> jax.Array:
    """Returns which messages have arrived, bool (..., num_messages).

    Args:
      code: Gradient code.
      received: Which workers responded with all messages, bool (..., num_workers).
        Alternatively an `Arrivals`; its finished parts count for codes with several
        messages per worker. None if `finished` is given.
      finished: Number of parts each worker has finished, int (..., num_workers). A
        traced number that exceeds the parts of a worker counts as no response.

    Raises:
      ValueError: If the shape is wrong, a number exceeds the parts of a worker, or not
        exactly one of the two arguments is given.
      TypeError: If received is not bool, or finished not integer.
    """
    if isinstance(received, ErrorLocation) and finished is None:
        axes, sizes = "(..., num_messages)", ("...", code.num_messages)
        _validation.check_shape("received.mask", received.mask, axes, sizes)
        return received.mask
    if isinstance(received, Arrivals) and finished is None:
        if code.messages_per_worker > 1:
            received, finished = None, received.finished(code.parts_per_worker)
        else:
            received = received.received
    is_right, rule = (received is None) != (finished is None), "be given, and not both"
    _validation.require(is_right, "received or finished", rule, (received, finished))
    if finished is None:
        mask = _checked("received", received, "a bool mask", code)
        several = code.messages_per_worker
        return mask if several == 1 else jnp.repeat(mask, several, axis=-1)
    counts = _checked("finished", finished, "integers", code)
    if not _validation.is_traced(finished, code.assignment):
        given, parts = np.asarray(finished), np.asarray(code.parts_per_worker)
        is_right = np.all((given >= 0) & (given <= parts))
        rule = "be from 0 to parts_per_worker"
        _validation.require(is_right, "finished", rule, given)
    parts = jnp.asarray(code.parts_per_worker)
    required = parts[:, None] if code.required_parts is None else code.required_parts
    mask = counts[..., None] >= jnp.asarray(required)
    mask &= (counts <= parts)[..., None]
    return mask.reshape(*counts.shape[:-1], code.num_messages)


def _checked(name, given, kind, code):
    sizes = {"num_workers": code.num_workers}
    array = jnp.asarray(_validation.as_array(name, given, kind, "...", **sizes))
    by_batch = sharding_by_batch(array, 1)
    if by_batch is not None and jax.typeof(array).sharding.spec[-1] is not None:
        array = jax.sharding.reshard(array, by_batch)
    return array
