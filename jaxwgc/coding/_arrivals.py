"""Reading arrivals: which messages the server has."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxwgc import _validation
from jaxwgc._arrays import sharding_by_batch
from jaxwgc.codes import GradientCode
from jaxwgc.coding._errors._location import ErrorLocation
from jaxwgc.stragglers import Arrivals


def arrived_messages(code: GradientCode, received: Any, finished: Any) -> jax.Array:
    """Returns which messages have arrived, bool (..., num_messages).

    Args:
      code: a gradient code.
      received: bool (..., num_workers), who answered with all messages. Or `Arrivals`,
        whose finished parts count for codes of several messages a worker. Or None, and
      finished: int (..., num_workers), how many of its parts each worker has finished;
        a traced number of more parts than it has counts as no answer.

    Raises:
      ValueError: where the shape is wrong, a worker has not as many parts, or both or
        none of the two are given.
      TypeError: where received is not bool, or finished not integers.
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


def arrived_workers(code: GradientCode, mask: jax.Array) -> jax.Array:
    """Returns who has sent all its messages, bool (..., num_workers)."""
    shape = (code.num_workers, code.messages_per_worker)
    return mask.reshape(*mask.shape[:-1], *shape).all(axis=-1)


def _checked(name, given, kind, code):
    sizes = {"num_workers": code.num_workers}
    array = jnp.asarray(_validation.as_array(name, given, kind, "...", **sizes))
    by_batch = sharding_by_batch(array, 1)
    if by_batch is not None and jax.typeof(array).sharding.spec[-1] is not None:
        array = jax.sharding.reshard(array, by_batch)
    return array
